"""The files of a report: the summary, and the page as text and in headless Chromium."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import pytest
from browser_support import complaints, measured, needs_chromium, screenshot
from comparison_support import make_comparison, make_run

from composer_ls.lab.compare.comparison import compare_runs
from composer_ls.lab.compare.measured_runs import read_runs
from composer_ls.lab.report.comparison_page import FILES, build_report
from composer_ls.lab.report.figures import curve_panels
from composer_ls.lab.tasks.classification.report import REPORT as CLASSIFICATION
from composer_ls.lab.tasks.registry import task_report


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A folder with its comparison: two settings of three factors, and a run that is not finished."""
    root = make_comparison(
        tmp_path_factory.mktemp("runs"), (0.0, 0.1, 0.2), 3, ((), ("algorithms.mixup={alpha: 0.2}",))
    )
    (make_run(root / "broken", 0.3) / "result.json").unlink()
    (root / "commands.txt").write_text("composer-ls compare digits-mlp --smoothing 0,0.1,0.2 --seeds 3\n")
    return root, build_report(root)


def text_of(page):
    """The visible text of a page."""
    parts = []
    parser = HTMLParser()
    parser.handle_data = parts.append
    parser.feed(re.sub("<(style|svg).*?</\\1>", "", page.read_text(encoding="utf-8"), flags=re.S))
    return " ".join(" ".join(parts).split())


def test_the_summary_has_a_line_for_each_setting_factor_and_metric(report):
    root, comparison = report
    rows = list(csv.DictReader(io.StringIO((root / "summary.csv").read_text())))
    assert len(rows) == 2 * 3 * len(CLASSIFICATION.metrics)
    assert {row["metric"] for row in rows} == {"accuracy", "nll", "brier", "ece", "ece_scaled", "aurc"}
    (row,) = [r for r in rows if (r["setting"], r["smoothing"], r["metric"]) == ("plain", "0.1", "accuracy")]
    runs = comparison.runs["plain"]
    assert float(row["mean"]) == pytest.approx(sum(run.values["accuracy"] for run in runs[0.1].values()) / 3)
    assert float(row["difference"]) == pytest.approx(
        sum(runs[0.1][seed].values["accuracy"] - runs[0.0][seed].values["accuracy"] for seed in range(3)) / 3
    )
    assert float(row["difference_low"]) < float(row["difference"]) < float(row["difference_high"])
    assert (row["seeds"], row["paired_seeds"]) == ("3", "3")
    (baseline,) = [r for r in rows if (r["setting"], r["smoothing"], r["metric"]) == ("plain", "0", "nll")]
    assert baseline["difference"] == baseline["outcome"] == ""


def test_the_same_runs_give_the_same_files_whatever_they_took(report, tmp_path):
    root, _ = report
    texts = [(root / name).read_bytes() for name in FILES]
    build_report(root)
    assert [(root / name).read_bytes() for name in FILES] == texts


def test_a_validation_part_is_judged_and_the_test_part_stands_beside_it(tmp_path):
    for smoothing in (0.0, 0.1):
        for seed in range(3):
            wobble = 0.01 * seed
            make_run(
                tmp_path / f"{smoothing}-{seed}", smoothing, seed, better=-smoothing, held_out=5 * smoothing + wobble
            )
    build_report(tmp_path)
    rows = list(csv.DictReader((tmp_path / "summary.csv").open()))
    assert [row["part"] for row in rows] == 2 * (["validation"] * 6 + ["test"] * 6)
    (judged, beside) = (row for row in rows if (row["smoothing"], row["metric"]) == ("0.1", "accuracy"))
    assert float(judged["difference"]) > 0 > float(beside["difference"])
    assert judged["outcome"] == "helps"
    assert beside["outcome"] == beside["corrected_p"] == ""
    said = json.loads((tmp_path / "summary.json").read_text())
    assert (said["for"], said["part"], said["recipe"]) == ("accuracy", "validation", "digits-mlp")
    (advice,) = said["advice"]
    assert (advice["verdict"], advice["smoothing"]) == ("use", 0.1)
    assert advice["difference"]["mean"] == pytest.approx(float(judged["difference"]))
    assert advice["difference_on_test"]["mean"] == pytest.approx(float(beside["difference"]))
    assert advice["temperature"] > 0
    text = text_of(tmp_path / "report.html")
    for words in (
        advice["text"].split(":")[0], "On the test examples, which played no part in this, the difference is -",
        "validation NLL", "The same on the test examples, which played no part in any choice",
    ):  # fmt: skip
        assert words in text
    assert "test NLL" not in text
    assert "No images were held out" not in text


def test_without_a_validation_part_the_page_says_what_it_was_chosen_on(report):
    text = text_of(report[0] / "report.html")
    assert (
        "This was chosen on the same test examples on which it is reported" in text
        or "test examples themselves" in text
    )
    assert "No images were held out for this choice. With data.validation=0.1" in text
    assert text.index("What to do") < text.index("The answer")
    assert json.loads((report[0] / "summary.json").read_text())["part"] == "test"


def test_the_page_says_everything_that_it_should(report):
    text = text_of(report[0] / "report.html")
    for words in (
        "Does label smoothing help? mlp on digits",
        "18 runs of the recipe digits-mlp: smoothing 0, 0.1, 0.2, 2 settings, 3 seeds each",
        "Smoothing 0.1 and 0.2 against none, mixup(alpha 0.2)",
        "would exclude 0 by chance",
        "Smoothing is recommended only if it is shown to help",
        "Holm's correction",
        "composer-ls compare digits-mlp --smoothing 0,0.1,0.2 --seeds 3",
        "composer-ls train digits-mlp seed=1",
        "18 runs: x86_64, 2 cores; composer_ls 0.1.0, torch 2.7.0",
        "broken : it has begun, but not finished",
        "algorithms.label_smoothing.smoothing, seed, algorithms.mixup",
        "learning_rate: 0.002",
        "each is scaled by the temperature with the lowest NLL on the other",
    ):
        assert words in text


def test_the_page_holds_every_figure(report):
    page = (report[0] / "report.html").read_text()
    metrics, reliability, confidence, curves = len(CLASSIFICATION.metrics) + 1, 6, 4, 6
    assert page.count("<svg") == metrics + reliability + confidence + curves
    assert 'aria-label="reliability diagram, smoothing 0.1, mixup(alpha 0.2)"' in page


@pytest.mark.parametrize(
    ("recipe", "task", "words"),
    [
        ("camvid-unet", "segmentation", ("mIoU", "fewer than 20 pixels", "test mIoU")),
        ("multi30k-transformer", "translation", ("BLEU", "fewer than 20 subwords", "test accuracy of subwords")),
    ],
)
def test_runs_of_other_tasks_are_judged_by_their_own_metrics(tmp_path, recipe, task, words):
    comparison = build_report(make_comparison(tmp_path, (0.0, 0.1), 2, recipe=recipe))
    rows = list(csv.DictReader((tmp_path / "summary.csv").open()))
    own = task_report(task)
    assert [row["metric"] for row in rows] == 2 * [metric.key for metric in own.metrics]
    assert all(row["difference"] for row in rows if row["smoothing"] == "0.1")
    text = text_of(tmp_path / "report.html")
    assert all(word in text for word in words)
    assert "best temperature" not in text  # logits are not kept
    figures = len(own.metrics) + 1 + 2 + 2 + len(own.curves)
    assert (tmp_path / "report.html").read_text().count("<svg") == figures
    # Predictions are the same as those of a classifier, and so are the numbers that all tasks have.
    plain = build_report(make_comparison(tmp_path / "plain", (0.0, 0.1), 2))
    for key in {"accuracy", "nll", "ece"}:
        mine, theirs = (
            one.mean(next(metric for metric in one.task.metrics if metric.key == key), "", 0.1)
            for one in (comparison, plain)
        )
        assert mine.mean == pytest.approx(theirs.mean, rel=1e-4)


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_seeds_say_that_nothing_can_be_said(tmp_path, seeds):
    build_report(make_comparison(tmp_path, (0.0, 0.1), seeds))
    text = text_of(tmp_path / "report.html")
    assert text.count("nothing can be said from so few seeds") == len(CLASSIFICATION.metrics)
    assert not re.search(r"points \[|nats \[|±\s*\d", text)  # no interval either
    assert "nan" not in text.lower()
    assert "by chance" not in text


def test_what_is_missing_is_said_where_it_would_be(tmp_path):
    make_comparison(tmp_path, (0.1, 0.2), 2)
    for file in tmp_path.rglob("metrics.jsonl"):
        file.unlink()
    build_report(tmp_path)
    text = text_of(tmp_path / "report.html")
    assert "nothing to compare with: no run without smoothing is finished" in text
    assert "no run's metrics.jsonl has metrics/train/CrossEntropy" in text


def test_a_run_shorter_than_an_epoch_has_no_curve_and_that_is_said(tmp_path):
    make_comparison(tmp_path, (0.0, 0.1), 1)
    for file in tmp_path.rglob("metrics.jsonl"):
        file.write_text('{"epoch": 0, "batch": 3, "metrics/test/CrossEntropy": 2.0}\n')
    build_report(tmp_path)
    assert "no run's metrics.jsonl has metrics/test/CrossEntropy for a complete epoch" in text_of(
        tmp_path / "report.html"
    )


def test_names_are_escaped(tmp_path):
    attack = "<script>alert(1)</script>"
    for smoothing in (0.0, 0.1):
        folder = make_run(tmp_path / str(smoothing), smoothing, 0, f"description={attack}", f"data.root='{attack}'")
        result = (folder / "result.json").read_text().replace("composer-ls train", attack)
        (folder / "result.json").write_text(result)
    (tmp_path / "commands.txt").write_text(attack)
    build_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4


def test_a_page_of_60_runs_stays_small(tmp_path):
    mixers = ((), ("algorithms.mixup={}",), ("algorithms.cutmix={}",))
    build_report(make_comparison(tmp_path, (0.0, 0.05, 0.1, 0.2), 1, mixers))  # seeds are pooled in the figures
    assert (tmp_path / "report.html").stat().st_size < 1_000_000


def test_the_page_names_no_address_outside_it(report):
    page = (report[0] / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']*""", page)
    assert not re.findall(r"url\((?!#)", page)
    assert "default-src 'none'" in page


@needs_chromium
@pytest.mark.slow
def test_chromium_shows_the_page_without_complaint_or_request(report):
    page = report[0] / "report.html"
    assert complaints(page) == []
    for width in (500, 1280):
        found = measured(page, width=width)
        assert found["requests"] == []
        assert found["duplicates"] == 0
        assert len(found["pictures"]) == 23
        assert all(200 < wide <= width and high > 150 for wide, high in found["pictures"])
        assert found["width"] <= found["viewport"]  # nothing sticks out


@needs_chromium
@pytest.mark.slow
def test_chromium_shows_light_and_dark(report, tmp_path):
    page = report[0] / "report.html"
    light, dark = measured(page), measured(page, dark=True)
    assert light["ink"] != dark["ink"]
    assert not set(light["strokes"]) & set(dark["strokes"]) - {"none"}
    for name, width in (("phone", 390), ("desktop", 1280)):
        for scheme in (False, True):
            picture = tmp_path / f"{name}-{'dark' if scheme else 'light'}.png"
            screenshot(page, picture, width=width, height=2000, dark=scheme)
            assert picture.stat().st_size > 20_000


@needs_chromium
def test_chromium_would_complain_of_a_request_and_of_a_fault(report, tmp_path):
    page = tmp_path / "page.html"
    text = (report[0] / "report.html").read_text()
    page.write_text(text.replace("</main>", '<img src="http://127.0.0.1:9/x.png"></main>'))
    assert any("Content Security Policy" in message for message in complaints(page))


def test_a_run_that_failed_is_named_at_the_top_of_the_page(report):
    text = text_of(report[0] / "report.html")
    assert "Not all runs count. 1 run is left out: broken (it has begun, but not finished)." in text
    assert text.index("Not all runs count") < text.index("What to do")


def test_every_word_in_the_table_of_outcomes_is_explained_below_it(report):
    text = text_of(report[0] / "report.html")
    for words in (
        "AURC Area under the risk-coverage curve",
        "ECE, scaled The same after temperature scaling",
        "240 test",
    ):
        assert words in text
    assert "In brackets" not in text
    outcomes = {one.outcome for one in report[1].differences.values()}
    for outcome, words in {
        "helps": "shown by the seeds, also after Holm's correction", "may help": "a hint: the 95 % interval excludes 0",
        "small": "shown to be smaller than what is worth seeing", "unclear": "more seeds are needed",
    }.items():  # fmt: skip
        assert (words in text) == bool({outcome, outcome.replace("help", "hurt")} & outcomes)


def test_tables_that_are_wider_than_the_page_can_be_scrolled_by_key(report):
    page = (report[0] / "report.html").read_text()
    assert page.count("<table") == page.count('<div class="scroll" tabindex="0" role="region" aria-label="')


def test_a_factor_that_changes_during_training_is_drawn_and_one_that_does_not_is_not(tmp_path):
    schedule = "algorithms.label_smoothing.smoothing={schedule: linear, start: 0.2, end: 0.0}"
    for seed in range(3):
        make_run(tmp_path / f"none-{seed}", 0.0, seed)
        changing, fixed = (
            make_run(tmp_path / f"some-{seed}", 0.1, seed, schedule),
            make_run(tmp_path / f"0.1-{seed}", 0.1, seed),
        )
        for folder, last in ((changing, 0.0), (fixed, 0.2)):
            lines = (folder / "metrics.jsonl").read_text().splitlines()
            factors = [0.2] * (len(lines) - 1) + [last]
            new = [
                json.dumps(json.loads(line) | {"label_smoothing/smoothing": f})
                for line, f in zip(lines, factors, strict=True)
            ]
            (folder / "metrics.jsonl").write_text("\n".join(new) + "\n")
    titles = [panel.title for panel in curve_panels(compare_runs(tmp_path, *read_runs(tmp_path)))]
    assert [title.split(", ")[0] for title in titles].count("smoothing in use") == 1
