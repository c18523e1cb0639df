"""Real-world image files."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from composer_ls.errors import DataNotFoundError, RecipeError
from composer_ls.lab.images.image_files import read_image
from composer_ls.lab.images.loaders import training_loader, workers_errors_in_words
from composer_ls.lab.tasks.classification.data import load_splits
from composer_ls.lab.tasks.classification.networks import build_model
from composer_ls.lab.tasks.classification.schema import ClassificationData

GREY = np.arange(0, 240, 5, dtype=np.uint8).reshape(6, 8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPOSER_LS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "images"
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(3):
                Image.fromarray(GREY + index).save(folder / f"{index}.png")
    return root


def splits(root, **settings):
    return load_splits(ClassificationData(name="imagefolder", root=str(root), image_size=8, batch_size=2, **settings))


@pytest.mark.parametrize(("suffix", "order"), [("png", "<"), ("tif", "<"), ("tif", ">")])
def test_16_bits_are_the_same_image_as_8_bits(tmp_path, suffix, order):
    file = tmp_path / f"deep.{suffix}"
    Image.fromarray((GREY.astype(np.uint16) * 257).astype(f"{order}u2")).save(file)
    seen = np.asarray(read_image(file))
    assert (seen == GREY[..., None]).all()


def tiff(file, pixels, bits, white_is_zero=False):
    """Write grey pixels of up to 16 bits as an uncompressed TIFF, packed as the format prescribes."""
    height, width = pixels.shape
    if bits == 16:
        data = pixels.astype("<u2").tobytes()
    else:
        rows = ["".join(format(value, f"0{bits}b") for value in row) for row in pixels.tolist()]
        rows = [row + "0" * (-len(row) % 8) for row in rows]
        data = b"".join(bytes(int(row[i : i + 8], 2) for i in range(0, len(row), 8)) for row in rows)
    entries = [
        (256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, 0 if white_is_zero else 1),
        (273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(data)),
    ]  # fmt: skip
    table = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, kind, 1, one) for tag, kind, one in entries
    )
    file.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + table + bytes(4))


def test_12_bits_are_the_same_image_as_8_bits(tmp_path):
    pixels = np.array([[0, 4095, 2056, 16], [4095, 0, 4095, 273]], np.uint16)
    tiff(tmp_path / "deep.tif", pixels, 12)
    seen = np.asarray(read_image(tmp_path / "deep.tif"))
    assert seen[..., 0].tolist() == [[0, 255, 128, 1], [255, 0, 255, 17]]


@pytest.mark.parametrize("white_is_zero", [False, True])
def test_a_16_bit_tiff_says_whether_0_is_black_or_white(tmp_path, white_is_zero):
    tiff(tmp_path / "deep.tif", GREY.astype(np.uint16) * 257, 16, white_is_zero)
    seen = np.asarray(read_image(tmp_path / "deep.tif"))
    assert (seen == (255 - GREY if white_is_zero else GREY)[..., None]).all()


def test_the_transparent_grey_of_a_16_bit_png_is_white(tmp_path):
    pixels = np.array([[0, 1000, 257 * 7]], np.uint16)
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    whole = (tmp_path / "clear.png").read_bytes()
    clear = b"tRNS" + struct.pack(">H", 1000)
    chunk = struct.pack(">I", 2) + clear + struct.pack(">I", zlib.crc32(clear))
    at = whole.index(b"IDAT") - 4
    (tmp_path / "clear.png").write_bytes(whole[:at] + chunk + whole[at:])
    assert np.asarray(read_image(tmp_path / "clear.png"))[0, :, 0].tolist() == [0, 255, 7]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_range_are_refused_by_name(tmp_path, dtype):
    Image.fromarray(GREY.astype(dtype)).save(tmp_path / "odd.tif")
    with pytest.raises(DataNotFoundError, match=r"odd\.tif are .*\(mode [FI]\).*save it with 8 or 16 bits"):
        read_image(tmp_path / "odd.tif")


def test_an_image_is_upright_as_exif_says(tmp_path):
    upright = Image.fromarray(GREY).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to see it upright
    upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    assert (np.asarray(read_image(tmp_path / "turned.png")) == np.asarray(upright)).all()


def test_transparent_pixels_are_white_and_half_transparent_ones_in_between(tmp_path):
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = [255, 0, 51]
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    assert np.asarray(read_image(tmp_path / "clear.png"))[0, :, 0].tolist() == [0, 255, 204]


def test_hidden_files_and_folders_are_passed_over(tree):
    before = splits(tree)
    for split in ("train", "test"):
        for hidden in (
            tree / split / ".ipynb_checkpoints",
            tree / split / "__MACOSX",
            tree / split / "cat" / ".thumbs",
        ):
            hidden.mkdir()
            Image.fromarray(GREY).save(hidden / "0.png")
        (tree / split / "dog" / "._0.png").write_bytes(b"of a Mac")
    after = splits(tree)
    assert after.classes == ("cat", "dog")
    assert torch.equal(after.train.images, before.train.images)
    assert splits(tree, in_memory=False).classes == ("cat", "dog")


def test_a_hidden_folder_above_the_data_hides_nothing(tree, tmp_path):
    (tmp_path / ".data").mkdir()
    tree.rename(tmp_path / ".data" / "images")
    assert len(splits(tmp_path / ".data" / "images").train) == 6


def test_one_class_is_refused(tree):
    for split in ("train", "test"):
        for file in (tree / split / "dog").iterdir():
            file.unlink()
        (tree / split / "dog").rmdir()
    with pytest.raises(DataNotFoundError, match="holds one class folder, cat, but classification needs at least two"):
        splits(tree)


def truncated(file):
    Image.fromarray(np.tile(GREY, (20, 20))).save(file)
    os.truncate(file, file.stat().st_size // 2)


def linked_to_nowhere(file):
    file.symlink_to(file.with_name("gone"))


def too_large(file):
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(file)


BROKEN = [truncated, linked_to_nowhere, too_large, lambda file: file.write_bytes(b"")]


@pytest.mark.parametrize(
    ("settings", "spoil"),
    [
        *[({}, spoil) for spoil in BROKEN],
        *[({"in_memory": False}, spoil) for spoil in BROKEN],
        ({"in_memory": False, "workers": 1}, truncated),
        ({"augmentation": "resized_crop"}, truncated),
    ],
)
def test_an_image_that_cannot_be_read_is_named_wherever_it_is_read(tree, monkeypatch, settings, spoil):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    for index in range(3):
        (tree / "train" / "dog" / f"{index}.png").unlink()
        spoil(tree / "train" / "dog" / f"{index}.jpg")

    def read_all():
        opened = splits(tree, **settings)
        data = ClassificationData(name="imagefolder", root=str(tree), batch_size=2, **settings)
        list(training_loader(opened, data, seed=0))

    with (
        pytest.raises(DataNotFoundError, match=r"\A[^\n]*train/dog/\d\.jpg (cannot|is)[^\n]*delete it\Z"),
        workers_errors_in_words(),
    ):
        read_all()


def test_resnet9_refuses_images_that_it_would_halve_to_nothing():
    with pytest.raises(RecipeError, match=r"at least 8 pixels each way.*have 7x7: use a larger data\.image_size"):
        build_model("resnet9", (3, 7, 7), 2)
    build_model("resnet9", (3, 8, 8), 2).eval()(torch.zeros(1, 3, 8, 8))


def test_two_folders_whose_names_differ_in_capitals_only_are_refused(tmp_path):
    for folder in ("train/cat", "train/Cat", "test/cat", "test/Cat"):
        (tmp_path / folder).mkdir(parents=True)
        if len(list((tmp_path / folder).parent.iterdir())) < 2 and folder.endswith("/Cat"):
            pytest.skip("the file system does not tell them apart")
        Image.new("RGB", (4, 4)).save(tmp_path / folder / "one.png")
    with pytest.raises(
        DataNotFoundError, match="the class folders Cat and cat, whose names differ in nothing but capit"
    ):
        load_splits(ClassificationData(name="imagefolder", root=str(tmp_path)))


def test_files_of_other_kinds_are_images_or_are_counted_in_a_caution(tree):
    assert splits(tree).cautions == ()
    for number, name in enumerate(("a.gif", "b.JFIF", "c.pbm")):
        Image.fromarray(GREY + number).save(tree / "train" / "cat" / name, {0: "GIF", 1: "JPEG", 2: "PPM"}[number])
    for name in ("d.HEIC", "e.heic", "f.mov", ".g.heic", "Thumbs.db", "notes.txt", "cat.json"):
        (tree / "train" / "dog" / name).touch()
    for in_memory in (True, False):
        found = splits(tree, in_memory=in_memory)
        assert len(found.train) == 9
        assert [caution.partition(" (")[2][:15] for caution in found.cautions] == ["2 .heic, 1 .mov"]


def test_a_class_of_images_that_are_not_read_is_refused_with_the_endings_that_are(tree):
    for file in (tree / "train" / "dog").iterdir():
        file.rename(file.with_suffix(".heic"))
    with pytest.raises(
        DataNotFoundError, match=r"holds no images .*dog.*fill it with files that end in \.jpg, .*\.gif"
    ):
        splits(tree)


def test_a_tiff_of_several_pages_is_refused_but_not_one_with_smaller_versions_of_itself(tmp_path):
    image, file = Image.fromarray(GREY), tmp_path / "pages.tif"
    image.save(file, save_all=True, append_images=[image, image])
    with pytest.raises(DataNotFoundError, match=r"pages\.tif has several pages, .*: save those"):
        read_image(file)
    with TiffImagePlugin.AppendingTiffWriter(str(file), new=True) as pages:
        image.save(pages)
        pages.newFrame()
        image.resize((4, 3)).save(pages, tiffinfo={254: 1})
    with Image.open(file) as opened:
        assert opened.n_frames == 2
    assert (np.asarray(read_image(file)) == GREY[..., None]).all()


def test_the_first_image_of_an_animation_is_read(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "moves.gif", save_all=True, append_images=[Image.fromarray(GREY + 9)])
    assert (np.asarray(read_image(tmp_path / "moves.gif")) == GREY[..., None]).all()
