"""Pages and their figures, as text and in headless Chromium."""

import html
import json
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from browser_support import complaints, needs_chromium, title

from composer_ls.errors import InputError
from composer_ls.lab.commands.cli import main
from composer_ls.lab.compare.log import first_words
from composer_ls.lab.report import page


def picture(label="a line", text="<b> & $x$"):
    def draw(figure):
        axes = figure.subplots()
        for index in range(3):
            look = page.look(index)
            axes.errorbar([0, 1], [index, 2], yerr=0.1, color=look.color, marker=look.marker, linestyle=look.linestyle)
        axes.set_title(text)

    return page.svg(draw, label)


def test_text_of_a_figure_stays_text_and_is_escaped():
    root = ElementTree.fromstring(picture())
    assert "<b> & $x$" in [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "<b>" not in picture()


def test_colours_are_variables_and_no_style_sheet_leaks_into_the_page():
    text = picture()
    assert "var(--series-0)" in text
    assert "var(--series-2)" in text
    assert "var(--grid)" in text
    assert not re.search("#[0-9a-f]{6}", text)
    assert "style" not in text
    assert 'font-size="' in text
    assert "font-family" not in text


def test_ids_of_two_figures_do_not_meet_and_the_same_figure_is_the_same_text():
    first, second = picture("one"), picture("two")
    ids = [set(re.findall(' id="(.*?)"', text)) for text in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for text, own in zip((first, second), ids, strict=True):
        assert set(re.findall(r"(?:url\(|href=\")#([^\")]+)", text)) == own
    assert picture("one") == first


def test_no_two_of_many_series_look_alike():
    looks = [(one.color, one.marker, str(one.linestyle)) for one in map(page.look, range(35))]
    assert len(set(looks)) == 35


def test_every_colour_has_a_light_and_a_dark_value():
    style = (Path(page.__file__).parent / "templates" / "style.css").read_text()
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    for variable in set(re.findall(r"var\((--.*?)\)", style + picture())):
        assert f"{variable}:" in light
        assert f"{variable}:" in dark


def test_a_page_that_cannot_be_written_is_told_in_a_paragraph(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="page.html cannot be written .No space left on device.: make room"):
        page.write(tmp_path / "page.html", "text")
    assert list(tmp_path.iterdir()) == []


ATTACK = """"'><script>document.title = "run"</script><img src=x onerror="document.title = 'run'"> ü 猫 \u202e $x$"""
"""A name that runs a script wherever it is not escaped: in text, in an attribute and in the title."""


@needs_chromium
@pytest.mark.slow
def test_names_on_the_pages_of_commands_run_no_script_and_break_no_policy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / ATTACK.replace("/", "")

    def command(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments)])
        assert ended.value.code == 0

    command(
        "compare", "digits-mlp", "--smoothing", "0,0.1", "--seeds", 1, "--out", runs, "--jobs", 1,
        "duration=1ep", "diagnostics={}", f"description={json.dumps(ATTACK)}",
    )  # fmt: skip
    pages = {"compare": (runs / "report.html").read_bytes()}
    finished = [file.parent for file in runs.rglob("result.json")]
    for folder in finished:
        result = json.loads((folder / "result.json").read_text())
        names = {"classes": [f"{ATTACK} {label}" for label in range(10)], "plan": ATTACK, "command": ATTACK}
        (folder / "result.json").write_text(json.dumps(result | names | {"versions": {ATTACK: ATTACK}}))
    (runs / "failed").mkdir()
    (runs / "failed" / "log.txt").write_text(f"{first_words('now', 'train')}\n{ATTACK}\n")
    command("report", runs)
    pages["report"] = (runs / "report.html").read_bytes()
    command("diagnose", *finished, "--out", tmp_path / "diagnose.html")
    pages["diagnose"] = (tmp_path / "diagnose.html").read_bytes()
    for name, content in pages.items():
        text, file = content.decode(), tmp_path / f"{name}-page.html"
        assert "&lt;script&gt;document.title" in text, name
        policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="(.*?)">', text)
        assert re.fullmatch(
            r"default-src 'none'; style-src 'sha256-[\w+/]+='; img-src data:; base-uri 'none'; form-action 'none'",
            policy[1],
        )
        file.write_bytes(content)
        assert complaints(file) == [], name
        free = text.replace(policy[0], "")  # where nothing stops a script
        file.write_text(free, encoding="utf-8")
        assert title(file) == html.unescape(re.search("<title>(.*?)</title>", text)[1]), name
    file.write_text(free.replace("<h1>", f"<h1>{ATTACK}", 1), encoding="utf-8")
    assert title(file) == "run"
