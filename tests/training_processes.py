"""Trainings that give the same weights whatever the number of processes: `composer -n 2 training_processes.py FOLDER all`.

The examples of a global batch are put in such an order that the parts of two or four processes are the microbatches of
one. Mixing is made to take the same partner and the same λ everywhere.
"""

import os
import re
import sys
from functools import partial
from pathlib import Path

import torch
import transformers as hf
from composer import Trainer
from composer.algorithms import CutMix, MixUp
from composer.algorithms.cutmix import cutmix
from composer.algorithms.mixup import mixup
from composer.core import Callback
from composer.models import ComposerClassifier, HuggingFaceModel
from composer.utils import dist, reproducibility
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

from composer_ls import LabelSmoothing

BATCH, STEPS, K, VOCABULARY, LENGTH = 16, 6, 5, 41, 9


def images(labels_of_pixels=False):
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(BATCH * STEPS, 3, 8, 8, generator=generator)
    labels = torch.randint(0, K, (len(pictures), 8, 8) if labels_of_pixels else (len(pictures),), generator=generator)
    if labels_of_pixels:
        labels[:, :2] = -100  # as many void pixels in every picture, as in every process
    return TensorDataset(pictures, labels)


def classifier(labels_of_pixels=False, loss_fn=F.cross_entropy):
    module = nn.Conv2d(3, K, 1) if labels_of_pixels else nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, K))
    return ComposerClassifier(module, num_classes=K, loss_fn=loss_fn)


class Sentences(torch.utils.data.Dataset):
    """Token ids whose last places are padding."""

    def __len__(self):
        return BATCH * STEPS

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(3, VOCABULARY, (LENGTH,), generator=generator)
        labels, mask = ids.clone(), torch.ones(LENGTH, dtype=torch.long)
        ids[-3:], labels[-3:], mask[-3:] = 0, -100, 0
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def language_model():
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": LENGTH, "vocab_size": VOCABULARY}
    return HuggingFaceModel(hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, **off)))


CASES = {
    "label smoothing": (classifier, images, lambda: [LabelSmoothing(0.1)]),
    "mixup": (classifier, images, lambda: [MixUp(alpha=0.2), LabelSmoothing(0.1)]),
    "mixup of losses": (classifier, images, lambda: [LabelSmoothing(0.1), MixUp(alpha=0.2, interpolate_loss=True)]),
    "cutmix": (classifier, images, lambda: [LabelSmoothing(0.1), CutMix(alpha=1.0)]),
    "label maps": (lambda: classifier(True), lambda: images(True), lambda: [LabelSmoothing(0.1)]),
    "tokens": (language_model, Sentences, lambda: [LabelSmoothing(0.1)]),
    "tokens without logits": (language_model, Sentences, lambda: [LabelSmoothing(0.1, logits="never")]),
}


def mix_alike():
    """Let every process and every microbatch mix in the same way."""
    mixup._gen_indices = lambda count: torch.arange(count).flip(0)
    mixup._gen_mixing_coef = lambda alpha: 0.7
    cutmix._gen_indices = lambda pictures: torch.arange(len(pictures)).flip(0)
    cutmix._gen_cutmix_coef = lambda alpha: 0.6
    cutmix._rand_bbox = lambda *sizes, **options: (1, 2, 5, 6)


def order(parts):
    """The examples such that one process sees as microbatches what ``parts`` processes see as batches."""
    starts = range(0, BATCH * STEPS, BATCH)
    return [first + part + parts * i for first in starts for part in range(parts) for i in range(BATCH // parts)]


def train(case, parts=1, algorithms=None, make_model=None, **options):
    """The weights after training by the processes that there are; one process sees the parts of ``parts`` of them."""
    mix_alike()
    make_classifier, make_data, make_algorithms = CASES[case]
    processes = dist.get_world_size()
    data = make_data()
    if processes == 1:
        data = Subset(data, order(parts))
    reproducibility.seed_all(7)
    model = (make_model or make_classifier)()
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(
            data, BATCH // processes, sampler=dist.get_sampler(data) if processes > 1 else None
        ),
        max_duration="1ep",
        algorithms=make_algorithms() if algorithms is None else algorithms,
        optimizers=torch.optim.SGD(model.parameters(), 0.1),
        device_train_microbatch_size=BATCH // max(parts, processes),
        progress_bar=False,
        device="cpu",
        seed=7,
        **options,
    )
    trainer.fit()
    weights = {
        name: (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach().clone()
        for name, weight in trainer.state.model.named_parameters()
    }
    trainer.close()
    return {re.sub(r"^(module\.)+", "", name): weight for name, weight in weights.items()}


class Dying(Callback):
    """Ends the second process, as the system does when memory runs out."""

    def __init__(self, folder):
        self.folder = folder

    def batch_start(self, state, logger):
        if state.timestamp.batch == 3 and dist.get_global_rank() == 1:
            (self.folder / "died").touch()
            os._exit(9)


def kept(folder):
    """Arguments of a Trainer that goes on where an earlier one stopped."""
    return {"save_folder": str(folder), "save_interval": "1ba", "run_name": "kept", "autoresume": True}


def main(folder, what):
    if what == "die":
        train("label smoothing", callbacks=[Dying(folder)], **kept(folder))
    trained = {case: train(case) for case in CASES}
    if dist.get_world_size() == 2:
        sharded = {"parallelism_config": {"fsdp": {"sync_module_states": True}}}
        smoothed = lambda: classifier(loss_fn=partial(F.cross_entropy, label_smoothing=0.1))  # noqa: E731
        trained["sharded"] = train("label smoothing", **sharded)
        trained["sharded by the loss"] = train("label smoothing", algorithms=[], make_model=smoothed, **sharded)
        trained["sharded hard"] = train("label smoothing", algorithms=[], **sharded)
    if dist.get_global_rank() == 0:
        torch.save(trained, folder / "weights.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
