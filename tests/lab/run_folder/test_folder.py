"""The run folder's bookkeeping: which recipe it holds, and checkpoints after a kill."""

import errno
import io
import json
import os
import random
import stat
import zipfile

import pytest
import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from composer_ls.errors import RunFolderError
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.run_folder.files import read_tensors, write_folder, write_tensors, write_text
from composer_ls.lab.run_folder.folder import RunFolder, read_recipe


def begun(path, change=lambda content: None):
    """The folder of a run in progress, with a recipe written by an older version."""
    recipe = load_recipe("digits-mlp")
    content = recipe.model_dump()
    change(content)
    path.mkdir(exist_ok=True)
    (path / "recipe.yaml").write_text(yaml.safe_dump(content))
    (path / "metrics.jsonl").write_text("")
    return RunFolder(path, recipe)


def test_a_recipe_from_before_a_key_existed_is_the_same_run(tmp_path):
    begun(tmp_path, lambda content: content["data"].pop("workers")).check()
    assert read_recipe(tmp_path) == load_recipe("digits-mlp")


def test_a_recipe_from_before_a_key_existed_differs_if_the_key_is_set_now(tmp_path):
    folder = begun(tmp_path, lambda content: content["data"].pop("workers"))
    folder.recipe = load_recipe("digits-mlp", ["data.workers=2"])
    with pytest.raises(RunFolderError, match=r"another recipe \(they differ in data.workers\)"):
        folder.check()


def test_smoothing_0_is_the_same_run_as_no_smoothing(tmp_path):
    folder = begun(tmp_path, lambda content: content.update(algorithms={"mixup": None}))
    folder.recipe = load_recipe("digits-mlp", ["algorithms.label_smoothing.smoothing=0"])
    folder.check()
    folder.recipe = load_recipe("digits-mlp", ["algorithms.label_smoothing.smoothing=0.1"])
    with pytest.raises(RunFolderError, match="another recipe"):
        folder.check()


def test_reading_a_recipe_tells_a_run_from_a_recipe_of_ones_own(tmp_path):
    assert read_recipe(tmp_path) is None
    (tmp_path / "recipe.yaml").write_text("name: own\nduration: 1ep\n")
    assert read_recipe(tmp_path) is None
    (tmp_path / "recipe.yaml").write_text("name: [")
    with pytest.raises(RunFolderError, match="recipe.yaml cannot be read: "):
        read_recipe(tmp_path)
    begun(tmp_path, lambda content: content["data"].update(newer=1))
    with pytest.raises(RunFolderError, match="not a recipe of this version of composer_ls: see its data.newer"):
        read_recipe(tmp_path)


def checkpoints(path, *, latest=None, whole=(), half=()):
    folder = path / "checkpoints"
    folder.mkdir(parents=True)
    for name in whole:
        torch.save(name, folder / name)
    for name in half:
        (folder / name).write_bytes(b"PK\x03\x04 and no end")
    if latest:
        (folder / "latest-rank0.pt").symlink_to(latest)
    RunFolder(path, load_recipe("digits-mlp")).mend_checkpoints()
    files = sorted(file.name for file in folder.iterdir())
    link = folder / "latest-rank0.pt"
    return files, link.resolve().name if link.exists() else None


NINE, TEN, LATEST = "ep9-ba900-rank0.pt", "ep10-ba1000-rank0.pt", "latest-rank0.pt"


def test_half_a_checkpoint_goes_and_the_one_before_it_stays(tmp_path):
    assert checkpoints(tmp_path, latest=NINE, whole=[NINE], half=[TEN]) == ([NINE, LATEST], NINE)


def test_a_whole_checkpoint_that_nothing_points_to_becomes_the_latest(tmp_path):
    assert checkpoints(tmp_path, whole=[NINE, TEN]) == ([TEN, LATEST], TEN)
    assert checkpoints(tmp_path / "old", latest=NINE, whole=[NINE, TEN]) == ([TEN, LATEST], TEN)


def test_half_a_checkpoint_alone_means_to_begin_again(tmp_path):
    assert checkpoints(tmp_path, half=[TEN]) == ([], None)
    assert checkpoints(tmp_path / "linked", latest=TEN, half=[TEN]) == ([], None)


def test_what_is_no_checkpoint_of_a_run_stays(tmp_path):
    assert checkpoints(tmp_path, whole=["mine.pt"]) == (["mine.pt"], None)


def test_a_checkpoint_with_4_kb_of_zeros_in_its_middle_is_not_gone_on_from_and_that_is_told(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in (NINE, TEN):
        torch.save({"weights": torch.rand(10_000)}, folder / name)
    with open(folder / TEN, "r+b") as file:
        file.seek(20_000)
        file.write(bytes(4096))
    (said,) = RunFolder(tmp_path, load_recipe("digits-mlp")).mend_checkpoints()
    assert said.endswith(f"{TEN} was damaged or incomplete, and is deleted: the run continues from {NINE}")
    assert sorted(file.name for file in folder.iterdir()) == [NINE, LATEST]


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_any_damage_of_a_checkpoint_is_noticed_or_does_no_harm(tmp_path, damage):
    choose = random.Random(damage)
    saved = {"state": {"weights": torch.rand(300), "step": 7, "names": ["a", "b"]}}
    file = io.BytesIO()
    torch.save(saved, file)
    content, noticed = file.getvalue(), 0
    for _ in range(300):
        place = choose.randrange(len(content))
        flipped = bytes([content[place] ^ (1 << choose.randrange(8))])
        broken = content[:place] + (flipped + content[place + 1 :] if damage == "flipped" else b"")
        folder = tmp_path / "checkpoints"
        folder.mkdir(exist_ok=True)
        (folder / TEN).write_bytes(broken)
        if RunFolder(tmp_path, load_recipe("digits-mlp")).mend_checkpoints():
            noticed += 1
        else:
            found = torch.load(folder / TEN, weights_only=True)
            assert torch.equal(found["state"].pop("weights"), saved["state"]["weights"]), place
            assert found == {"state": {"step": 7, "names": ["a", "b"]}}, place
    assert noticed > 100


def test_a_zip_file_without_the_pickle_in_it_is_no_checkpoint(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    with zipfile.ZipFile(folder / TEN, "w") as file:
        file.writestr("archive/version", "3")
    (said,) = RunFolder(tmp_path, load_recipe("digits-mlp")).mend_checkpoints()
    assert said.endswith("the run starts from the beginning")
    assert not list(folder.iterdir())


def test_looking_at_a_run_folder_makes_none_and_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = RunFolder("~/runs/mine", load_recipe("digits-mlp"))
    folder.check()
    assert folder.path == tmp_path / "runs" / "mine"
    assert not list(tmp_path.iterdir())


def test_files_have_the_permissions_that_the_umask_leaves_and_json_has_no_nan(tmp_path):
    folder = RunFolder(tmp_path, load_recipe("digits-mlp"))
    before = os.umask(0o027)
    try:
        folder.write_predictions({"logits": torch.zeros(2, 3)})
        folder.write_result({"metrics": {"nll": float("nan"), "ece": [float("inf"), 0.5]}})
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o640}
    assert json.loads(folder.result_file.read_text()) == {"metrics": {"nll": None, "ece": [None, 0.5]}}


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    def write(folder):
        (folder / "new").write_text("x")
        (folder / "new").chmod(0o600)

    def fail(folder):
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "model", fail)
    assert [file.name for file in tmp_path.rglob("*")] == ["model", "old"]
    write_folder(tmp_path / "model", write)
    assert [file.name for file in tmp_path.rglob("*")] == ["model", "new"]
    (tmp_path / "other").touch()
    assert (tmp_path / "model" / "new").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_damaged_byte_of_tensors_is_never_read(tmp_path):
    file = tmp_path / "some.safetensors"
    tensors = {
        "logits": torch.tensor([[0.5, -1.25]], dtype=torch.bfloat16).expand(2, 2),
        "labels": torch.tensor([1, 0]),
        "a": torch.tensor(3.0),
        "none": torch.zeros(0, 3),
    }
    write_tensors(file, tensors, {"classes": '["cat", "dog"]'})
    whole = file.read_bytes()
    assert all(torch.equal(tensors[name], read) for name, read in read_tensors(file).items())
    refused = 0
    for place in range(len(whole)):
        for bit in (1, 16, 128):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            try:
                found = read_tensors(file)
            except SafetensorError:
                refused += 1
            else:  # only the name of the checksum is damaged
                with safe_open(file, framework="pt") as opened:
                    assert opened.metadata()["classes"] == '["cat", "dog"]'
                assert found.keys() == tensors.keys()
                assert all(torch.equal(tensors[name], read) for name, read in found.items())
    assert refused > 2 * len(whole)


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path):
    for mode in (0o600, 0o664):
        (tmp_path / "a").write_text("old")
        (tmp_path / "a").chmod(mode)
        write_text(tmp_path / "a", "new")
        assert ((tmp_path / "a").read_text(), (tmp_path / "a").stat().st_mode & 0o777) == ("new", mode)


def test_a_mount_point_is_written_since_it_cannot_be_replaced(tmp_path, monkeypatch):
    def busy(source, target):
        raise OSError(errno.EBUSY, "Device or resource busy", target)

    (tmp_path / "a").write_text("old and longer")
    monkeypatch.setattr(os, "replace", busy)
    write_text(tmp_path / "a", "new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "new")]


def test_tensors_without_a_checksum_are_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "old.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "others.safetensors", {"checksum": "of another program"})
    for name in ("old", "others"):
        assert torch.equal(read_tensors(tmp_path / f"{name}.safetensors")["a"], torch.ones(2))
