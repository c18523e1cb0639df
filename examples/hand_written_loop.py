"""A training loop in plain PyTorch with smoothed labels.

With ``--compare`` it times its own steps and those of Composer's Trainer, in alternation. DIR contains
train/<class>/*.jpg and test/<class>/*.jpg; without it, the data are scikit-learn's digits.

    python examples/hand_written_loop.py
    python examples/hand_written_loop.py --root DIR --model resnet9
    python examples/hand_written_loop.py --root DIR --model resnet20 --compare
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from composer_ls import cross_entropy, smooth_labels
from composer_ls.lab.images.loaders import evaluation_loader, training_loader
from composer_ls.lab.tasks.classification.data import load_splits
from composer_ls.lab.tasks.classification.networks import build_model
from composer_ls.lab.tasks.classification.schema import ClassificationData

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make(name, splits, learning_rate):
    """A network and its optimizer, the same for the loop and for the Trainer."""
    torch.manual_seed(17)
    model = build_model(name, splits.image_shape, splits.num_classes).to(DEVICE, memory_format=torch.channels_last)
    settings = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    return model, torch.optim.SGD(model.parameters(), learning_rate, **settings)


def train_step(model, optimizer, images, labels, smoothing):
    """One step: this is all that label smoothing needs."""
    optimizer.zero_grad()
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
        logits = model(images)
        loss = cross_entropy(logits, smooth_labels(logits, labels, smoothing))
    loss.backward()
    optimizer.step()


@torch.no_grad()
def test_accuracy(model, loader):
    """The fraction of test images that are classified correctly."""
    model.eval()
    hits = [(model(images.to(DEVICE)).argmax(1) == labels.to(DEVICE)).float() for images, labels in loader]
    model.train()
    return torch.cat(hits).mean().item()


def train(name, splits, data, epochs, learning_rate, smoothing):
    """The whole loop. The learning rate rises for a fifth of the steps and then falls to zero."""
    model, optimizer = make(name, splits, learning_rate)
    loader, test = training_loader(splits, data, seed=17), evaluation_loader(splits, data)
    steps = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.2, anneal_strategy="linear", cycle_momentum=False
    )
    start = time.perf_counter()
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        for images, labels in loader:
            train_step(model, optimizer, images.to(DEVICE), labels.to(DEVICE), smoothing)
            schedule.step()
        accuracy = test_accuracy(model, test)
        print(f"epoch {epoch + 1:2d}  test accuracy {accuracy:.4f}  {time.perf_counter() - start:6.1f} s")


def compare(name, splits, data, learning_rate, smoothing, chunks=12, chunk=5):
    """Print the time per step of the loop and the Trainer, as medians over alternating turns of a few steps."""
    from composer import Callback, Trainer
    from composer.core import Precision
    from composer.models import ComposerClassifier
    from torchmetrics import MetricCollection

    from composer_ls import LabelSmoothing
    from composer_ls.lab.tasks.classification.training_curve import TrainingCurve
    from composer_ls.lab.training.metrics_file import MetricsFile

    model, optimizer = make(name, splits, learning_rate)
    batches = iter(training_loader(splits, data, seed=17))
    seconds = {"loop": [], "Trainer": []}

    class Turns(Callback):
        def batch_end(self, state, logger):
            if int(state.timestamp.batch) % chunk:
                return
            now = time.perf_counter()
            if int(state.timestamp.batch) > chunk:  # the first turn is a warm-up
                seconds["Trainer"].append((now - self.start) / chunk)
            turn()
            self.start = time.perf_counter()

    def turn():
        start = time.perf_counter()
        for _ in range(chunk):
            images, labels = next(batches)
            train_step(model, optimizer, images.to(DEVICE), labels.to(DEVICE), smoothing)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        seconds["loop"].append((time.perf_counter() - start) / chunk)

    network, its_optimizer = make(name, splits, learning_rate)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model=ComposerClassifier(
                network, num_classes=splits.num_classes, loss_fn=cross_entropy, train_metrics=MetricCollection([])
            ),
            train_dataloader=training_loader(splits, data, seed=17),
            optimizers=its_optimizer,
            algorithms=[LabelSmoothing(smoothing)],
            callbacks=[TrainingCurve(), Turns()],
            loggers=MetricsFile(Path(folder) / "metrics.jsonl"),
            max_duration=f"{(chunks + 1) * chunk}ba",
            precision=Precision.AMP_BF16 if DEVICE.type == "cuda" else Precision.FP32,
            progress_bar=False,
        ).fit()
    loop, trainer = statistics.median(seconds["loop"][1:]), statistics.median(seconds["Trainer"])
    print(f"{name}, batch {data.batch_size}, {DEVICE.type}, medians of {chunks} turns of {chunk} steps:")
    print(f"loop {loop * 1e3:.2f} ms, Trainer {trainer * 1e3:.2f} ms, ratio {trainer / loop:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="a folder of images; without it, scikit-learn's digits")
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=0.2)
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--compare", action="store_true", help="time a step against Composer's Trainer")
    options = parser.parse_args()
    place = {"name": "imagefolder", "root": options.root} if options.root else {"name": "digits"}
    data = ClassificationData(
        **place, batch_size=options.batch_size, augmentation="crop_flip" if options.root else "none"
    )
    splits = load_splits(data, DEVICE)
    if options.compare:
        compare(options.model, splits, data, options.learning_rate, options.smoothing)
    else:
        train(options.model, splits, data, options.epochs, options.learning_rate, options.smoothing)
