"""The Python examples of README and the guides run, their commands exist, and their links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from composer_ls.lab.recipe.reading import load_recipe, recipe_path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "examples" / "guides").glob("*.md")), ROOT / "examples" / "README.md"]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}


@pytest.mark.parametrize(
    ("page", "code"),
    [(name, code) for name, text in TEXTS.items() for code in re.findall(r"```python\n(.*?)```", text, re.S)],
)
def test_example_runs_and_prints_what_it_says(page, code, capsys):
    exec(compile(code, page, "exec"), {})
    for shown in re.findall(r"print\(.*\)  # (.*)", code):
        assert shown in capsys.readouterr().out


@pytest.mark.parametrize("page", TEXTS)
def test_every_command_names_a_recipe_and_keys_that_exist(page):
    lines = [line.partition("#")[0] for line in re.findall(r"composer_?-?ls (?:train|compare) (.*)", TEXTS[page])]
    for line in lines:
        name, *words = shlex.split(line.strip().strip("`").partition("`")[0])
        overrides = [word for word in words if re.match(r"[a-z_.]+=", word)]
        if name != "mine.yaml" and f"\n# {name}\n" not in TEXTS[page]:  # the reader's own, or one that the page shows
            assert recipe_path(name).is_file()
            load_recipe(name, overrides)


def test_readme_fits_and_leads_to_every_guide():
    assert len(TEXTS["README.md"].splitlines()) <= 150
    for page in PAGES[1:]:
        assert f"({page.relative_to(ROOT).as_posix()})" in TEXTS["README.md"]


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_and_picture_is_there(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", TEXTS[page]):
        assert ((ROOT / page).parent / target.partition("#")[0]).exists(), target
