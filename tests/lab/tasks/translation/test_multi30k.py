"""The real parallel text, where it is at hand."""

import os
from pathlib import Path

import pytest

from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.tasks.registry import open_task
from composer_ls.lab.tasks.translation.batches import IGNORED
from composer_ls.lab.tasks.translation.data import read_pairs

if "COMPOSER_LS_DATA" not in os.environ:
    pytest.skip("COMPOSER_LS_DATA names no folder with real data", allow_module_level=True)

ROOT = Path(os.environ["COMPOSER_LS_DATA"]) / "multi30k"


@pytest.mark.parametrize(
    ("split", "count"), [("train", 29_000), ("val", 1014), ("test_2016_flickr", 1000), ("test_2017_flickr", 1000)]
)
def test_every_split_is_read_whole(split, count):
    pairs = read_pairs(ROOT, split, "en", "de")
    assert len(pairs) == count
    assert all(pairs.source)
    assert all(pairs.target)


@pytest.mark.slow
def test_the_recipe_learns_8000_subwords_and_wastes_little_on_padding():
    task = open_task(load_recipe("multi30k-transformer", [f"data.root={ROOT}"]))
    assert task.num_classes == 8000
    task.model()
    loader = task.training_loader().dataloader
    assert 80 < len(loader) < 160
    places, filled, largest = 0, 0, 0
    for batch in loader:
        source, labels = batch["input_ids"], batch["labels"]
        places += source.numel() + labels.numel()
        filled += int(batch["attention_mask"].sum() + (labels != IGNORED).sum())
        largest = max(largest, source.numel(), labels.numel())
    assert largest <= 4096
    assert filled / places > 0.85
    assert task.label_counts().sum() > 29_000 * 10
