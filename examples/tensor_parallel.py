"""Trains a classifier whose last layer is split over GPUs by its classes, and checks that it trains as on one GPU.

Composer's tensor parallelism needs its FSDP 1, which needs GPUs. The logits are a DTensor sharded over the classes: each
process holds the logits of its own classes, and smoothing and the loss exchange three numbers per row.

    composer -n 1 examples/tensor_parallel.py --save one.pt
    composer -n 2 examples/tensor_parallel.py --split 2 --same-as one.pt
    composer -n 4 examples/tensor_parallel.py --split 2 --same-as one.pt    # the batch is split over two pairs
"""

import argparse

import torch
from composer import Trainer
from composer.models import ComposerModel
from composer.utils import dist, get_device, reproducibility
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel
from torch.utils.data import DataLoader, TensorDataset

from composer_ls import LabelSmoothing, cross_entropy

CLASSES, WIDTH, BATCH, STEPS = 1000, 64, 32, 20

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--split", type=int, default=1, help="over how many GPUs the last layer is split (default: 1)")
parser.add_argument("--save", help="file for the weights")
parser.add_argument("--same-as", help="file of weights to compare with; the exit status is 1 if they differ")
arguments = parser.parse_args()
if arguments.split > 1 and not torch.cuda.is_available():
    parser.error("--split needs GPUs, because Composer's tensor parallelism needs its FSDP 1")


class Classifier(ComposerModel):
    """Two layers; the loss takes whatever logits the second one gives."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, batch):
        """Logits (N, K)."""
        return self.last(self.first(batch[0]).relu())

    def loss(self, outputs, batch):
        """The mean loss. `composer_ls.cross_entropy` takes sharded logits too."""
        loss = cross_entropy(outputs, batch[1])
        return loss.full_tensor() if isinstance(loss, DTensor) else loss


def weights(model):
    """All weights, whole."""
    with FullyShardedDataParallel.summon_full_params(model):
        return {
            name: (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach().cpu().clone()
            for name, weight in model.named_parameters()
        }


dist.initialize_dist(get_device(None))
reproducibility.seed_all(17)
model = Classifier()
generator = torch.Generator().manual_seed(0)
data = TensorDataset(
    torch.randn(BATCH * STEPS, WIDTH, generator=generator),
    torch.randint(CLASSES, (BATCH * STEPS,), generator=generator),
)
groups, group = dist.get_world_size() // arguments.split, dist.get_global_rank() // arguments.split
sampler = dist.get_sampler(data, num_replicas=groups, rank=group)  # GPUs that share a layer see the same examples
split = {
    "tensor_parallel_degree": arguments.split,
    "layer_plan": {"last": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)},
}
trainer = Trainer(
    model=model,
    train_dataloader=DataLoader(data, BATCH // groups, sampler=sampler),
    max_duration="1ep",
    algorithms=[LabelSmoothing(0.1)],
    optimizers=torch.optim.SGD(model.parameters(), 0.5),
    parallelism_config={"fsdp": {}, "tp": split} if arguments.split > 1 else None,
    seed=17,
    progress_bar=False,
)
trainer.fit()
found = weights(model)
trainer.close()
if dist.get_global_rank() == 0:
    if arguments.save:
        torch.save(found, arguments.save)
    if arguments.same_as:
        expected = torch.load(arguments.same_as, weights_only=True)
        worst = max(float((found[name] - value).abs().max() / value.abs().max()) for name, value in expected.items())
        print(f"{dist.get_world_size()} processes, split over {arguments.split}: weights differ by at most {worst:.1g}")
        raise SystemExit(worst > 1e-4)
