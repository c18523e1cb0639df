"""The page of diagnostics, as text and in headless Chromium, and the reasons it gives for missing figures."""

import html
import json
import math
import re

import pytest
import torch
from browser_support import complaints, measured, needs_chromium, screenshot
from comparison_support import CLASSES, make_run
from safetensors.torch import load_file, save_file

from composer_ls.errors import InputError, RunFolderError
from composer_ls.lab.commands.cli import main
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.report.diagnosis_page import diagnose
from composer_ls.lab.run_folder.folder import RunFolder

WATCHED = "diagnostics={mutual_information: {classes: [0, 1]}}"


def watched_run(folder, smoothing=0.0, seed=0, *overrides, spread=1.0, history=True):
    """A finished run that kept features: clusters of a given spread around the templates."""
    make_run(folder, smoothing, seed, WATCHED, *overrides, sharper=1.5 - 4 * smoothing)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(CLASSES, 16, generator=generator)
    tensors = {"weight": weight, "bias": torch.zeros(CLASSES)}
    for split, count in (("train", 400), ("test", 150)):
        labels = torch.arange(count) % CLASSES
        features = 3 * weight[labels] + spread * torch.randn(count, 16, generator=generator)
        tensors[f"{split}.features"], tensors[f"{split}.logits"] = features, features @ weight.T
        tensors[f"{split}.labels"] = labels
    if history:
        steps = torch.arange(1, 9).double()
        tensors["mutual_information"] = torch.stack([100 * steps, math.log(2) + spread / steps], 1)
    save_file(tensors, folder / "features.safetensors")
    return folder


def rewritten(folder, **changes):
    """A run folder with some tensors of its features changed, or dropped for None."""
    tensors = {k: v for k, v in (load_file(folder / "features.safetensors") | changes).items() if v is not None}
    save_file(tensors, folder / "features.safetensors")


def page_of(tmp_path, *folders, classes=None):
    runs = diagnose(folders, tmp_path / "page.html", classes)
    return runs, html.unescape((tmp_path / "page.html").read_text(encoding="utf-8"))


def missing(page):
    return [" ".join(text.split()) for text in re.findall(r'<p class="missing">(.*?)</p>', page, re.S)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    folders = watched_run(root / "hard"), watched_run(root / "smoothed", 0.1, spread=0.3)
    diagnose(folders, root / "page.html")
    return folders, root / "page.html"


def test_every_figure_is_there_for_runs_that_kept_everything(pair):
    page = html.unescape(pair[1].read_text(encoding="utf-8"))
    assert page.count("<svg") == 4 + 2 + 1 + 2  # projections, reliability, information, risks
    assert missing(page) == []
    for label in (
        "projection of training examples, smoothing 0",
        "projection of test examples, smoothing 0.1",
        "reliability, smoothing 0.1",
        "mutual information over training",
        "risk against coverage",
    ):
        assert f'aria-label="{label}"' in page


def test_the_caption_of_a_projection_is_the_spread_in_the_picture(pair):
    page = pair[1].read_text(encoding="utf-8")
    spreads = [float(number) for number in re.findall(r"distance between classes: (\d\.\d+)", page)]
    assert len(spreads) == 4
    hard, smoothed = spreads[::2], spreads[1::2]
    assert max(smoothed) < 0.5 * min(hard)


def test_runs_are_named_by_what_sets_them_apart(tmp_path):
    folders = [
        make_run(tmp_path / "a", 0.0),
        make_run(tmp_path / "b", 0.1, 0),
        make_run(tmp_path / "c", 0.1, 1),
        make_run(tmp_path / "d", 0.1, 1),
    ]
    runs, _ = page_of(tmp_path, *folders, folders[0])
    assert [run.name for run in runs] == [
        "smoothing 0",
        "smoothing 0.1, seed 0",
        f"smoothing 0.1, seed 1, {folders[2]}",
        f"smoothing 0.1, seed 1, {folders[3]}",
    ]


def test_a_run_without_features_shows_the_reason_and_the_figures_that_need_none(tmp_path):
    _, page = page_of(tmp_path, make_run(tmp_path / "plain", 0.1))
    reasons = missing(page)
    assert len(reasons) == 3
    assert all("has no features.safetensors; to keep features, train it again with" in r for r in reasons[:2])
    assert "no run recorded mutual information; to record it, train with" in reasons[2]
    assert page.count("<svg") == 3


def test_mutual_information_of_other_classes_is_named_where_its_curve_is(tmp_path):
    other = watched_run(tmp_path / "other", 0.1, 0, "diagnostics={mutual_information: {classes: [2, 3]}}")
    _, alike = page_of(tmp_path, watched_run(tmp_path / "hard"))
    _, unlike = page_of(tmp_path, tmp_path / "hard", other)
    assert "a training image of 0 and 1 and the difference" in alike
    assert "a training image and the difference" in unlike
    assert all(f", {pair}" in unlike for pair in ("0 and 1", "2 and 3"))


def test_a_run_that_did_not_record_mutual_information_is_named(tmp_path):
    folders = watched_run(tmp_path / "a"), watched_run(tmp_path / "b", 0.1, history=False)
    _, page = page_of(tmp_path, *folders)
    assert "not recorded: smoothing 0.1" in page
    assert missing(page) == []


@pytest.mark.parametrize("classes", [None, (1, 0)])
def test_two_classes_are_projected_too(tmp_path, classes):
    folder = watched_run(tmp_path / "two")
    labels = {f"{split}.labels": torch.arange(count) % 2 for split, count in (("train", 400), ("test", 150))}
    rewritten(folder, weight=torch.eye(2, 16), bias=torch.zeros(2), **labels)
    diagnose([folder], tmp_path / "page.html", classes)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not any("plane" in text or "classes must be" in text for text in missing(page))
    assert "projection of training examples" in page
    assert "projection of test examples" in page


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train.features": torch.zeros(400, 15)}, "features.safetensors in .* is not as a run writes it"),
        ({"test.labels": None}, "features.safetensors in .* is not as a run writes it"),
        ({"train.logits": None}, "features.safetensors in .* is not as a run writes it"),
        ({"train.features": torch.full((400, 16), torch.nan)}, "are NaN or infinite"),
        ({"weight": torch.ones(CLASSES, 16)}, "templates of the classes 0, 1 and 2 lie on one line"),
        ({"weight": torch.eye(1, 16), "bias": torch.zeros(1)}, "plane needs the templates of 3 classes.*layer has 1"),
        ({"test.labels": torch.ones(150).long()}, "needs examples of at least 2 classes, but the labels contain 1"),
    ],
)
def test_a_projection_that_cannot_be_drawn_shows_its_reason(tmp_path, changes, reason):
    folder = watched_run(tmp_path / "odd")
    rewritten(folder, **changes)
    _, page = page_of(tmp_path, folder)
    assert any(re.search(f"Left out: .*{reason}", text) for text in missing(page))
    assert page.count("<svg") >= 4  # the others are there


def test_predictions_of_a_diverged_run_or_of_one_class_do_not_stop_the_page(tmp_path):
    diverged, single = (watched_run(tmp_path / name, 0.1, seed) for seed, name in enumerate(("diverged", "single")))
    predictions = load_file(diverged / "predictions.safetensors")
    save_file(predictions | {"logits": predictions["logits"] * torch.nan}, diverged / "predictions.safetensors")
    save_file(predictions | {"labels": torch.zeros(240).long()}, single / "predictions.safetensors")
    _, page = page_of(tmp_path, diverged)
    assert sum("NaN" in text or "not finite" in text for text in missing(page)) == 3
    _, page = page_of(tmp_path, single)
    assert missing(page) == []


def test_other_classes_can_be_projected(tmp_path, pair):
    (hard, _), _ = pair
    _, page = page_of(tmp_path, hard, classes=[1, 3, 4])
    assert missing(page) == []
    _, page = page_of(tmp_path, hard, classes=[1, 3, 9])
    assert "classes must be three different ones from 0 to 4, but are [1, 3, 9]" in missing(page)[0]


def test_what_is_no_finished_run_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="is not a run folder"):
        page_of(tmp_path, tmp_path / "absent")
    begun = make_run(tmp_path / "begun")
    (begun / "result.json").unlink()
    with pytest.raises(RunFolderError, match="is not finished: composer-ls train .* continues it"):
        page_of(tmp_path, begun)
    damaged = make_run(tmp_path / "damaged")
    (damaged / "predictions.safetensors").write_text("half")
    with pytest.raises(RunFolderError, match="cannot be read .* --overwrite"):
        page_of(tmp_path, damaged)
    assert not (tmp_path / "page.html").exists()


def test_runs_on_different_classes_are_refused(tmp_path):
    folders = make_run(tmp_path / "a"), make_run(tmp_path / "b", 0.1)
    result = json.loads((folders[1] / "result.json").read_text())
    (folders[1] / "result.json").write_text(json.dumps(result | {"classes": ["cat", "dog"]}))
    with pytest.raises(InputError, match="different classes, which cannot be shown side by side"):
        page_of(tmp_path, *folders)


def test_names_of_classes_are_escaped(tmp_path):
    folder = watched_run(tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    names = ["<b>cat</b>", "$dog$", "owl", "newt", "hen"]
    (folder / "result.json").write_text(json.dumps(result | {"classes": names}))
    diagnose([folder], tmp_path / "page.html")
    raw = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<b>cat" not in raw
    assert "&lt;b&gt;cat&lt;/b&gt;" in raw


def test_the_command_writes_the_page_and_says_what_is_on_it(tmp_path, pair, capsys):
    (hard, smoothed), _ = pair
    main_of = ["diagnose", str(hard), str(smoothed), "--out", str(tmp_path / "page.html"), "--classes", "2,3,4"]
    with pytest.raises(SystemExit) as done:
        main(main_of)
    assert done.value.code == 0
    assert "page.html: smoothing 0, smoothing 0.1" in capsys.readouterr().out
    for wrong, message in (
        (["--classes", "a,b"], "--classes is 'a,b', but must be two or three numbers"),
        ([], "not a run"),
    ):
        with pytest.raises(SystemExit) as done:
            main(["diagnose", str(tmp_path / "absent"), *wrong])
        assert done.value.code == 2
        assert message in capsys.readouterr().err


@needs_chromium
@pytest.mark.slow
def test_chromium_shows_every_figure_and_has_nothing_to_complain_of(tmp_path, pair):
    page = tmp_path / "page.html"
    page.write_bytes(pair[1].read_bytes())
    assert complaints(page) == []
    for width in (1280, 600):
        seen = measured(page, width=width)
        assert seen["requests"] == []
        assert seen["duplicates"] == 0
        assert seen["width"] <= seen["viewport"]
        assert len(seen["pictures"]) == 9
        assert all(box[0] > 200 and box[1] > 150 for box in seen["pictures"])
    for dark in (False, True):
        screenshot(page, tmp_path / f"{dark}.png", dark=dark)
        assert (tmp_path / f"{dark}.png").stat().st_size > 10_000


def test_the_page_begins_with_what_was_trained_and_what_follows(pair):
    page = " ".join(html.unescape(re.sub("<[^>]+>", " ", pair[1].read_text(encoding="utf-8"))).split())
    assert "What smoothing did: mlp on digits" in page
    assert page.index("mlp on digits: 1,437 training") < page.index("In short") < page.index("The numbers")
    assert re.search(
        r"The network with smoothing 0.1 is .*: its mean confidence is \d+\.\d %, and it is right for \d", page
    )
    assert re.search(r"Against smoothing 0, its accuracy is [+-]\d+\.\d\d points, and the clusters of its training "
                     r"images are tighter \(NC1 \d\.\d{4} instead of \d\.\d{4}\)", page)  # fmt: skip
    assert "accuracy (%)" in page
    assert "Below log 2, it does not even reveal the class for certain" in page


def test_runs_that_were_tested_on_other_examples_are_not_shown_side_by_side(tmp_path):
    first, second = watched_run(tmp_path / "a"), watched_run(tmp_path / "b", 0.1)
    predictions = load_file(second / "predictions.safetensors")
    RunFolder(second, load_recipe(second / "recipe.yaml")).write_predictions(
        predictions | {"labels": predictions["labels"].roll(1)}
    )
    with pytest.raises(InputError, match="were tested on different examples, which cannot be shown side by side"):
        diagnose([first, second], tmp_path / "page.html", None)
