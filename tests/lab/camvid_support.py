"""A few noisy street scenes in the layout of CamVid."""

import numpy as np
from PIL import Image


def write_camvid(root, count=8, height=24, width=32):
    """A scene with sky above, road below, a building in between, each with its own brightness, and a column of void."""
    noise = np.random.default_rng(0)
    for split in ("train", "test"):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for index in range(count):
            mask = np.full((height, width), 1, np.uint8)
            mask[: height // 3], mask[-height // 3 :], mask[:, 0] = 0, 3, 11
            level = np.choose(mask.clip(max=3), [220, 140, 0, 60])[..., None]
            pixels = noise.normal(level, 20, (height, width, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / split / "images" / f"{index}.jpg")
            Image.fromarray(mask).save(root / split / "masks" / f"{index}.png")
    return root
