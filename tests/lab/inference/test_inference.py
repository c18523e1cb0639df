"""Loading a run, predicting image files, and exporting, without the training data."""

import csv
import io
import itertools
import json
import os
import shutil
import sys
import tempfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.datasets import load_digits

import composer_ls
from composer_ls.diagnostics.calibration import fit_temperature
from composer_ls.errors import DataNotFoundError, InputError, MissingPackageError, RunFolderError
from composer_ls.lab.commands.cli import main
from composer_ls.lab.inference import exporting, predictions
from composer_ls.lab.inference.exporting import export
from composer_ls.lab.inference.image_paths import image_paths
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.run_folder.folder import RunFolder
from composer_ls.lab.training.train import train

TREE = ["data.batch_size=16", "duration=2ep", "eval_interval=1ep", "optimizer.learning_rate=0.01"]


def trained(folder, *overrides, recipe="digits-mlp"):
    read = load_recipe(recipe, overrides)
    train(read, RunFolder(folder, read), progress=False)
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    return trained(folder, "duration=4ep", "data.validation=200")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images and a run on it, whose training images are deleted afterwards."""
    root = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 6)):
        for number, name in enumerate(("dark, red", "bright")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = noise.integers(0, 100, (20, 24, 3)) + 120 * number
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{index}.png")
    run = trained(
        root / "run", f"data={{name: imagefolder, root: '{root}', image_size: 16}}", "model.name=resnet20", *TREE
    )
    shutil.rmtree(root / "train")
    return root / "test", run


def test_a_loaded_network_gives_the_logits_that_the_run_kept(photos):
    tree, folder = photos
    run = composer_ls.load_run(folder)
    assert run.classes == ("bright", "dark, red")
    assert not run.network.training
    kept = load_file(folder / "predictions.safetensors")
    files = [tree / name / f"{index}.png" for name in run.classes for index in sorted(map(str, range(6)))]
    images = torch.stack([run.preprocessing(file) for file in files])
    torch.testing.assert_close(run.network(images), kept["logits"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(run.probabilities(images, 2.0), (kept["logits"] / 2).softmax(1), rtol=1e-4, atol=1e-4)


def test_a_grey_image_of_a_digit_is_what_the_run_was_trained_on(digits, tmp_path):
    run = composer_ls.load_run(digits)
    pixels = load_digits().images[0]
    Image.fromarray((pixels / 16 * 255).round().astype(np.uint8)).save(tmp_path / "digit.png")
    image = run.preprocessing(tmp_path / "digit.png")
    mean, std = run.preprocessing.mean[0], run.preprocessing.std[0]
    expected = (torch.tensor(pixels, dtype=torch.float32)[None] / 16 - mean) / std
    torch.testing.assert_close(image, expected, atol=0.01, rtol=0)


def test_the_temperature_is_that_of_the_validation_images_and_older_runs_get_it_too(digits, tmp_path):
    kept = load_file(digits / "predictions.safetensors")
    fitted = fit_temperature(kept["validation.logits"], kept["validation.labels"])
    run = composer_ls.load_run(digits)
    assert run.fitted_on == "validation"
    assert run.temperature == pytest.approx(fitted)
    older = shutil.copytree(digits, tmp_path / "older")
    result = json.loads((older / "result.json").read_text())
    del result["temperature"]
    (older / "result.json").write_text(json.dumps(result))
    assert composer_ls.load_run(older).temperature == pytest.approx(fitted)


def test_weights_are_those_that_were_evaluated_and_not_those_that_were_trained(tmp_path):
    folder = trained(tmp_path / "run", "algorithms.ema={half_life: 20ba}", "duration=2ep", "eval_interval=1ep")
    kept, run = load_file(folder / "predictions.safetensors"), composer_ls.load_run(folder)
    torch.testing.assert_close(run.network(_test_digits(run)), kept["logits"], rtol=1e-4, atol=1e-4)


def _test_digits(run):
    from composer_ls.lab.tasks.classification.data import load_splits

    test = load_splits(run.recipe.data).test
    return test.__getitems__(range(len(test)))[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: (run / "recipe.yaml").unlink(), "is no run folder"),
        (
            lambda run: (run / "result.json").unlink(),
            "is not finished .*composer-ls train .*recipe.yaml --out .* finishes",
        ),
        (
            lambda run: (run / "weights.safetensors").unlink(),
            "did not keep its weights .*train it again with composer-ls",
        ),
        (lambda run: (run / "weights.safetensors").write_bytes(b"x"), "weights.safetensors cannot be read"),
        (lambda run: _edit(run, "preprocessing", None), 'did not return "preprocessing": let it return'),
        (lambda run: _edit(run, "preprocessing", {"size": 3}), "is damaged"),
        (lambda run: _edit(run, "preprocessing"), "is of an older version of composer_ls, which did not keep"),
        (lambda run: _edit(run, "classes", ["a", "b"]), "do not fit the network mlp"),
    ],
)
def test_a_run_that_cannot_be_used_says_what_to_do(digits, tmp_path, change, message):
    copy = shutil.copytree(digits, tmp_path / "run")
    change(copy)
    with pytest.raises(RunFolderError, match=message):
        composer_ls.load_run(copy)


def _edit(run, key, *value):
    result = json.loads((run / "result.json").read_text())
    result.pop(key)
    (run / "result.json").write_text(json.dumps(result | ({key: value[0]} if value else {})))


def test_a_folder_that_is_not_there_and_a_run_without_weights_are_told(tmp_path):
    with pytest.raises(RunFolderError, match="nowhere is no run folder"):
        composer_ls.load_run(tmp_path / "nowhere")
    folder = trained(tmp_path / "run", "checkpoints.weights=false", "duration=1ba")
    assert not (folder / "weights.safetensors").exists()
    with pytest.raises(RunFolderError, match="recipe has checkpoints.weights=false"):
        composer_ls.load_run(folder)


def test_images_are_found_in_files_folders_patterns_and_lines(photos, monkeypatch):
    tree, _ = photos
    monkeypatch.chdir(tree)
    (tree / "notes.txt").write_text("no image")
    (tree / ".hidden").mkdir(exist_ok=True)
    shutil.copy(tree / "bright" / "0.png", tree / ".hidden" / "0.png")
    assert len(list(image_paths(["."]))) == 12
    assert list(image_paths(["bright/[01].png", "x.png"])) == ["bright/0.png", "bright/1.png", "x.png"]
    assert len(list(image_paths(["**/*.png"]))) == 12
    assert list(image_paths(["-"], ["a.png\n", "\n", "b c.png\r\n"])) == ["a.png", "b c.png"]
    (tree / "empty").mkdir(exist_ok=True)
    for name, message in (("empty", "the folder empty holds no images"), ("*.gif", "no file matches \\*.gif")):
        with pytest.raises(DataNotFoundError, match=message):
            list(image_paths([name]))


def test_images_of_kinds_that_are_not_read_are_counted(photos, capsys, tmp_path):
    tree, run = photos
    shutil.copy(tree / "bright" / "0.png", tmp_path / "0.png")
    for name in ("1.heic", "2.mp4", ".3.heic", "notes.txt"):
        (tmp_path / name).touch()
    _finished(["predict", str(run), str(tmp_path)])
    out, err = capsys.readouterr()
    assert len(rows(out)) == 1
    assert "2 images or videos are left out, because such files are not read (1 .heic, 1 .mp4)" in err


def test_images_in_linked_folders_are_found_once_and_circles_end(photos, tmp_path):
    tree, _ = photos
    (tmp_path / "plain").mkdir()
    shutil.copy(tree / "bright" / "0.png", tmp_path / "plain" / "x.png")
    (tmp_path / "linked").symlink_to(tree / "bright")
    (tmp_path / "plain" / "round").symlink_to(tmp_path)
    assert len(list(image_paths([str(tmp_path)]))) == 7


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_predict_writes_probabilities_and_names_broken_images_and_does_the_others(photos, capsys, tmp_path):
    tree, run = photos
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(SystemExit) as status:
        main(
            ["predict", str(run), str(tree / "bright"), str(broken), str(tree / "dark, red" / "0.png"), "--batch", "3"]
        )
    assert status.value.code == 1
    out, err = capsys.readouterr()
    assert f"{broken} cannot be read as an image" in err
    assert "1 image could not be read and is left out" in err
    table = rows(out)
    assert [row["image"] for row in table][-1] == str(tree / "dark, red" / "0.png")
    assert len(table) == 7
    for row in table:
        assert float(row["probability_1"]) + float(row["probability_2"]) == pytest.approx(1, abs=1e-5)
        assert float(row["probability_1"]) >= float(row["probability_2"])
    assert {row["class_1"] for row in table} | {row["class_2"] for row in table} == {"bright", "dark, red"}


def test_predict_writes_json_lines_of_paths_on_standard_input(photos, monkeypatch, tmp_path, capsys):
    tree, run = photos
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{tree}/bright/0.png\n{tree}/bright/1.png\n"))
    _finished(["predict", str(run), "-", "--top", "1", "--out", str(tmp_path / "new" / "x.jsonl")])
    lines = [json.loads(line) for line in (tmp_path / "new" / "x.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [f"{tree}/bright/0.png", f"{tree}/bright/1.png"]
    assert [len(line["predictions"]) for line in lines] == [1, 1]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_name_that_is_not_utf8_is_written_as_it_is(photos, tmp_path, kind):
    tree, run = photos
    name = os.fsencode(tmp_path) + b"/\xff.png"
    shutil.copy(tree / "bright" / "0.png", name)
    _finished(["predict", str(run), os.fsdecode(name), "--out", str(tmp_path / f"x.{kind}")])
    assert name in (tmp_path / f"x.{kind}").read_bytes()


def test_a_name_that_is_not_utf8_is_read_and_written_by_standard_streams(photos, tmp_path, monkeypatch):
    tree, run = photos
    name = os.fsencode(tmp_path) + b"/\xff.png"
    shutil.copy(tree / "bright" / "0.png", name)
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(name + b"\n"), encoding="utf-8"))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="utf-8"))
    _finished(["predict", str(run), "-"])
    assert name in out.getvalue()


@pytest.mark.parametrize("before", [None, "of before"])
def test_predictions_that_are_interrupted_leave_the_file_as_it_was(photos, tmp_path, monkeypatch, before):
    tree, run = photos
    out, link = tmp_path / "x.csv", tmp_path / "link.csv"
    link.symlink_to(out)
    if before:
        out.write_text(before)

    def interrupted(*args, **named):
        yield from itertools.islice(predict(*args, **named), 1)
        raise KeyboardInterrupt

    predict = predictions.predict
    monkeypatch.setattr(predictions, "predict", interrupted)
    for place in (out, link):
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            main(["predict", str(run), str(tree / "bright"), "--out", str(place)])
        assert [file.name for file in tmp_path.iterdir() if not file.is_symlink()] == (["x.csv"] if before else [])
        assert before is None or out.read_text() == before
    monkeypatch.setattr(predictions, "predict", predict)
    _finished(["predict", str(run), str(tree / "bright"), "--out", str(link)])
    assert link.is_symlink()
    assert out.read_text().count("\n") > 1


def test_predictions_go_to_a_file_without_a_name(photos, tmp_path):
    tree, run = photos
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        _finished(["predict", str(run), str(tree / "bright" / "0.png"), "--out", f"/proc/self/fd/{file.fileno()}"])
        assert file.read().count(b"\n") == 2
    assert [*tmp_path.iterdir()] == []


def test_predictions_go_to_a_file_in_a_folder_where_none_can_be_made(photos, tmp_path, monkeypatch):
    tree, run = photos
    out = tmp_path / "x.csv"
    out.write_text("old")
    inode, access = out.stat().st_ino, os.access  # which says this to users but root:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and access(path, mode))
    _finished(["predict", str(run), str(tree / "bright" / "0.png"), "--out", str(out)])
    assert out.stat().st_ino == inode
    assert out.read_text().count("\n") == 2


def test_predictions_go_to_a_pipe(photos, tmp_path):
    tree, run = photos
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    _finished(["predict", str(run), str(tree / "bright" / "0.png"), "--out", str(pipe)])
    assert os.read(reader, 10_000).count(b"\n") == 2
    os.close(reader)


def test_calibrated_predictions_are_scaled_by_the_temperature_that_is_told(digits, tmp_path, capsys):
    Image.fromarray(np.uint8(load_digits().images[3] * 15)).save(tmp_path / "digit.png")
    shown = {}
    for options in ((), ("--calibrated",)):
        _finished(["predict", str(digits), str(tmp_path / "digit.png"), *options, "--top", "20"])
        out, err = capsys.readouterr()
        shown[options] = {
            row[f"class_{place}"]: float(row[f"probability_{place}"]) for row in rows(out) for place in range(1, 11)
        }
    run = composer_ls.load_run(digits)
    assert f"temperature {run.temperature:.4g}, fitted on the validation images" in err
    plain = torch.tensor([shown[()][name] for name in run.classes]).log()
    scaled = torch.tensor([shown[("--calibrated",)][name] for name in run.classes])
    torch.testing.assert_close((plain / run.temperature).softmax(0), scaled, atol=1e-3, rtol=1e-2)


def test_a_run_without_a_temperature_says_what_the_reason_can_be(digits, tmp_path):
    folder = shutil.copytree(digits, tmp_path / "run")
    _edit(folder, "temperature", {"value": None, "fitted_on": "validation"})
    with pytest.raises(
        RunFolderError, match="no temperature fits .*right for all of them, .*or it masks a label's class"
    ):
        composer_ls.load_run(folder).calibrated_temperature()


def test_wrong_options_of_predict_are_told(digits, tmp_path, capsys):
    for arguments, message in (
        (["--format", "xml", "a.png"], "--format is 'xml', but must be csv or jsonl"),
        (["--out", str(tmp_path), str(digits / "none.png")], "cannot be written"),
    ):
        with pytest.raises(SystemExit) as status:
            main(["predict", str(digits), *arguments])
        assert status.value.code == 2
        assert message in capsys.readouterr().err


def _finished(arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code


def metadata_of(file):
    if file.suffix == ".onnx":
        onnx = pytest.importorskip("onnx")
        texts = {one.key: one.value for one in onnx.load(str(file)).metadata_props}
    elif file.suffix == ".pt2":
        texts = dict.fromkeys(("classes.json", "preprocessing.json", "temperature.json"), "")
        torch.export.load(file, extra_files=texts)
        texts = {name.removesuffix(".json"): text for name, text in texts.items()}
    else:
        with safe_open(file, framework="pt") as opened:
            texts = opened.metadata()
    return {name: json.loads(text) for name, text in texts.items()}


def logits_of(file, run, images):
    if file.suffix == ".onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(str(file))
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    if file.suffix == ".pt2":
        return torch.export.load(file).module()(images)
    return torch.func.functional_call(run.network, load_file(file), (images,))


@pytest.mark.parametrize("kind", [".onnx", ".pt2", ".safetensors"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_an_exported_network_gives_the_same_logits_and_knows_its_classes(kind, calibrated, digits, tmp_path, capsys):
    if kind == ".onnx":
        pytest.importorskip("onnxruntime")
    file = tmp_path / "new" / f"model{kind}"
    _finished(["export", str(digits), "--to", str(file), *(["--calibrated"] if calibrated else [])])
    assert "images (N, 1, 8, 8) to logits (N, 10)" in capsys.readouterr().out
    run = composer_ls.load_run(digits)
    images = torch.randn(7, 1, 8, 8)
    expected = run.network(images) / (run.temperature if calibrated else 1)
    torch.testing.assert_close(logits_of(file, run, images), expected, atol=1e-4, rtol=1e-4)
    metadata = metadata_of(file)
    assert metadata["classes"] == [str(digit) for digit in range(10)]
    assert metadata["preprocessing"] == run.preprocessing.as_dict()
    assert metadata["temperature"] == pytest.approx(1 if calibrated else run.temperature)
    assert [one.name for one in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("kind", [".onnx", ".pt2"])
def test_a_residual_network_is_exported_for_any_number_of_images_too(kind, photos, tmp_path):
    if kind == ".onnx":
        pytest.importorskip("onnxruntime")
    run = composer_ls.load_run(photos[1])
    assert export(run, tmp_path / f"model{kind}") <= 1e-4
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(
        logits_of(tmp_path / f"model{kind}", run, images), run.network(images), atol=1e-4, rtol=1e-4
    )


def test_exported_weights_begin_another_run_whose_last_layer_is_new(photos, tmp_path):
    export(composer_ls.load_run(photos[1]), tmp_path / "model.safetensors")
    for file in (tmp_path / "model.safetensors", photos[1] / "weights.safetensors"):
        recipe = load_recipe(
            "cifar10-resnet20", [f"model={{name: resnet20, weights: {file}}}", "data.name=imagefolder"]
        )
        from composer_ls.lab.tasks.classification.network import build_network, expected_preprocessing, load_weights

        assert expected_preprocessing(recipe.model).size == (16, 16)
        told = load_weights(build_network(recipe.model, (3, 16, 16), 3), recipe.model, ["x", "y", "z"])["left_out"]
        assert "they are for the classes bright, dark, red, and the data has x, y, z" in told[0]


def test_what_cannot_be_exported_is_told(digits, tmp_path, monkeypatch):
    run = composer_ls.load_run(digits)
    with pytest.raises(InputError, match="model.tflite, but must end in .onnx, .pt2 or .safetensors"):
        export(run, tmp_path / "model.tflite")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="cannot be written .*choose another with --to FILE"):
        export(run, tmp_path / "file" / "model.safetensors")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match="pip install 'composer_ls\\[export\\]'"):
        export(run, tmp_path / "model.onnx")
    monkeypatch.setattr(exporting, "TOLERANCE", -1)
    with pytest.raises(InputError, match="differ by up to .* is not written"):
        export(run, tmp_path / "model.safetensors")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("wrong", [2, 5])
def test_logits_that_are_no_numbers_in_either_check_are_refused(digits, tmp_path, monkeypatch, wrong):
    def read(run, file):
        return lambda images: run.network(images) * (torch.nan if len(images) == wrong else 1)

    monkeypatch.setattr(exporting, "_read_safetensors", read)
    with pytest.raises(InputError, match="differ by up to nan"):
        export(composer_ls.load_run(digits), tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_network_whose_evaluation_an_algorithm_changed_is_refused(digits, tmp_path):
    folder = shutil.copytree(digits, tmp_path / "run")
    recipe = folder / "recipe.yaml"
    text = recipe.read_text()
    assert "algorithms:\n" in text
    recipe.write_text(
        text.replace("algorithms:\n", "algorithms:\n  stochastic_depth: {target_layer_name: ResNetBottleneck}\n")
    )
    with pytest.raises(
        InputError, match="algorithms.stochastic_depth changes what a network computes from its weights"
    ):
        composer_ls.load_run(folder)
