"""Images and label maps from files: reading, cropping, and error messages."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from camvid_support import write_camvid
from PIL import Image

from composer_ls.errors import DataNotFoundError
from composer_ls.lab.images.loaders import evaluation_loader, training_loader
from composer_ls.lab.tasks.segmentation.data import CAMVID_CLASSES, load_label_maps
from composer_ls.lab.tasks.segmentation.schema import SegmentationData


@pytest.fixture
def root(tmp_path):
    return write_camvid(tmp_path)


def data_at(root, **settings):
    return SegmentationData(name="camvid", root=str(root), batch_size=4, **settings)


def test_a_batch_holds_images_and_int64_labels_with_void_at_minus_100(root):
    splits = load_label_maps(data_at(root))
    images, labels = next(iter(evaluation_loader(splits, data_at(root))))
    assert (splits.image_shape, splits.num_classes, len(splits.train), len(splits.test)) == ((3, 24, 32), 11, 8, 8)
    assert (images.shape, images.dtype) == ((4, 3, 24, 32), torch.float32)
    mask = torch.from_numpy(np.array(Image.open(root / "test/masks/0.png"))).long()
    assert torch.equal(labels[0], mask.masked_fill(mask == 11, -100))


def test_labels_are_cut_and_mirrored_with_their_pixels_and_what_comes_in_is_ignored(root):
    data = data_at(root, augmentation="crop_flip")
    images, labels = next(iter(training_loader(load_label_maps(data), data, seed=3)))
    bright = images.mean(1)
    assert (labels[:, :, 0] == -100).any(1).all()  # the column of void may be anywhere, but what is cut off is not left
    for label, low, high in ((0, 1.2, 4), (1, 0, 1.2), (3, -1.9, 0)):
        inside = bright[labels == label]
        assert ((inside > low) & (inside < high)).float().mean() > 0.9
    assert bright[labels == -100].min() < -1.9  # black


def test_crops_follow_from_seed_epoch_and_index_alone(root):
    data = data_at(root, augmentation="crop_flip")
    splits = load_label_maps(data)

    def epoch(number, seed=3):
        loader = training_loader(splits, data, seed)
        loader.sampler.set_epoch(number)
        return torch.cat([labels for _, labels in loader])

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))
    assert not torch.equal(epoch(1), epoch(1, seed=4))


def save(path, pixels):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def test_a_value_that_is_no_class_names_file_value_and_way_out(root):
    mask = np.zeros((24, 32), np.uint8)
    mask[0, :3] = 12, 12, 255
    save(root / "train/masks/3.png", mask)
    with pytest.raises(
        DataNotFoundError, match=r"masks/3.png contains 12, 255, but .* from 0 to 10, or 11 for void: map"
    ):
        load_label_maps(data_at(root))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: save(root / "test/masks/2.png", np.zeros((24, 30))), "masks/2.png is 30x24, but its image .*2.jpg is 32x24"),
        (lambda root: save(root / "test/masks/2.png", np.zeros((24, 32, 3))), "masks/2.png has mode RGB, but .*8 bits.*save"),
        (lambda root: (root / "train/masks/5.png").unlink(), r"images/5.jpg has no mask of the same name in .*masks: put"),
        (lambda root: (root / "train/images/5.jpg").unlink(), r"masks/5.png has no image of the same name in .*images: put"),
        (lambda root: [(root / f"train/masks/{i}.png").unlink() for i in (1, 2, 5)], r"1.jpg has .*\(and 2 more lack theirs\)"),
        (lambda root: (root / "test/images/1.jpg").write_bytes(b"no image"), "images/1.jpg cannot be read as an image .*restore"),
        (lambda root: (root / "test/masks/1.png").write_bytes((root / "test/masks/1.png").read_bytes()[:60]), "masks/1.png cannot be read"),
        (lambda root: [file.unlink() for file in (root / "test/images").iterdir()], "there are no images in .*test/images: put"),
        (lambda root: (root / "test").rename(root / "val"), "there is no folder .*test/images: camvid expects .*data.root=DIR"),
    ],
)  # fmt: skip
def test_bad_files_are_named_with_the_way_out(root, spoil, message):
    spoil(root)
    with pytest.raises(DataNotFoundError, match=message):
        load_label_maps(data_at(root))


def test_images_of_different_sizes_are_refused(root):
    for kind, shape in (("images", (24, 40, 3)), ("masks", (24, 40))):
        save(root / f"test/{kind}/4.{'jpg' if kind == 'images' else 'png'}", np.zeros(shape))
    with pytest.raises(
        DataNotFoundError, match=re.escape("4.jpg is 40x24, but the images before it are 32x24: resize")
    ):
        load_label_maps(data_at(root))


def test_images_that_are_too_small_are_refused(tmp_path):
    with pytest.raises(DataNotFoundError, match="is 32x12, but must have at least 16 pixels"):
        load_label_maps(data_at(write_camvid(tmp_path, height=12)))


@pytest.mark.skipif("COMPOSER_LS_DATA" not in os.environ, reason="COMPOSER_LS_DATA is unset: no real images here")
def test_camvid_itself_has_its_classes_where_they_belong():
    splits = load_label_maps(data_at(Path(os.environ["COMPOSER_LS_DATA"]) / "camvid-240x180"))
    assert (len(splits.train), len(splits.test), splits.image_shape) == (367, 233, (3, 180, 240))
    _, labels = splits.train.__getitems__(range(0, 367, 10))
    share = [(labels == label).double().mean().item() for label in range(11)]
    height = [(labels == label).nonzero()[:, 1].double().mean().item() / 180 for label in range(11)]
    by_name = dict(zip(CAMVID_CLASSES, zip(share, height, strict=True), strict=True))
    assert max(by_name, key=lambda name: by_name[name][0]) == "road"
    assert max(by_name, key=lambda name: by_name[name][1]) == "road"
    assert min(by_name, key=lambda name: by_name[name][1]) == "sky"


def test_two_images_of_one_name_are_refused(root):
    image = sorted((root / "train" / "images").iterdir())[0]
    Image.new("RGB", (32, 24)).save(image.with_suffix(".jpg" if image.suffix == ".png" else ".png"))
    with pytest.raises(DataNotFoundError, match="have one name, so it is not known which of them the mask"):
        load_label_maps(data_at(root))


COLOURS = np.random.default_rng(0).integers(256, size=(256, 3), dtype=np.uint8)


def write_palette(root, palette):
    """Give every mask the palette ``(256, 3)`` that ``palette(path)`` returns."""
    for path in sorted(root.glob("*/masks/*.png")):
        mask = Image.open(path)
        mask.putpalette(palette(path).tobytes())
        mask.save(path)


def test_masks_with_one_palette_are_read_by_their_indices(root):
    grey = load_label_maps(data_at(root))
    mask = np.array(Image.open(root / "test/masks/2.png"))
    mask[0, 0] = 7  # a value that the other masks lack
    save(root / "test/masks/2.png", mask)
    write_palette(root, lambda path: COLOURS)
    splits = load_label_maps(data_at(root))
    assert torch.equal(splits.train.images, grey.train.images)
    assert splits.test[2][1][0, 0] == 7


def test_masks_whose_palettes_differ_are_refused_over_both_parts(root):
    other = COLOURS.copy()
    other[3] = 1, 2, 3
    write_palette(root, lambda path: other if path == root / "test/masks/4.png" else COLOURS)
    with pytest.raises(
        DataNotFoundError, match=r"^3 is the colour \(1, 2, 3\) .*test/masks/4.png.* in .*train/masks/0.png"
    ):
        load_label_maps(data_at(root))


def test_masks_that_were_quantised_are_refused(root):
    for path in root.glob("*/masks/*.png"):
        Image.open(path).quantize(16).save(path)
    with pytest.raises(
        DataNotFoundError, match="as the grey value .*not known which of the two is the class: save all"
    ):
        load_label_maps(data_at(root))


def test_a_palette_of_the_values_themselves_is_no_other_than_grey(root):
    grey = load_label_maps(data_at(root))
    write_palette(root, lambda path: np.arange(256, dtype=np.uint8).repeat(3))
    assert torch.equal(load_label_maps(data_at(root)).train.images, grey.train.images)


def test_a_jpeg_called_png_is_refused_as_a_mask(root):
    path = root / "train/masks/1.png"
    Image.open(path).save(path, format="JPEG")
    with pytest.raises(DataNotFoundError, match=r"masks/1.png is a JPEG, whose compression changes classes: save"):
        load_label_maps(data_at(root))


@pytest.mark.parametrize("split", ["train", "test"])
def test_masks_of_nothing_but_void_are_refused(root, split):
    for path in root.glob(f"{split}/masks/*.png"):
        save(path, np.full((24, 32), 11))
    with pytest.raises(
        DataNotFoundError, match=f"all pixels of the masks in .*{split}/masks are 11, which is void: give"
    ):
        load_label_maps(data_at(root))


def test_a_mask_that_exif_turns_is_refused(root):
    path = root / "train/masks/1.png"
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(path).save(path, exif=exif)
    with pytest.raises(DataNotFoundError, match=r"EXIF says to turn .*masks/1.png, .*: save it .* without EXIF"):
        load_label_maps(data_at(root))
