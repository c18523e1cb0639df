"""Images held in memory: the contents of a batch, and what its crops and flips depend on."""

import time

import pytest
import torch
from torchvision.transforms.v2 import functional as transforms

from composer_ls.lab.images.loaders import Splits, training_loader
from composer_ls.lab.images.memory_images import CropFlip, MemoryImages, crop_flip
from composer_ls.lab.tasks.classification.schema import ClassificationData

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
DATA = ClassificationData(name="imagefolder", augmentation="crop_flip", batch_size=8)


def random_images(count=40, size=16):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
    return MemoryImages(pixels, torch.arange(count), mean=MEAN, std=STD)


def loader(seed=0, data=DATA):
    images = random_images()
    return training_loader(Splits(images, images, 40, (3, 16, 16), ()), data, seed)


def epoch(batches, number=0):
    batches.sampler.set_epoch(number)
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def by_label(images, labels):
    return images[labels.argsort()]


@pytest.mark.parametrize("padding", [1, 4])
def test_a_crop_is_torchvisions_for_every_place_and_mirroring(padding):
    places = 2 * padding + 1
    tops, lefts, flips = torch.cartesian_prod(torch.arange(places), torch.arange(places), torch.arange(2)).T
    images = random_images(len(tops)).images
    cropped = crop_flip(images, tops, lefts, flips.bool(), padding)
    for image, top, left, flip, ours in zip(images, tops.tolist(), lefts.tolist(), flips, cropped, strict=True):
        expected = transforms.crop(transforms.pad(image.permute(2, 0, 1), [padding]), top, left, 16, 16)
        expected = transforms.horizontal_flip(expected) if flip else expected
        assert torch.equal(ours.permute(2, 0, 1), expected)


def test_an_image_is_normalised_as_torchvision_does():
    images = random_images()
    scaled = transforms.to_dtype(images.images.permute(0, 3, 1, 2), torch.float32, scale=True)
    batch, labels = images.__getitems__([7, 3])
    assert torch.equal(batch, transforms.normalize(scaled, MEAN, STD)[[7, 3]])
    assert batch.is_contiguous()
    assert labels.tolist() == [7, 3]


def test_one_example_is_a_row_of_a_batch():
    images = CropFlip(random_images(), 2, seed=0)
    batch, labels = images.__getitems__([7, 3])
    assert torch.equal(images[3][0], batch[1])
    assert images[3][1] == labels[1]


def test_a_training_batch_is_cropped_by_an_eighth_at_most_and_then_normalised():
    images, labels = next(iter(loader()))
    black = (-torch.tensor(MEAN) / torch.tensor(STD)).view(3, 1, 1)
    for image, label in zip(images, labels, strict=True):
        original = random_images()[int(label)][0] - black  # so that padding is 0
        candidates = [
            transforms.crop(transforms.pad(side, [2]), top, left, 16, 16)
            for side in (original, original.flip(2))
            for top in range(5)
            for left in range(5)
        ]
        assert any(torch.allclose(image - black, candidate, atol=1e-5) for candidate in candidates)


def test_every_epoch_has_every_image_in_its_own_order_crops_and_mirrorings():
    batches = loader()
    (first, first_labels), (second, second_labels) = epoch(batches, 0), epoch(batches, 1)
    assert first_labels.sort().values.tolist() == second_labels.sort().values.tolist() == list(range(40))
    assert not torch.equal(first_labels, second_labels)
    same = (by_label(first, first_labels) == by_label(second, second_labels)).flatten(1).all(1)
    assert same.sum() < 5


def test_an_epoch_follows_from_seed_and_number_alone():
    batches = loader()
    epoch(batches, 0)
    later = epoch(batches, 3)
    afresh = epoch(loader(), 3)
    assert all(map(torch.equal, later, afresh))
    assert not torch.equal(epoch(loader(seed=1), 3)[0], afresh[0])


def test_other_uses_of_random_numbers_change_nothing():
    torch.manual_seed(0)
    undisturbed = epoch(loader())
    torch.manual_seed(1)
    disturbed = []
    for batch in loader():
        torch.rand(3)
        disturbed.append(batch)
    assert all(map(torch.equal, undisturbed, (torch.cat(parts) for parts in zip(*disturbed, strict=True))))


def test_seeds_next_to_each_other_have_nothing_in_common():
    assert not torch.equal(epoch(loader(seed=1), 0)[1], epoch(loader(seed=0), 1)[1])


def test_two_processes_share_the_batches_of_one(monkeypatch):
    alone = list(loader())
    monkeypatch.setattr("composer_ls.lab.images.loaders.dist.get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr("composer_ls.lab.images.loaders.dist.get_global_rank", lambda rank=rank: rank)
        shares.append(list(loader()))
    for (images, labels), *parts in zip(alone, *shares, strict=True):
        both = [torch.cat(part) for part in zip(*parts, strict=True)]
        assert sorted(both[1].tolist()) == sorted(labels.tolist())
        assert torch.equal(by_label(*both), by_label(images, labels))


def test_half_of_the_images_are_mirrored_and_every_shift_occurs():
    images = CropFlip(random_images(4000, 2), 4, seed=0)
    assert 0.45 < images.flips.float().mean() < 0.55
    for corners in (images.tops, images.lefts):
        assert corners.unique().tolist() == list(range(9))
    assert torch.corrcoef(torch.stack([images.tops, images.lefts]).float())[0, 1].abs() < 0.1


@pytest.mark.slow
def test_a_core_makes_25000_small_images_a_second():
    images = random_images(20_000, 32)
    batches = training_loader(
        Splits(images, images, 10, (3, 32, 32), ()), DATA.model_copy(update={"batch_size": 128}), 0
    )
    rates = []
    for _ in range(5):
        start = time.process_time()
        count = sum(len(labels) for _, labels in batches)
        rates.append(count / (time.process_time() - start))
    assert max(rates) > 25_000
