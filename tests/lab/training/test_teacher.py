"""Learning from a finished run: its weights, what is known about it, and what is refused."""

import json
import warnings

import pytest
import torch
from torch import nn

from composer_ls.errors import RecipeError, TeacherError
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.run_folder.folder import RunFolder
from composer_ls.lab.training.teacher import DistillationFromRun, check_teachers, load_teacher
from composer_ls.lab.training.train import train

QUICK = ["duration=2ep", "eval_interval=2ep", "checkpoints.interval=2ep"]
HARD, KEPT = "algorithms.label_smoothing.smoothing=0", "checkpoints.keep=true"


def run(path, *overrides):
    recipe = load_recipe("digits-mlp", [*QUICK, *overrides])
    return train(recipe, RunFolder(path, recipe), progress=False)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    run(folder / "hard", HARD, KEPT)
    run(folder / "smoothed", KEPT)
    run(folder / "forgotten", "duration=1ep")
    return folder


def test_a_run_folder_teaches_from_a_recipe(tmp_path, teachers):
    path = f"algorithms.distillation.teacher={teachers / 'hard'}"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the teacher")
        result = run(tmp_path / "student", path, HARD, "algorithms.distillation.weight=1")
    assert result["metrics"]["accuracy"] > 0.85
    assert f"teacher {teachers / 'hard'} at temperature 1 counts 1, the loss 0" in result["plan"]
    assert load_recipe(tmp_path / "student" / "recipe.yaml").algorithms["distillation"]["weight"] == 1
    assert run(tmp_path / "student", path, HARD, "algorithms.distillation.weight=1") == result


def test_a_teacher_of_no_weight_leaves_a_run_what_it_was(tmp_path, teachers):
    overrides = [HARD, f"algorithms.distillation={{teacher: {teachers / 'hard'}, weight: 0}}"]
    alone = json.loads((teachers / "hard" / "result.json").read_text())
    assert run(tmp_path / "student", *overrides)["metrics"] == pytest.approx(alone["metrics"], rel=1e-6)


def test_a_run_and_its_checkpoint_are_the_network_that_was_trained(teachers):
    from safetensors.torch import load_file

    from composer_ls.lab.tasks.classification.data import load_splits
    from composer_ls.lab.tasks.classification.networks import build_model

    test = load_splits(load_recipe("digits-mlp").data).test
    images, _ = test.__getitems__(list(range(len(test))))
    expected = load_file(teachers / "hard" / "predictions.safetensors")["logits"]
    checkpoint = teachers / "hard" / "checkpoints" / "latest-rank0.pt"
    for source, architecture in (
        (teachers / "hard", None),
        (checkpoint, None),
        (str(checkpoint), build_model("mlp", (1, 8, 8), 10)),
    ):
        teacher = load_teacher(source, architecture).module
        with torch.no_grad():
            torch.testing.assert_close(teacher(images), expected)


def test_a_smoothed_teacher_is_warned_of_with_the_papers_figures(teachers):
    message = r"trained with smoothing 0.1, which removes.*0.67 to 0.59 %.*0.74 to 0.91 %.*smoothing=0"
    with pytest.warns(UserWarning, match=message):
        DistillationFromRun(teachers / "smoothed")


def test_a_run_without_weights_or_a_result_says_how_to_get_them(tmp_path, teachers):
    with pytest.raises(TeacherError, match=r"did not keep its checkpoint.*checkpoints.keep=true --out .* --overwrite"):
        DistillationFromRun(teachers / "forgotten")
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(TeacherError, match="holds no finished run .*finish it with composer-ls train"):
        DistillationFromRun(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(TeacherError, match="does not describe the teacher"):
        DistillationFromRun(tmp_path)


def test_a_file_that_is_no_checkpoint_or_does_not_fit_is_refused(tmp_path, teachers):
    (tmp_path / "notes.pt").write_text("not weights")
    with pytest.raises(TeacherError, match="is not in a run folder.*architecture=MODULE"):
        load_teacher(tmp_path / "notes.pt")
    with pytest.raises(TeacherError, match=r"notes.pt is not a checkpoint of Composer's Trainer"):
        load_teacher(tmp_path / "notes.pt", architecture=nn.Linear(64, 5))
    with pytest.raises(TeacherError, match="do not fit the network Linear .*blurpool"):
        load_teacher(teachers / "hard" / "checkpoints" / "latest-rank0.pt", architecture=nn.Linear(64, 5))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "classes",
            ["cat", "dog"],
            r"are cat, dog \(2\), but the student's are 0, 1, 2, 3, 4, ... \(10\)",
        ),
        ("image_shape", [3, 32, 32], r"takes images of shape \(3, 32, 32\), but the student's are \(1, 8, 8\)"),
    ],
)
def test_a_teacher_of_other_data_is_refused_before_training(tmp_path, monkeypatch, teachers, key, value, message):
    def checked(self, classes, image_shape):
        object.__setattr__(self.run, key, tuple(value))
        return original(self, classes, image_shape)

    original = DistillationFromRun.check_data
    monkeypatch.setattr(DistillationFromRun, "check_data", checked)
    with pytest.raises(TeacherError, match=message):
        run(tmp_path / "student", f"algorithms.distillation.teacher={teachers / 'hard'}")


def test_a_teacher_sees_the_same_pixels_in_whatever_normalisation_the_student_has(teachers):
    distillation = DistillationFromRun(teachers / "hard")
    own = distillation.run.preprocessing
    other = {"size": [8, 8], "mean": [0.1], "std": [0.7]}
    pixels = torch.rand(5, 1, 8, 8)
    check_teachers(
        [distillation], {"classes": distillation.run.classes, "image_shape": (1, 8, 8), "preprocessing": other}
    )
    torch.testing.assert_close(
        distillation.teacher((pixels - 0.1) / 0.7), distillation.run.module((pixels - own.mean[0]) / own.std[0])
    )


@pytest.mark.parametrize(
    ("own", "given", "caution"),
    [(True, True, None), (True, False, "student"), (False, True, "teacher"), (False, False, None)],
)
def test_a_teacher_whose_normalisation_cannot_be_compared_is_a_caution(teachers, own, given, caution):
    distillation = DistillationFromRun(teachers / "hard")
    known = distillation.run.preprocessing.as_dict()
    if not own:
        object.__setattr__(distillation.run, "preprocessing", None)
    facts = {"classes": distillation.run.classes, "image_shape": (1, 8, 8), "preprocessing": known if given else None}
    cautions = check_teachers([distillation], facts)
    assert len(cautions) == (caution is not None)
    assert all(f"the function of the {caution}'s data return" in one for one in cautions)


def test_a_caution_about_a_teacher_is_among_the_runs_warnings(tmp_path, monkeypatch, teachers):
    original = DistillationFromRun.check_data

    def checked(self, classes, image_shape):
        object.__setattr__(self.run, "preprocessing", None)
        original(self, classes, image_shape)

    monkeypatch.setattr(DistillationFromRun, "check_data", checked)
    result = run(tmp_path / "student", f"algorithms.distillation.teacher={teachers / 'hard'}")
    assert any("It is not known whether the teacher in" in one for one in result["warnings"])


def test_a_recipe_names_what_distillation_takes(tmp_path):
    with pytest.raises(
        RecipeError, match="unknown key algorithms.distillation.heat: allowed are teacher, temperature, "
    ):
        run(tmp_path, "algorithms.distillation={teacher: x, heat: 3}")
    with pytest.raises(RecipeError, match="algorithms.distillation: there is no teacher at"):
        run(tmp_path, "algorithms.distillation.teacher=absent")
