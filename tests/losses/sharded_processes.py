"""What processes of 1 to 4 say of sharded logits, a line of JSON each; run by test_sharded.py. Forks after one import."""

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F

from composer_ls import cross_entropy, smooth_labels
from composer_ls.smoothing import max_suppression

try:
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode
except ImportError:
    from torch.distributed._tensor import DTensor, Replicate, Shard, distribute_tensor
    from torch.distributed._tensor.debug import CommDebugMode

N, K = 6, 10
LAYOUTS = {
    1: {"classes": ((1,), [Shard(1)]), "replicated": ((1,), [Replicate()])},
    2: {"classes": ((2,), [Shard(1)]), "batch": ((2,), [Shard(0)])},
    3: {"classes": ((3,), [Shard(1)]), "batch": ((3,), [Shard(0)])},
    4: {
        "classes": ((4,), [Shard(1)]),
        "both": ((2, 2), [Shard(0), Shard(1)]),
        "classes twice": ((2, 2), [Shard(1), Shard(1)]),
    },
}
CASES = {
    "smoothed": {},
    "mixed": {"components": 2},
    "mixed three times, shared prior": {"components": 3, "prior": 1},
    "prior per class": {"components": 2, "prior": 2},
    "ignored": {"components": 2, "ignored": True},
    "weighted and ignored": {"components": 2, "ignored": True, "weighted": True},
    "weighted, shared prior": {"prior": 1, "weighted": True},
    "sum": {"components": 2, "ignored": True, "reduction": "sum"},
    "none": {"components": 2, "ignored": True, "reduction": "none"},
    "maps": {"components": 2, "ignored": True, "spatial": (3,)},
    "maps, none": {"components": 2, "spatial": (3,), "reduction": "none"},
    "hard": {"smoothing": 0.0, "ignored": True},
    "bfloat16": {"components": 2, "dtype": torch.bfloat16},
    "far from zero": {"shift": 1e4},
}


FEW = ("mixed", "weighted and ignored", "none", "maps")
"""The cases of layouts that another one resembles."""
ALL = {(3, "classes"), (4, "both")}


class Counted:
    """Numbers that all_reduce is given, and every other collective by name."""

    def __enter__(self):
        self.numbers, self.others, self.kept = 0, [], {}
        for name in (
            "all_reduce",
            "all_gather",
            "all_gather_into_tensor",
            "broadcast",
            "scatter",
            "reduce_scatter_tensor",
        ):
            self.kept[name] = getattr(dist, name)
            setattr(dist, name, lambda *a, n=name, **k: self.note(n, a, k))
        return self

    def note(self, name, arguments, keywords):
        if name == "all_reduce":
            self.numbers += arguments[0].numel()
        else:
            self.others.append(name)
        return self.kept[name](*arguments, **keywords)

    def __exit__(self, *_):
        for name, function in self.kept.items():
            setattr(dist, name, function)


def problem(spatial=(), ignored=False, prior=0, weighted=False, dtype=torch.float64, shift=0.0):
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(N, K, *spatial, dtype=torch.float64, generator=generator) + shift).to(dtype)
    labels = torch.randint(K, (N, *spatial), generator=generator)
    if ignored:
        labels[1] = labels[2] = -100
    q = torch.rand((K,) * prior, dtype=torch.float64, generator=generator).softmax(-1) if prior else None
    weight = torch.rand(K, dtype=torch.float64, generator=generator) + 0.5 if weighted else None
    return x, labels, q, weight


def target_of(logits, labels, smoothing, prior, components):
    target = smooth_labels(logits, labels, smoothing, prior=prior)
    for shift in range(1, components):
        target = 0.6 * target + 0.4 * target.roll(shift, 0)
    return target


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def one_case(mesh, placements, components=1, smoothing=0.1, reduction="mean", **arguments):
    x, labels, prior, weight = problem(**arguments)
    plain = x.clone().requires_grad_()
    expected = cross_entropy(plain, target_of(plain, labels, smoothing, prior, components), weight, reduction=reduction)
    upstream = torch.rand(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(expected)
    (expected * upstream).sum().backward()
    logits = distribute_tensor(x, mesh, placements).requires_grad_()
    target = target_of(logits, labels, smoothing, prior, components)
    with Counted() as counted, CommDebugMode() as debug:
        loss = F.cross_entropy(logits, target, weight, reduction=reduction)
    scale = distribute_tensor(upstream, mesh, loss.placements)
    (gradient,) = torch.autograd.grad((loss * scale).sum(), logits)
    assert gradient.placements == logits.placements, (gradient.placements, logits.placements)
    error = (whole(loss).detach() - expected.detach()).abs().max(), (whole(gradient) - plain.grad).abs().max()
    rows = labels.numel()
    allowed = 3 * rows * sum(placement == Shard(1) for placement in placements) + 2 * mesh.ndim
    assert counted.numbers <= allowed, (counted.numbers, allowed)
    assert not counted.others, counted.others
    for operation in debug.get_comm_counts():
        assert str(operation).rsplit(".", 1)[-1] in ("all_reduce", "allreduce_"), operation
    return max(float(e) for e in error)


def labels_on_the_mesh(mesh, placements):
    """Labels that are a DTensor give the loss of plain ones, sharded over the batch or replicated."""
    x, labels, _, _ = problem(ignored=True)
    expected = F.cross_entropy(x, labels, label_smoothing=0.1)
    logits = distribute_tensor(x, mesh, placements)
    error = 0.0
    by_batch = [Shard(0) if placement == Shard(0) else Replicate() for placement in placements]
    for given in ([Replicate()] * mesh.ndim, by_batch):
        loss = cross_entropy(logits, distribute_tensor(labels, mesh, given), label_smoothing=0.1)
        error = max(error, float((whole(loss) - expected).abs()))
    return error


def max_sup_with_an_ignored_class(mesh, placements):
    """Class 0 is ignored as a label, and penalised where it is the largest."""
    x, labels, _, _ = problem()
    target = max_suppression(x, labels, 0.2, ignore_index=0)
    expected = cross_entropy(x, target, ignore_index=0)
    loss = cross_entropy(distribute_tensor(x, mesh, placements), target, ignore_index=0)
    return float((whole(loss) - expected).abs())


def smoothing_after_another_prior(mesh, placements):
    """The loss smooths a target that was smoothed before with a prior of its own."""
    x, labels, prior, weight = problem(ignored=True, prior=1, weighted=True)
    error = 0.0
    for reduction in ("mean", "none"):
        options = {"label_smoothing": 0.1, "reduction": reduction}
        expected = cross_entropy(x, smooth_labels(x, labels, 0.2, prior=prior), weight, **options)
        logits = distribute_tensor(x, mesh, placements)
        loss = cross_entropy(logits, smooth_labels(logits, labels, 0.2, prior=prior), weight, **options)
        error = max(error, float((whole(loss) - expected).abs().max()))
    return error


def trained_layer(mesh):
    """The weights of a column-parallel layer after training, against those of one process."""
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    def train(layer):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            hidden = torch.randn(N, 4, dtype=torch.float64, generator=generator)
            labels = torch.randint(K, (N,), generator=generator)
            optimizer.zero_grad()
            logits = layer(hidden)
            cross_entropy(logits, target_of(logits, labels, 0.1, None, 2)).backward()
            optimizer.step()
        return [whole(parameter).detach() for parameter in layer.parameters()]

    def fresh():
        torch.manual_seed(0)
        return nn.Linear(4, K).double()

    style = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
    ours = train(parallelize_module(fresh(), mesh, style))
    return max(float((a - b).abs().max()) for a, b in zip(ours, train(fresh()), strict=True))


def backward_after_a_change(logits, labels):
    prior = torch.arange(K, dtype=logits.dtype).softmax(0)
    loss = cross_entropy(logits.detach().requires_grad_(), smooth_labels(logits, labels, 0.1, prior=prior))
    prior.fill_(1 / K)
    loss.backward()


def refusals(mesh):
    """The messages of what is refused."""
    x, labels, _, _ = problem()
    logits = distribute_tensor(x, mesh, [Shard(1)])
    other = init_device_mesh("cpu", (1, mesh.size()))
    maps = distribute_tensor(torch.randn(N, K, 4), mesh, [Shard(2)])
    wrong = DTensor.from_local(
        torch.randn(N, 5), mesh, [Shard(1)], run_check=False, shape=(N, K + 3), stride=(K + 3, 1)
    )
    learning = torch.tensor(0.1, requires_grad=True)
    tries = {
        "mesh": lambda: cross_entropy(logits, distribute_tensor(labels, other, [Replicate(), Replicate()])),
        "spatial": lambda: cross_entropy(maps, torch.zeros(N, 4, dtype=torch.long)),
        "shard": lambda: cross_entropy(wrong, labels),
        "rows": lambda: cross_entropy(logits, torch.full((N, K), 1 / K)),
        "plain logits": lambda: cross_entropy(x, distribute_tensor(labels, mesh, [Replicate()])),
        "gradient": lambda: cross_entropy(logits, smooth_labels(logits, labels, learning)),
        "label": lambda: cross_entropy(logits, torch.full((N,), K)),
        "a changed prior": lambda: backward_after_a_change(logits, labels),
    }
    messages = {}
    for name, attempt in tries.items():
        try:
            attempt()
        except (ValueError, IndexError, RuntimeError) as error:
            messages[name] = str(error)
    return messages


def process(rank, size, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    results = {}
    for layout, (shape, placements) in LAYOUTS[size].items():
        mesh = init_device_mesh("cpu", shape)
        for case in CASES if (size, layout) in ALL else FEW:
            arguments = CASES[case]
            results[f"{layout}: {case}"] = one_case(mesh, placements, **arguments)
        results[f"{layout}: labels on the mesh"] = labels_on_the_mesh(mesh, placements)
        results[f"{layout}: an ignored class"] = max_sup_with_an_ignored_class(mesh, placements)
        results[f"{layout}: another prior"] = smoothing_after_another_prior(mesh, placements)
    line = init_device_mesh("cpu", (size,))
    results["layer"] = trained_layer(line)
    results["refused"] = refusals(line) if size == 2 else {}
    return results


def main(folder):
    torch.set_num_threads(1)
    for size in LAYOUTS:
        children = []
        for rank in range(size):
            child = os.fork()
            if child == 0:
                path = Path(folder, f"{size}-{rank}.json")
                try:
                    path.write_text(json.dumps(process(rank, size, Path(folder, f"store-{size}"))))
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            children.append(child)
        statuses = [os.waitpid(child, 0)[1] for child in children]
        if any(statuses):
            sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
