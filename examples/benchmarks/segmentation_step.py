"""Measures how much of a segmentation training step is outside the network: the batch, and the smoothed loss.

    python examples/benchmarks/segmentation_step.py data.root=camvid
    python examples/benchmarks/segmentation_step.py data.root=camvid model.width=16

Any key of the recipe camvid-unet can be changed. Times are medians over two epochs without the first ten steps.
"""

import sys
import time
from statistics import median

import torch

from composer_ls import smooth_labels
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.tasks.registry import open_task

WARM_UP = 10

recipe = load_recipe("camvid-unet", sys.argv[1:])
task = open_task(recipe)
model, loader = task.model(), task.training_loader()
optimizer = torch.optim.AdamW(model.parameters(), recipe.optimizer.learning_rate)
seconds = {"batch": [], "forward": [], "loss": [], "backward and optimizer": []}
for epoch in range(2):
    loader.sampler.set_epoch(epoch)
    batches = iter(loader)
    while True:
        times = [time.perf_counter()]
        batch = next(batches, None)
        if batch is None:
            break
        times.append(time.perf_counter())
        outputs = model(batch)
        times.append(time.perf_counter())
        logits = outputs.detach().requires_grad_()
        images, labels = batch
        model.loss(logits, (images, smooth_labels(logits, labels, recipe.smoothing))).backward()
        times.append(time.perf_counter())
        outputs.backward(logits.grad)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter())
        for spent, start, end in zip(seconds.values(), times, times[1:], strict=False):
            spent.append(end - start)

medians = {name: median(spent[WARM_UP:]) for name, spent in seconds.items()}
step = sum(medians.values())
print("| part of a step | ms | share |\n| --- | --- | --- |")
for name, spent in medians.items():
    print(f"| {name} | {1e3 * spent:.1f} | {spent / step:.1%} |")
print(
    f"\n{recipe.data.batch_size} images of {tuple(images.shape[1:])}, width {recipe.model.width}, loss {recipe.loss}",
    end="",
)
print(f", {torch.get_num_threads()} threads: batch and loss are {(medians['batch'] + medians['loss']) / step:.1%}")
