"""torch.compile takes labels -> smooth -> mix -> loss as one graph, equal to eager, and compiles it once."""

import gc

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from torch.testing import assert_close

import composer_ls.losses.in_one_piece
from composer_ls import CrossEntropyLoss, cross_entropy, linear_cross_entropy, smooth_labels

K = 5
LOSSES = {"ours": cross_entropy, "torch": F.cross_entropy}
PRIORS = {
    "uniform": None,
    "row": torch.arange(K).double().softmax(0),
    "row per class": torch.eye(K).double() * 0.5 + 0.1,
}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batch(seed=0, n=6, ignored=True):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, K, dtype=torch.float64, generator=generator).requires_grad_()
    labels = torch.randint(K, (n,), generator=generator)
    if ignored:
        labels[1] = -100
    return x, labels


def mixed(target, lam, components):
    for shift in range(1, components):
        target = (1 - lam) * target + lam * target.roll(shift, 0)
    return target


def value_and_gradient(function, x, *arguments):
    loss = function(x, *arguments)
    return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]


def aot_graphs(function, *arguments):
    """The code of the graphs that a backend is given, forward and backward."""
    graphs = []

    def keep(graph, _):
        graphs.append(graph.code)
        return make_boxed_func(graph.forward)

    torch.compile(function, fullgraph=True, backend=aot_autograd(fw_compiler=keep))(*arguments)
    return graphs


@pytest.mark.parametrize("components", [1, 2, 3])
@pytest.mark.parametrize("prior", list(PRIORS))
@pytest.mark.parametrize(("weighted", "loss"), [(False, "ours"), (True, "torch")])
def test_the_chain_is_one_graph_that_equals_eager(components, prior, weighted, loss):
    class_weight = torch.rand(K, dtype=torch.float64) if weighted else None

    def chain(x, labels, lam, smoothing):
        target = mixed(smooth_labels(x, labels, smoothing, prior=PRIORS[prior]), lam, components)
        return LOSSES[loss](x, target, class_weight)

    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    for numbers in ((0.3, 0.1), (torch.tensor(0.3), torch.tensor(0.1))):
        x, labels = batch()
        assert_close(value_and_gradient(compiled, x, labels, *numbers), value_and_gradient(chain, x, labels, 0.3, 0.1))


@pytest.mark.parametrize("kind", ["numbers", "tensors"])
def test_other_numbers_and_labels_compile_nothing_anew(kind):
    counter = CompileCounterWithBackend("aot_eager")

    def chain(x, labels, lam, smoothing):
        return cross_entropy(x, mixed(smooth_labels(x, labels, smoothing), lam, 3))

    compiled = torch.compile(chain, fullgraph=True, backend=counter)
    counts = []
    for seed, numbers in enumerate([(0.3, 0.1), (0.4, 0.1), (0.4, 0.25), (0.9, 0.5), (0.7, 0.3)]):
        x, labels = batch(seed, ignored=seed % 2 == 0)
        given = map(torch.tensor, numbers) if kind == "tensors" else numbers
        assert_close(value_and_gradient(compiled, x, labels, *given), value_and_gradient(chain, x, labels, *numbers))
        counts.append(counter.frame_count)
    if kind == "tensors":
        assert counts == [1, 1, 1, 1, 1]
    elif torch._dynamo.config.specialize_float:  # PyTorch before 2.6: a Python number is a constant
        assert counts == [1, 2, 3, 4, 5]
    else:  # a Python number is a constant until it changes
        assert counts == [1, 2, 3, 3, 3]


def test_other_batch_sizes_compile_once_more_at_most():
    counter = CompileCounterWithBackend("aot_eager")

    def chain(x, labels):
        return cross_entropy(x, mixed(smooth_labels(x, labels, 0.1), 0.3, 2))

    compiled = torch.compile(chain, fullgraph=True, backend=counter)
    for n in (6, 7, 8, 9):
        x, labels = batch(n=n)
        assert_close(value_and_gradient(compiled, x, labels), value_and_gradient(chain, x, labels))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("spatial", [(), (3,), (2, 2)])
def test_targets_from_outside_come_into_the_graph_as_they_are(reduction, spatial):
    x = torch.randn(4, K, *spatial, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(K, (4, *spatial))
    target = smooth_labels(x, labels, 0.1)

    def loss(x, target):
        return F.cross_entropy(x, target, reduction=reduction)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for lam in (0.2, 0.4):
        given = mixed(target, lam, 2)
        assert_close(value_and_gradient(compiled, x, given), value_and_gradient(loss, x, given))
    assert counter.frame_count == 1


@pytest.mark.parametrize("prior", list(PRIORS))
def test_targets_that_leave_the_graph_are_targets(prior):
    def make(x, labels):
        return mixed(smooth_labels(x, labels, 0.1, prior=PRIORS[prior]), 0.3, 2)

    x, labels = batch()
    target = torch.compile(make, fullgraph=True, backend="aot_eager")(x, labels)
    assert type(target) is type(make(x, labels))
    assert target.classes.shape == (6, 2)
    assert_close(target.dense(), make(x, labels).dense())
    assert_close(cross_entropy(x, target), cross_entropy(x, make(x, labels)))


def test_dense_rows_and_labels_compile_too():
    x, labels = batch()
    rows = smooth_labels(x, labels, 0.1).dense()

    def loss(x, target):
        return cross_entropy(x, target, label_smoothing=0.1)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for target in (rows, labels):
        assert_close(value_and_gradient(compiled, x, target), value_and_gradient(loss, x, target))


def test_a_linear_layer_without_logits_compiles_with_them():
    x, labels = batch()
    weight = torch.randn(K, K, dtype=torch.float64)

    def loss(x, labels):
        return linear_cross_entropy(x, weight, labels, label_smoothing=0.1)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_close(value_and_gradient(compiled, x, labels), value_and_gradient(loss, x, labels))


def test_a_whole_training_step_compiles_and_gives_the_same_weights():
    def trained(wrap):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, K))
        criterion = CrossEntropyLoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

        def loss_of(images, labels, lam):
            logits = model(images)
            return criterion(logits, mixed(smooth_labels(logits, labels, 0.1), lam, 2))

        loss_of = wrap(loss_of)
        for step in range(4):
            generator = torch.Generator().manual_seed(step)
            images, labels = torch.randn(6, 4, generator=generator), torch.randint(K, (6,), generator=generator)
            optimizer.zero_grad()
            loss_of(images, labels, 0.1 * step).backward()
            optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    compiled = trained(lambda function: torch.compile(function, fullgraph=True, backend="aot_eager"))
    assert_close(compiled, trained(lambda function: function))


@pytest.fixture
def in_one_piece(monkeypatch):
    """What happens to many logits happens to few."""
    monkeypatch.setattr(composer_ls.losses.in_one_piece, "LARGE", 1)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("layout", ["rows", "maps", "channels last", "transposed"])
@pytest.mark.parametrize(("prior", "weighted"), [("uniform", False), ("row", True), ("row per class", False)])
def test_large_logits_take_the_eager_kernel_inside_the_graph(in_one_piece, reduction, layout, prior, weighted):
    class_weight = torch.rand(K, dtype=torch.float64) if weighted else None

    def chain(x, labels, lam):
        x = {"channels last": lambda: x.movedim(-1, 1), "transposed": lambda: x.t()}.get(layout, lambda: x)()
        target = mixed(smooth_labels(x, labels, 0.1, prior=PRIORS[prior]), lam, 2)
        return cross_entropy(x, target, class_weight, reduction=reduction)

    shape = {"rows": (6, K), "maps": (6, K, 2, 3), "channels last": (6, 2, 3, K), "transposed": (K, 6)}[layout]
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    spatial = (2, 3) if len(shape) == 4 else ()
    for ignored in (False, True):
        labels = torch.randint(K, (6, *spatial))
        if ignored:
            labels[1] = -100
        compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
        graphs = aot_graphs(chain, x, labels, 0.3)
        assert any("soft_cross_entropy" in graph for graph in graphs)
        loss, expected = compiled(x, labels, 0.3), chain(x, labels, 0.3)
        assert_close(loss, expected)
        upstream = torch.rand_like(loss) + 0.5
        for _ in range(2):  # the gradient of the forward pass, and one that is made again
            ours = torch.autograd.grad(loss, x, upstream, retain_graph=True)[0]
            assert_close(ours, torch.autograd.grad(expected, x, upstream, retain_graph=True)[0])


def test_a_compiled_loss_that_is_dropped_frees_its_gradient(in_one_piece):
    x, labels = batch()
    tickets = composer_ls.losses.in_one_piece._TICKETS
    compiled = torch.compile(lambda x, y: cross_entropy(x, smooth_labels(x, y, 0.1)), backend="aot_eager")
    loss = compiled(x, labels)
    assert len(tickets) == 1
    del loss
    gc.collect()
    assert not tickets
    with torch.no_grad():
        assert_close(compiled(x, labels), F.cross_entropy(x, labels, label_smoothing=0.1))
    assert not tickets


@pytest.mark.slow
def test_inductor_makes_the_same_loss_and_gradient():
    def chain(x, labels, lam):
        return cross_entropy(x, mixed(smooth_labels(x, labels, 0.1), lam, 2))

    compiled = torch.compile(chain, fullgraph=True)
    for seed in (0, 1):
        x, labels = batch(seed)
        assert_close(value_and_gradient(compiled, x, labels, 0.3), value_and_gradient(chain, x, labels, 0.3))


def test_bad_labels_and_factors_are_refused_where_they_can_be_seen():
    def chain(x, labels, smoothing):
        return cross_entropy(x, smooth_labels(x, labels, smoothing))

    x, labels = batch()
    compiled = torch.compile(chain, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="smoothing must be in"):
        compiled(x, labels, 1.5)
    with pytest.raises(Exception, match="target has shape"):
        compiled(x, labels[:3], 0.1)
