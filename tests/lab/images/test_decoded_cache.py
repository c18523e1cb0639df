"""The cache of decoded images: used if the files are unchanged, rebuilt if not, and optional."""

import os
import resource
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from composer_ls.errors import DataNotFoundError
from composer_ls.lab.images import decoded_cache
from composer_ls.lab.images.decoded_cache import cache_folder, decoded


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("COMPOSER_LS_CACHE", str(folder))
    return folder


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for index in range(5):
        Image.effect_noise((12 + index, 9), 80).convert("RGB").save(root / f"{index}.png")
    return root, [str(root / f"{index}.png") for index in range(5)]


def truth(files, size=8):
    decode = v2.Compose([v2.Resize((size, size)), v2.PILToTensor()])
    return torch.stack([decode(Image.open(file).convert("RGB")).permute(1, 2, 0) for file in files])


@pytest.fixture
def no_decoding(monkeypatch):
    def refuse(*_):
        raise AssertionError("decoded again")

    return lambda: monkeypatch.setattr(decoded_cache, "_decode_all", refuse)


def test_images_are_torchvisions_and_are_decoded_once(tree, no_decoding):
    first = decoded(*tree, 8)
    no_decoding()
    assert torch.equal(first, truth(tree[1]))
    assert torch.equal(decoded(*tree, 8), first)


def test_a_size_has_its_own_file_and_a_tree_keeps_one(tree, cache):
    for size in (8, 4, 8):
        assert torch.equal(decoded(*tree, size), truth(tree[1], size))
    Image.new("RGB", (9, 9), (250, 0, 0)).save(tree[1][0])
    decoded(*tree, 8)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("change", ["content", "time", "fewer", "other"])
def test_changed_files_are_decoded_again(tree, change, tmp_path):
    root, files = tree
    decoded(root, files, 8)
    if change == "content":
        Image.new("RGB", (9, 9), (250, 0, 0)).save(files[2])
    elif change == "time":
        status = os.stat(files[2])
        Image.new("RGB", (14, 9), (250, 0, 0)).save(tmp_path / "same.png")
        content = (tmp_path / "same.png").read_bytes()
        (root / "2.png").write_bytes(content + b"\0" * (status.st_size - len(content)))
        os.utime(files[2], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    elif change == "fewer":
        files = files[:3]
    else:
        os.replace(files[2], root / "new.png")
        files[2] = str(root / "new.png")
    assert torch.equal(decoded(root, files, 8), truth(files))


def test_files_of_the_same_size_and_time_but_other_contents_are_decoded_again(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    file = root / "0.bmp"
    for grey in (10, 200):
        Image.new("RGB", (4, 4), (grey, grey, grey)).save(file)
        os.utime(file, (0, 0))
        assert (decoded(root, [str(file)], 4) == grey).all()


@pytest.mark.parametrize("damage", ["short", "empty", "something else", "no header", "flipped"])
def test_a_damaged_cache_is_made_again(tree, cache, damage, no_decoding):
    decoded(*tree, 8)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    damaged = {
        "flipped": flipped,
        "short": content[:-5],
        "empty": b"",
        "something else": b"{}" * 500,
        "no header": b"\xff" * 100,
    }
    file.write_bytes(damaged[damage])
    assert torch.equal(decoded(*tree, 8), truth(tree[1]))
    no_decoding()
    assert torch.equal(decoded(*tree, 8), truth(tree[1]))


def test_a_write_that_fails_leaves_nothing_and_is_told(tree, cache, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(decoded_cache, "save_file", full)
    with pytest.warns(UserWarning, match="no space left on device.*COMPOSER_LS_CACHE"):
        assert torch.equal(decoded(*tree, 8), truth(tree[1]))
    assert list(cache.iterdir()) == []


def test_a_disk_that_is_full_in_the_middle_of_a_write_leaves_nothing_and_is_told(tree, cache):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.warns(UserWarning, match="File too large.*COMPOSER_LS_CACHE"):
            assert torch.equal(decoded(*tree, 8), truth(tree[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(cache.iterdir()) == []


def test_a_folder_with_a_very_long_name_is_cached_too(tree, cache, no_decoding):
    root = tree[0].rename(tree[0].with_name("n" * 250))
    files = [str(root / Path(file).name) for file in tree[1]]
    decoded(root, files, 8)
    no_decoding()
    assert torch.equal(decoded(root, files, 8), truth(files))


def test_a_cache_that_cannot_be_written_is_done_without_and_told(tree, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMPOSER_LS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="cannot be cached in .*file/cache.*COMPOSER_LS_CACHE"):
        assert torch.equal(decoded(*tree, 8), truth(tree[1]))


def test_several_processes_decode_into_the_same_order(tree, monkeypatch):
    monkeypatch.setattr(decoded_cache, "CHUNK", 2)
    monkeypatch.setattr(decoded_cache, "_cores", lambda: 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork beside threads
        assert torch.equal(decoded(*tree, 8), truth(tree[1]))


@pytest.mark.parametrize("cores", [1, 2])
def test_a_file_that_is_no_image_is_named(tree, cache, monkeypatch, cores):
    monkeypatch.setattr(decoded_cache, "CHUNK", 2)
    monkeypatch.setattr(decoded_cache, "_cores", lambda: cores)
    (tree[0] / "3.png").write_text("not an image")
    with pytest.raises(DataNotFoundError, match="images/3.png cannot be read as an image .*restore it or delete it"):
        decoded(*tree, 8)
    assert not cache.exists()


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/x/cache")
    assert str(cache_folder()).endswith("/cache")
    monkeypatch.setenv("COMPOSER_LS_CACHE", "/own")
    assert str(cache_folder()) == "/own"
    monkeypatch.delenv("COMPOSER_LS_CACHE")
    assert str(cache_folder()) == "/x/cache/composer_ls"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert str(cache_folder()).endswith("/.cache/composer_ls")
