"""What is done to images before a network sees them."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from composer_ls.lab.images.image_files import read_image
from composer_ls.lab.images.preprocessing import Preprocessing

BLACK, ONE = (0.0,) * 3, (1.0,) * 3


@pytest.mark.parametrize("size", [(64, 128), (128, 64), (7, 100), (64, 65)])
@pytest.mark.parametrize("shape", [(100, 100), (300, 40), (40, 300), (3, 2)])
def test_a_crop_that_is_not_square_has_no_border(size, shape):
    seen = Preprocessing(size, BLACK, ONE, crop=True)(Image.new("RGB", shape, "white"))
    assert seen.shape == (3, *size)
    assert (seen == 1).all()


def test_a_crop_that_is_not_square_keeps_the_shape_of_what_is_seen():
    image = Image.new("RGB", (700, 700), "black")
    image.paste("white", (300, 300, 400, 400))
    seen = Preprocessing((98, 196), BLACK, ONE, crop=True)(image)[0] > 0.5
    height, width = int(seen.any(1).sum()), int(seen.any(0).sum())
    assert height == pytest.approx(width, abs=1)
    assert width == pytest.approx(100 * 196 * 8 / 7 / 700, abs=1)


@pytest.mark.parametrize("shape", [(50, 70), (70, 50), (224, 224)])
def test_a_square_crop_is_that_of_imagenet(shape):
    image = Image.effect_noise(shape, 80).convert("RGB")
    usual = v2.Compose([v2.Resize(32), v2.CenterCrop(28), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    assert torch.equal(Preprocessing((28, 28), BLACK, ONE, crop=True)(image), usual(image).as_subclass(torch.Tensor))


def test_a_path_and_an_opened_image_are_read_as_in_training(tmp_path):
    ramp = np.arange(32 * 48).reshape(32, 48)
    exif, clear = Image.Exif(), Image.new("RGBA", (48, 32), (0, 0, 0, 51))
    exif[0x0112] = 6
    Image.fromarray((ramp % 256).astype(np.uint8)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray((ramp * 40).astype(np.uint16)).save(tmp_path / "deep.tif")
    clear.save(tmp_path / "clear.png")
    preprocessing = Preprocessing((8, 8), BLACK, ONE)
    for name in ("turned.png", "deep.tif", "clear.png"):
        trained = v2.Compose([*preprocessing.geometry(), *preprocessing.normalisation()])(read_image(tmp_path / name))
        for given in (tmp_path / name, str(tmp_path / name), Image.open(tmp_path / name)):
            assert torch.equal(preprocessing(given), trained), name
