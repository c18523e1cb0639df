"""SoftTargets: compact under the operations of target transforms, dense under all others."""

import copy
import io
import operator
import pickle

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import Allocations, class_dim, dense_reference, generators, random_prior, random_soft_targets
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import default_collate

from composer_ls import SoftTargets, cross_entropy, smooth_labels
from composer_ls.errors import TargetError

SHAPES = [(3,), (4, 3), (1, 1), (4, 3, 5), (3, 2, 4, 5)]


def compact(value):
    """``value``, after checking that it is still SoftTargets."""
    assert isinstance(value, SoftTargets)
    return value


def example(n=4, num_classes=5, smoothing=0.1, prior=None, **options):
    labels = torch.arange(n) % num_classes
    return smooth_labels(torch.zeros(n, num_classes, **options), labels, smoothing, prior=prior)


# ---------------------------------------------------------------------------------------------------------------------
# Rule 3: any sequence of supported operations, then dense(), is that sequence on the dense tensor.


class Pair:
    """SoftTargets, the dense tensor they stand for, and what the rounding of all that happened to them amounts to."""

    def __init__(self, soft, dense, generator):
        self.soft, self.dense, self.generator = soft, dense, generator
        self.scale, self.eps = 1.0, torch.finfo(torch.float64).eps
        self.check()

    def apply(self, operation):
        """One operation on both; the compact one must stay compact."""
        self.soft, self.dense = compact(operation(self.soft)), operation(self.dense)
        self.check()

    def check(self):
        assert self.soft.shape == self.dense.shape
        assert self.soft.dtype == self.dense.dtype
        self.eps = max(self.eps, torch.finfo(self.dense.dtype).eps)
        if self.dense.numel():
            self.scale = max(self.scale, 4 * self.dense.abs().max().item())
        assert_close(self.soft.dense(), self.dense, rtol=0, atol=8 * self.eps * self.scale)

    def other(self, components):
        """Another target of the same shape and prior."""
        soft, dense = random_soft_targets(tuple(self.soft.shape), components, self.soft.prior, self.generator)
        return soft.to(self.soft.dtype), dense.to(self.dense.dtype)


@st.composite
def factors(draw, pair):
    """A number, a 0-dim tensor or one factor per row, away from zero."""
    kind = draw(st.sampled_from(["int", "float", "numpy", "0-dim", "rows", "places"]))
    if kind == "int":
        return draw(st.sampled_from([1, 2, -1]))
    if kind in ("float", "numpy", "0-dim"):
        value = draw(st.sampled_from([0.5, 0.7, -1.5, 1.25]))
        return {"float": float, "numpy": np.float64, "0-dim": torch.tensor}[kind](value)
    shape = [1] * pair.soft.ndim
    dim = class_dim(pair.soft)
    for axis in range(pair.soft.ndim) if kind == "places" else range(dim):
        shape[axis] = 1 if axis == dim else pair.soft.shape[axis]
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    return (torch.rand(shape, generator=pair.generator) + 0.5).to(dtype)


def scale(pair, draw):
    factor = draw(factors(pair))
    how = draw(st.sampled_from(["left", "right", "torch", "keyword", "method", "in place"]))
    if how == "left":
        assume(not isinstance(factor, np.generic))  # NumPy makes a tensor on its right an array
    in_place_fits = (
        not isinstance(factor, torch.Tensor) or factor.dtype != torch.float64 or pair.soft.dtype == factor.dtype
    )

    def in_place(target):
        target = target.clone()
        target *= factor
        return target

    ways = {
        "left": lambda target: factor * target,
        "right": lambda target: target * factor,
        "torch": lambda target: torch.mul(target, factor),
        "keyword": lambda target: torch.mul(target, other=factor),
        "method": lambda target: target.multiply(factor),
        "in place": in_place if in_place_fits else lambda target: target * factor,
    }
    pair.apply(ways[how])


def divide(pair, draw):
    factor = draw(factors(pair))
    how = draw(st.sampled_from([operator.truediv, torch.div, torch.true_divide, torch.Tensor.divide]))
    pair.apply(lambda target: how(target, factor))


def add(pair, draw):
    other = pair.other(draw(st.integers(1, 2)))
    how = draw(st.sampled_from([operator.add, operator.sub, torch.add, torch.sub, "alpha", "in place", "sum"]))
    if draw(st.booleans()):  # with itself
        other = pair.soft, pair.dense

    def operation(target):
        partner = other[0] if isinstance(target, SoftTargets) else other[1]
        if how == "alpha":
            return torch.add(target, partner, alpha=0.5)
        if how == "sum":
            return sum([target, partner])
        return target.clone().add_(partner) if how == "in place" else how(target, partner)

    pair.apply(operation)


def negate(pair, draw):
    pair.apply(draw(st.sampled_from([operator.neg, torch.neg, torch.Tensor.negative])))


@st.composite
def slices(draw, length):
    start = draw(st.integers(0, max(0, length - 1)))
    stop = draw(st.integers(start + 1, max(start + 1, length)))
    return draw(st.sampled_from([slice(None), slice(start, stop), slice(start, None), slice(None, None, 2)]))


@st.composite
def indices(draw, shape):
    """An index that keeps the class dimension whole and in place."""
    if len(shape) == 1:
        return draw(st.sampled_from([slice(None), Ellipsis, (Ellipsis, slice(None))]))
    n = shape[0]
    kind = draw(st.sampled_from(["slice", "int", "index", "list", "mask", "ellipsis"]))
    some = draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=5))
    if kind == "int" and len(shape) == 2:
        return draw(st.sampled_from([some[0], torch.tensor(some[0]), (some[0], slice(None)), (some[0], Ellipsis)]))
    first = draw(slices(n))
    if kind == "index":
        first = torch.tensor(some)
    elif kind == "list":
        first = some
    elif kind == "mask":
        first = torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        first[0] = True
    box = [draw(slices(length)) for length in shape[2:]]
    if box and draw(st.booleans()):
        box[-1] = draw(st.integers(-shape[-1], shape[-1] - 1))
    if not box and draw(st.booleans()):
        return first
    return (first, Ellipsis, *box) if kind == "ellipsis" else (first, slice(None), *box)


def index(pair, draw):
    where = draw(indices(tuple(pair.soft.shape)))
    pair.apply(lambda target: target[where])


def index_select(pair, draw):
    assume(pair.soft.ndim > 1)
    rows = torch.tensor(draw(st.lists(st.integers(0, pair.soft.shape[0] - 1), min_size=1, max_size=4)))
    pair.apply(lambda target: target.index_select(0, rows))


def set_box(pair, draw):
    other = pair.other(draw(st.integers(1, 3)))
    where = draw(indices(tuple(pair.soft.shape)))
    rows = where[0] if isinstance(where, tuple) else where
    if isinstance(rows, (list, torch.Tensor)):  # which of two values for one place wins is nobody's promise
        values = torch.as_tensor(rows)
        assume(
            values.dtype == torch.bool
            or values.ndim == 0
            or len({v % pair.soft.shape[0] for v in values.tolist()}) == len(values)
        )

    def operation(target):
        target = target.clone()
        target[where] = (other[0] if isinstance(target, SoftTargets) else other[1])[where]
        return target

    pair.apply(operation)


def move(pair, draw):
    axes = [axis for axis in range(pair.soft.ndim) if axis != class_dim(pair.soft)]
    assume(axes)
    dims = draw(st.lists(st.sampled_from(axes), min_size=1, max_size=2, unique=True))
    shifts = [draw(st.integers(-3, 3)) for _ in dims]
    negative = [dim - pair.soft.ndim for dim in dims]
    pair.apply(
        draw(
            st.sampled_from(
                [
                    lambda target: torch.roll(target, shifts, dims),
                    lambda target: target.roll(shifts=tuple(shifts), dims=tuple(negative)),
                    lambda target: torch.roll(target, shifts[0], dims[0]),
                    lambda target: target.flip(*dims),
                    lambda target: torch.flip(target, dims=tuple(negative)),
                    lambda target: target.flip(dims),
                ]
            )
        )
    )


def join(pair, draw):
    axes = [axis for axis in range(pair.soft.ndim) if axis != class_dim(pair.soft)]
    assume(axes and pair.soft.numel() < 2000)
    axis = draw(st.sampled_from(axes))
    soft, dense = pair.other(draw(st.integers(1, 3)))
    name = draw(st.sampled_from([torch.cat, torch.concat, torch.concatenate]))
    pair.apply(lambda target: name([target, soft if isinstance(target, SoftTargets) else dense], dim=axis))


def cut(pair, draw):
    axes = [axis for axis in range(pair.soft.ndim) if axis != class_dim(pair.soft)]
    assume(axes)
    axis = draw(st.sampled_from(axes))
    length = pair.soft.shape[axis]
    assume(length > 0)
    size = draw(st.integers(1, length + 1))
    sections = [size - 1, length - size + 1]
    method = draw(st.sampled_from(["split", "torch.split", "sections", "chunk", "torch.chunk"]))
    ways = {
        "split": lambda target: target.split(size, axis),
        "torch.split": lambda target: torch.split(target, size, dim=axis),
        "sections": lambda target: target.split(sections, axis),
        "chunk": lambda target: target.chunk(size, axis),
        "torch.chunk": lambda target: torch.chunk(target, size, dim=axis),
    }
    pieces, dense_pieces = ways[method](pair.soft), ways[method](pair.dense)
    assert len(pieces) == len(dense_pieces)
    for piece, dense_piece in zip(pieces, dense_pieces, strict=True):
        assert_close(compact(piece).dense(), dense_piece, rtol=0, atol=8 * pair.eps * pair.scale)
    pair.soft, pair.dense = pieces[0], dense_pieces[0]
    pair.check()


def convert(pair, draw):
    pair.apply(
        draw(
            st.sampled_from(
                [
                    lambda target: target.to(torch.float32),
                    lambda target: target.to("cpu", torch.float64, non_blocking=True),
                    lambda target: target.to(torch.zeros(1, dtype=torch.float32)),
                    lambda target: target.float(),
                    lambda target: target.double(),
                    lambda target: target.bfloat16(),
                    lambda target: target.type(torch.float64),
                    lambda target: target.type_as(torch.zeros(1)),
                    lambda target: target.to(dtype=torch.float64, copy=True),
                    lambda target: target.cpu(),
                    lambda target: target.clone(),
                    lambda target: target.detach(),
                    lambda target: target.contiguous(),
                    lambda target: target.data,
                ]
            )
        )
    )


OPERATIONS = [scale, divide, add, negate, index, index_select, set_box, move, join, cut, convert]


@settings(max_examples=200)
@given(generators(), st.sampled_from(SHAPES), st.integers(1, 3), st.integers(0, 2), st.data())
def test_any_sequence_of_supported_operations_agrees_with_the_dense_tensor(generator, shape, components, ndim, data):
    prior = random_prior(shape[1 if len(shape) > 1 else 0], ndim, generator)
    pair = Pair(*random_soft_targets(shape, components, prior, generator), generator)
    for operation in data.draw(st.lists(st.sampled_from(OPERATIONS), max_size=6)):
        if pair.dense.numel() == 0:
            break
        operation(pair, data.draw)
    pair.check()
    assert pair.soft.shape == pair.dense.shape


@given(generators(), st.sampled_from(SHAPES), st.integers(1, 3), st.integers(0, 2))
def test_operations_leave_their_operands_as_they_were(generator, shape, components, ndim):
    prior = random_prior(shape[1 if len(shape) > 1 else 0], ndim, generator)
    soft, dense = random_soft_targets(shape, components, prior, generator)
    for changed in (soft * 0.5, soft.clone(), soft + soft, -soft, soft / 3):
        changed.mul_(3)
        changed.add_(soft)
        changed[...] = soft * 2
        changed.zero_()
        assert_close(changed.dense(), torch.zeros_like(dense))
        assert_close(soft.dense(), dense)


# ---------------------------------------------------------------------------------------------------------------------
# Compact means compact.

COMPACT = {
    "multiply": lambda t, o: 0.3 * t,
    "multiply rows": lambda t, o: t * torch.rand(3, 1),
    "divide": lambda t, o: t / torch.rand(3, 1),
    "add": lambda t, o: 0.3 * t + 0.7 * o,
    "subtract": lambda t, o: t - o,
    "negate": lambda t, o: -t,
    "sum": lambda t, o: sum([t, o]),
    "mix in place": lambda t, o: t.mul_(0.3).add_(0.7 * o),
    "index": lambda t, o: (t[0], t[1:], t[torch.tensor([2, 0])], t[torch.tensor([True, False, True])], t[..., :]),
    "set": lambda t, o: t.__setitem__(slice(0, 2), o[1:]),
    "roll": lambda t, o: torch.roll(t, 1, 0),
    "flip": lambda t, o: t.flip(0),
    "cat": lambda t, o: torch.cat([t, 0.5 * t + 0.5 * o]),
    "split": lambda t, o: t.split(2),
    "chunk": lambda t, o: t.chunk(2),
    "convert": lambda t, o: (t.to(torch.float64), t.bfloat16(), t.float(), t.to("cpu")),
    "copy": lambda t, o: (t.clone(), t.detach(), copy.copy(t), copy.deepcopy(t), pickle.loads(pickle.dumps(t))),
    "show": lambda t, o: (repr(t), str(t), f"{t}"),
    "metadata": lambda t, o: (t.shape, t.size(), t.dim(), t.ndim, len(t), t.numel(), t.dtype, t.device, t.is_cuda),
    "smooth again": lambda t, o: smooth_labels(torch.empty(1).expand(3, 1_000_000), t, 0.2),
}


@pytest.mark.parametrize("name", COMPACT)
def test_no_operation_of_a_target_transform_makes_anything_of_the_size_of_k(name):
    num_classes = 1_000_000
    first, second = (SoftTargets(torch.tensor([[0], [7], [5]]), num_classes, smoothing=a) for a in (0.1, 0.2))
    with Allocations(nbytes=num_classes) as made:
        COMPACT[name](first, second)
    assert made.count == 0
    with Allocations(nbytes=num_classes) as made:
        first.dense()
    assert made.count > 0  # or it could not tell


def test_a_prior_is_shared_not_copied():
    prior = torch.full((1000,), 1e-3)
    target = example(4, 1000, prior=prior)
    for changed in (0.5 * target + 0.5 * target.flip(0), target[1:], target.clone(), torch.cat([target, target])):
        assert compact(changed).prior is target.prior


def test_components_add_up_one_a_mix_and_no_more():
    target = example()
    assert (0.5 * target + 0.5 * target.roll(1, 0)).classes.shape == (4, 2)
    assert torch.cat([target, target + target]).classes.shape == (8, 2)


# ---------------------------------------------------------------------------------------------------------------------
# Everything else sees the dense tensor.

DENSE = {
    "argmax": lambda t: t.argmax(1),
    "sum": lambda t: t.sum(),
    "sum over classes": lambda t: torch.sum(t, dim=1),
    "mean": lambda t: t.mean(0),
    "max": lambda t: t.max(1).values,
    "T": lambda t: t.T,
    "matmul": lambda t: t @ torch.arange(20.0).view(5, 4),
    "rmatmul": lambda t: torch.ones(3, 4) @ t,
    "einsum": lambda t: torch.einsum("nk,nk->n", t, t),
    "compare": lambda t: t > 0.5,
    "equal": lambda t: t == t.flip(0),
    "add a number": lambda t: t + 1.0,
    "add from the left": lambda t: 1 - t,
    "add a tensor": lambda t: t + torch.ones(4, 5),
    "multiply by itself": lambda t: t * t,
    "multiply classes": lambda t: t * torch.arange(5.0),
    "multiply everything": lambda t: torch.arange(20.0).view(4, 5) * t,
    "divide by itself": lambda t: t / (t + 1),
    "divide into a number": lambda t: 2 / t,
    "divide by zero": lambda t: t / 0,
    "floor divide": lambda t: torch.div(t, 0.25, rounding_mode="floor"),
    "power": lambda t: t**2,
    "log": lambda t: t.log(),
    "one class": lambda t: t[:, 2],
    "some classes": lambda t: t[:, 1:3],
    "one entry": lambda t: t[1, 1],
    "new axis": lambda t: t[None],
    "rows and classes": lambda t: t[torch.tensor([0, 1]), torch.tensor([1, 0])],
    "rows by a matrix": lambda t: t[torch.tensor([[0, 1], [1, 2]])],
    "numpy index": lambda t: t[np.array([2, 0])],
    "empty list": lambda t: t[[]],
    "two ellipses": lambda t: t[..., ...],
    "roll classes": lambda t: t.roll(1, 1),
    "flip classes": lambda t: t.flip(1),
    "flip both": lambda t: t.flip(0, 1),
    "cat classes": lambda t: torch.cat([t, t], 1),
    "cat a dense one": lambda t: torch.cat([t, torch.ones(1, 5)]),
    "stack": lambda t: torch.stack([t, t]),
    "view": lambda t: t.view(2, 2, 5),
    "permute": lambda t: t.permute(1, 0),
    "unsqueeze": lambda t: t.unsqueeze(0),
    "complex": lambda t: t.to(torch.complex64),
    "keywords": lambda t: torch.mul(input=t, other=2.0),
    "keyword input": lambda t: torch.flip(input=t, dims=(0,)),
    "to a plain tensor": lambda t: torch.add(t, t, out=torch.empty(4, 5)),
    "copied into a plain tensor": lambda t: torch.empty(4, 5).copy_(t),
    "set in a plain tensor": lambda t: torch.zeros(4, 5).index_copy(0, torch.arange(4), t),
    "where": lambda t: torch.where(t > 0.5, t, -t),
    "zeros like": torch.zeros_like,
    "softmax": lambda t: F.softmax(t, dim=1),
    "mse loss": lambda t: F.mse_loss(torch.zeros(4, 5), t),
    "kl": lambda t: F.kl_div(torch.zeros(4, 5), t, reduction="sum"),
    "bce": lambda t: F.binary_cross_entropy_with_logits(torch.zeros(4, 5), t),
    "as logits": lambda t: F.cross_entropy(t, torch.tensor([0, 1, 2, 3])),
    "as logits of itself": lambda t: F.cross_entropy(t, t),
    "contains": lambda t: torch.tensor(2.0 in t),
    "iteration": lambda t: torch.cat(list(t)),
    "unbind": lambda t: torch.stack(t.unbind(0)),
    "numpy": lambda t: torch.from_numpy(t.numpy()),
    "as array": lambda t: torch.from_numpy(np.asarray(t)),
    "lists": lambda t: torch.tensor(t.tolist()),
    "vmap": torch.vmap(lambda row: row * row.sum()),
}


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("mixed", [False, True])
def test_any_other_operation_sees_the_dense_tensor(name, mixed):
    target = example()
    target = 0.7 * target + 0.3 * target.flip(0) if mixed else target
    result = DENSE[name](target)
    assert isinstance(result, torch.Tensor)
    assert_close(result, DENSE[name](target.dense()), equal_nan=True)


def test_a_factor_that_learns_gets_its_gradient():
    share = torch.tensor(0.3, requires_grad=True)
    target = example()
    (target * share + target.flip(0) * (1 - share)).square().sum().backward()
    dense, expected = target.dense(), torch.tensor(0.3, requires_grad=True)
    (dense * expected + dense.flip(0) * (1 - expected)).square().sum().backward()
    assert_close(share.grad, expected.grad)


@pytest.mark.parametrize("detach", [torch.detach, lambda t: t.data, lambda t: t.clone().detach_()])
def test_what_is_detached_learns_nothing(detach):
    labels, learns = torch.arange(4), [torch.rand(shape, requires_grad=True) for shape in ((4, 1), (4,), (5,))]
    weights, smoothing, prior = learns
    target = smooth_labels(torch.zeros(4, 5), labels, smoothing, prior=prior, validate=False) * weights
    detached = detach(target)
    logits = torch.randn(4, 5)
    assert isinstance(detached, SoftTargets)
    assert not F.cross_entropy(logits, detached).requires_grad
    assert_close(detached.dense(), target.dense().detach())
    both = F.cross_entropy(logits, target.detach() + target)
    dense = F.cross_entropy(logits, target.dense().detach() + target.dense())
    assert_close(torch.autograd.grad(both, learns, retain_graph=True), torch.autograd.grad(dense, learns))


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("join", [operator.add, lambda a, b: torch.cat([a, b])])
def test_a_prior_that_learns_is_another_than_the_same_numbers_that_do_not(order, join):
    prior = torch.full((5,), 0.2, requires_grad=True)
    pair = [smooth_labels(torch.zeros(4, 5), torch.arange(4), 0.3, prior=q) for q in (prior, prior.detach())]
    pair, weight = pair[::order], torch.arange(5.0)
    found, expected = (join(*targets) @ weight for targets in (pair, [target.dense() for target in pair]))
    assert_close(*(torch.autograd.grad(one.sum(), prior, retain_graph=True)[0] for one in (found, expected)))


def test_priors_that_differ_are_added_and_joined_densely():
    one, other = example(prior=torch.eye(5)[0]), example(prior=torch.eye(5)[1])
    assert_close(one + other, one.dense() + other.dense())
    assert_close(torch.cat([one, other]), torch.cat([one.dense(), other.dense()]))
    with pytest.raises(TargetError, match=r"cannot hold the result of __setitem__"):
        one[:2] = other[2:]


@pytest.mark.parametrize(
    "operation",
    [
        lambda t: t[9],
        lambda t: t[:, :, 0],
        lambda t: t[torch.tensor([9])],
        lambda t: t[torch.tensor([True])],
        lambda t: t.roll((1, 2), (0,)),
        lambda t: t.roll(1, 5),
        lambda t: t.flip(0, 0),
        lambda t: t + torch.ones(3, 5),
        lambda t: t + t[:3],
        lambda t: t.split([1, 1]),
        lambda t: torch.cat([t, t[0]]),
        lambda t: t * "2",
        lambda t: t.__setitem__(slice(0, 3), t[:2]),
        lambda t: t.__setitem__(9, t[0]),
        lambda t: t.copy_(torch.ones(3, 5)),
        lambda t: t["2"],
        lambda t: t.index_select(0, torch.tensor([-1])),
        lambda t: t.index_select(0, torch.tensor([[1]])),
        lambda t: torch.index_select(t, 0, torch.tensor([0, -1])),
        lambda t: t.index_select(0, torch.tensor([True])),
    ],
)
def test_what_the_dense_tensor_refuses_is_refused(operation):
    target = example()
    with pytest.raises((IndexError, RuntimeError, ValueError, TypeError)) as dense_error:
        operation(target.dense())
    with pytest.raises((IndexError, RuntimeError, ValueError, TypeError)):
        operation(target)
    assert dense_error.value.args


def test_a_row_is_not_mistaken_for_a_line_of_positions():
    target, row = example(2, 3), SoftTargets(torch.tensor([2]), 3)
    maps = smooth_labels(torch.zeros(2, 3, 3), torch.zeros(2, 3).long())
    for value in (row, target[:1]):  # their 3 classes meet the 3 positions
        with pytest.raises(TargetError, match=r"cannot hold the result of __setitem__"):
            maps[0:2] = value


def test_one_row_can_be_set_in_many_places():
    target, expected = example(), example().dense()
    target[1:3], expected[1:3] = target[0:1].clone(), expected[0:1].clone()
    assert_close(compact(target).dense(), expected)


# ---------------------------------------------------------------------------------------------------------------------
# Operations in place change the object, or are refused: none goes nowhere.


def mix(t):
    t *= 0.7
    t += 0.3 * t.flip(0)
    t -= 0.1 * t
    t /= 2


def set_box(t):
    t[1:3] = 0.5 * t.flip(0)[1:3]


IN_PLACE = {
    "mul_": lambda t: t.mul_(0.5),
    "mul_ by keyword": lambda t: t.mul_(other=2),
    "div_": lambda t: t.div_(torch.full((4, 1), 3.0)),
    "mix": mix,
    "zero_": lambda t: t.zero_(),
    "set rows": set_box,
    "twice": lambda t: t.mul_(0.5).add_(t.flip(0)),
    "of an alias that is the object": lambda t: t.contiguous().mul_(0.5),
}


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("prior", [None, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0])])
def test_an_operation_in_place_changes_the_object_as_it_would_the_dense_tensor(name, prior):
    target = example(prior=prior)
    expected, before = target.dense(), target.dense()
    result, dense_result = IN_PLACE[name](target), IN_PLACE[name](expected)
    assert (result is target) == (dense_result is expected)
    assert (result is None) == (dense_result is None)
    assert_close(target.dense(), expected)
    assert not torch.equal(target.dense(), before)
    logits = torch.linspace(-1, 1, 20).view(4, 5)  # any loss sees the change too
    assert_close(F.cross_entropy(logits, target), F.cross_entropy(logits, expected))
    assert_close((0.5 * target + 0.5 * target.flip(0)).to_dense(), 0.5 * expected + 0.5 * expected.flip(0))


def set_rows(t):
    t[1:3] = torch.arange(5.0)


def set_entries(t):
    t[:, 1] = -1.0


def every_row(t):
    for row in t:
        row.mul_(0)


def give_data(t):
    t.data = torch.ones(4, 5)


def give_gradient(t):
    t.requires_grad = True


def imul_of_part(t):
    t[0:2] *= 0


REFUSED = {
    "*= dense": lambda t: t.mul_(torch.arange(5.0)),
    "add_ a number": lambda t: t.add_(1.0, alpha=2),
    "sub_": lambda t: t.sub_(torch.ones(5)),
    "fill_": lambda t: t.fill_(0.2),
    "copy_": lambda t: t.copy_(torch.arange(20.0).view(4, 5)),
    "clamp_": lambda t: t.clamp_(0, 1),
    "lerp_": lambda t: t.lerp_(torch.ones(4, 5), 0.3),
    "index_copy_": lambda t: t.index_copy_(0, torch.tensor([1]), torch.ones(1, 5)),
    "set rows": set_rows,
    "set entries": set_entries,
    "out": lambda t: torch.mul(torch.ones(4, 5), 3.0, out=t),
    "initialise": torch.nn.init.ones_,
    "transpose": torch.Tensor.t_,
    "unsqueeze": lambda t: t.unsqueeze_(0),
    "resize": lambda t: t.resize_(2, 2),
    "a slice": lambda t: t[0:2].mul_(0),
    "a slice of a slice": lambda t: t[0:3][0:2].mul_(0),
    "*= of a slice": imul_of_part,
    "one row": lambda t: t[1].mul_(0),
    "every row": every_row,
    "a piece": lambda t: t.split(2)[0].mul_(0),
    "a chunk": lambda t: t.chunk(2)[0].zero_(),
    "assign in a slice": lambda t: t[0:2].__setitem__(0, t[3]),
    "what is detached": lambda t: t.detach().mul_(0),
    "data": lambda t: t.data.mul_(0),
    "set data": give_data,
    "set requires_grad": give_gradient,
    "one class": lambda t: t[:, 1].fill_(0),
    "transposed": lambda t: t.T.mul_(0),
    "a view": lambda t: t.view(-1).zero_(),
    "a row of a transposed one": lambda t: t.T[0].zero_(),
    "a view of a view of a view": lambda t: t.unsqueeze(0)[0][:, 0].view(-1).zero_(),
    "a piece of a transposed one": lambda t: t.T.split(2)[1].mul_(0),
    "what is detached from a view": lambda t: t.T.detach().mul_(0),
    "out of a view of a view": lambda t: torch.mul(torch.ones(4), 2, out=t.T[0]),
    "unbound classes": lambda t: t.unbind(1)[0].mul_(0),
    "out of a view": lambda t: torch.mul(torch.ones(20), 2, out=t.view(-1)),
    "item of a view": lambda t: t.view(-1).__setitem__(0, 1.0),
    "a list": lambda t: torch._foreach_mul_([torch.ones(2), t], 0.5),
    "a list of outs": lambda t: torch.aminmax(torch.ones(4, 5), out=(t, torch.ones(4, 5))),
    "relu": lambda t: F.relu(t, inplace=True),
    "relu_": lambda t: F.relu_(t),
    "dropout": lambda t: F.dropout(t, 1.0, True, True),
    "a module": torch.nn.Hardtanh(0.0, 0.5, inplace=True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_write_that_would_be_lost_is_refused_and_changes_nothing(name):
    target = example()
    with pytest.raises(
        (TargetError, TypeError), match=r"SoftTargets (cannot|as a whole cannot require)|would change a part"
    ):
        REFUSED[name](target)
    assert_close(target.dense(), example().dense())


def test_writes_that_only_read_a_target_and_lists_that_are_only_read_are_allowed():
    target, plain = example(), torch.ones(4, 5)
    assert_close(torch.cat([target, target]).dense(), torch.cat([target.dense()] * 2))
    assert_close(torch.cat([target, plain]), torch.cat([target.dense(), plain]))
    assert_close(torch._foreach_mul([target], 0.5)[0], 0.5 * target.dense())
    torch._foreach_add_([plain], [target])
    assert_close(plain, 1 + target.dense())
    assert_close(F.relu(target - 2 * target), torch.zeros(4, 5))
    assert_close(F.dropout(target, 0.0, True, False), target.dense())
    assert_close(target.type_as(plain.double()).dense(), target.dense().double())
    assert F.relu(plain, inplace=True) is plain


def test_what_is_no_alias_can_be_written_to():
    target, expected = example(), example().dense()
    for changed in (target.clone(), target[torch.tensor([0, 1])], 2 * target, target.flip(0), target.double()):
        changed.mul_(0)
        assert not changed.dense().any()
    for view in (target[:, 1], target.T, target.view(-1), target.T[0]):  # they are read as ever
        assert_close(view + view, 2 * view.clone())
        for made in (view.clone(), 2 * view, view.double()):
            assert type(made.zero_()) is torch.Tensor
    assert_close(target.dense(), expected)


# ---------------------------------------------------------------------------------------------------------------------
# What reads labels has no meaning here.

LABELS = torch.arange(4)
READS_LABELS = {
    "!= -100": lambda t: t != -100,
    "==": lambda t: t == 3,
    ">=": lambda t: t >= 0,
    "eq": lambda t: torch.eq(t, np.int64(1)),
    "labels ==": lambda t: torch.arange(5) == t,
    "predictions ==": lambda t: t.argmax(1, keepdim=True) == t,
    "isin": lambda t: torch.isin(t, torch.tensor([-100])),
    "long": lambda t: t.long(),
    "int": lambda t: t.int(),
    "bool": lambda t: t.bool(),
    "to": lambda t: t.to(torch.int64),
    "to device and dtype": lambda t: t.to("cpu", torch.int32),
    "to another's dtype": lambda t: t.to(LABELS),
    "type": lambda t: t.type(torch.LongTensor),
    "type_as": lambda t: t.type_as(LABELS),
    "type_as by keyword": lambda t: t.type_as(other=LABELS),
    "mask over classes": lambda t: t[torch.ones(4, 5, dtype=torch.bool)],
    "roll": lambda t: torch.roll(t, 1),
    "roll as a method": lambda t: t.roll(shifts=1),
    "roll by keyword": lambda t: torch.roll(input=t, shifts=1),
    "nll_loss": lambda t: F.nll_loss(torch.zeros(4, 5), t),
    "nll_loss by keyword": lambda t: F.nll_loss(torch.zeros(4, 5), target=t),
    "multi_margin_loss": lambda t: F.multi_margin_loss(torch.zeros(4, 5), t),
    "gather": lambda t: torch.zeros(4, 5).gather(1, t),
    "one_hot": lambda t: F.one_hot(t, 5),
    "embedding": lambda t: F.embedding(t, torch.zeros(5, 2)),
    "masked_fill": lambda t: t.masked_fill(torch.ones(5, dtype=torch.bool), -100),
    "masked_fill by keyword": lambda t: t.masked_fill(torch.ones(4, 1, dtype=torch.bool), value=255),
    "where": lambda t: torch.where(torch.ones(5, dtype=torch.bool), t, -100),
    "where as a method": lambda t: t.where(torch.ones(5, dtype=torch.bool), torch.tensor(255)),
    "where in other labels": lambda t: torch.where(torch.ones(5, dtype=torch.bool), torch.arange(5), t),
    "index_fill": lambda t: t.index_fill(0, torch.tensor([1]), -100),
    "masked_scatter": lambda t: t.masked_scatter(torch.ones(5, dtype=torch.bool), torch.full((20,), -100)),
}


@pytest.mark.parametrize("name", READS_LABELS)
def test_what_reads_labels_is_refused_with_the_way_out(name):
    with pytest.raises(TargetError, match=r"(?s)LabelSmoothing.*The loss must take distributions.*dense\(\)"):
        READS_LABELS[name](example())


@pytest.mark.parametrize(
    "fill",
    [
        lambda t, rows: t.masked_fill(rows, 0),
        lambda t, rows: t.masked_fill(mask=rows, value=0.0),
        lambda t, rows: torch.where(rows, 0, t),
        lambda t, rows: t.where(~rows, 0),
    ],
)
def test_rows_and_classes_can_be_filled_with_zeros(fill):
    target = example()
    for mask in (torch.tensor([True, False, False, True])[:, None], torch.arange(5).expand(4, 5) == 2):
        torch.testing.assert_close(fill(target, mask), target.dense() * ~mask)
    with pytest.raises(TargetError, match="class ids"):
        target.masked_fill(torch.ones(5, dtype=torch.bool), 0)  # of 5 labels, perhaps


def test_a_loss_that_drops_ignored_labels_itself_is_refused_not_wrong():
    logits, target = torch.randn(4, 5), example()

    def loss(logits, labels):
        counted = labels != -100
        return F.cross_entropy(logits[counted], labels[counted])

    with pytest.raises(TargetError, match="compares class ids"):
        loss(logits, target)


def test_soft_targets_take_no_gradient():
    target = example()
    assert target.requires_grad_(False) is target
    assert target.detach_() is target
    with pytest.raises(TypeError, match=r"as a whole cannot require a gradient: .*call \.dense\(\)"):
        target.requires_grad_()


# ---------------------------------------------------------------------------------------------------------------------
# Construction, copies, print, and the places that tensors go.


@given(generators(), st.sampled_from(SHAPES), st.integers(1, 3), st.integers(0, 2))
def test_dense_is_the_formula(generator, shape, components, ndim):
    prior = random_prior(shape[1 if len(shape) > 1 else 0], ndim, generator)
    soft, dense = random_soft_targets(shape, components, prior, generator)
    assert soft.num_classes == shape[class_dim(dense)]
    assert_close(soft.dense(), dense)
    assert type(soft.dense()) is torch.Tensor
    assert soft.dense() is not soft.dense()


def test_fields_of_low_precision_or_integers_lose_nothing_later():
    classes = torch.tensor([[0], [1]])
    for weights in (torch.tensor([[1], [3]]), torch.tensor([[1.0], [3.0]]).bfloat16(), torch.tensor(3)):
        target = 0.3 * SoftTargets(classes, 3, weights) + 0.7 * SoftTargets(classes.flip(0), 3, 0.123)
        expected = 0.3 * dense_reference(classes, 3, weights) + 0.7 * dense_reference(classes.flip(0), 3, 0.123)
        assert_close(target.dense().double(), expected, rtol=1e-6, atol=1e-6)


def test_a_number_in_a_tensor_is_copied_and_still_learns():
    x, labels = torch.zeros(4, 5), torch.arange(4)
    smoothing, weight = torch.tensor(0.1), torch.tensor(0.5)
    smoothed, weighted = smooth_labels(x, labels, smoothing), SoftTargets(labels[:, None], 5, weight)
    expected = smoothed.dense(), weighted.dense()
    smoothing.fill_(0.9)
    weight.fill_(3.0)
    assert_close((smoothed.dense(), weighted.dense()), expected)
    for one in (torch.tensor(0.1, requires_grad=True), torch.tensor(0.1, dtype=torch.float64, requires_grad=True)):
        cross_entropy(torch.arange(20.0).view(4, 5), smooth_labels(x, labels, one)).backward()
        assert one.grad is not None
        assert one.grad != 0


@pytest.mark.parametrize("alpha", [1, 2, 0.5])
def test_adding_to_zero_multiplies_by_alpha(alpha):
    target = example()
    assert_close(compact(torch.add(0, target, alpha=alpha)).dense(), torch.add(0, target.dense(), alpha=alpha))
    assert_close(compact(torch.add(target, 0, alpha=alpha)).dense(), target.dense())
    assert_close(compact(sum([target, target])).dense(), 2 * target.dense())


def test_an_index_without_dimensions_selects_one_row_as_of_a_dense_tensor():
    target = example()
    assert_close(target.index_select(0, torch.tensor(1)), target.dense().index_select(0, torch.tensor(1)))
    rows = torch.tensor([3, 0])
    selected = torch.compile(lambda t, rows: t.index_select(0, rows).dense(), backend="eager", fullgraph=True)
    assert_close(selected(target, rows), target.dense()[rows])


def test_numbers_keep_float64_beside_fields_of_float32():
    classes, weights = torch.tensor([[0], [1]]), torch.tensor([[1.0], [3.0]])
    one, other = (SoftTargets(classes, 3, w, dtype=torch.float64) for w in (weights, 0.1))
    expected = [dense_reference(classes, 3, w) for w in (weights, 0.1)]
    changed = one.clone()
    changed[:1] = other[:1]
    assert_close((one + other).dense(), sum(expected), rtol=0, atol=1e-12)
    assert_close(torch.cat([one, other]).dense(), torch.cat(expected), rtol=0, atol=1e-12)
    assert_close(changed.dense(), torch.cat([expected[1][:1], expected[0][1:]]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (
            TypeError,
            r"classes must be an integer tensor, but its dtype is torch\.float32",
            {"classes": torch.zeros(2, 1)},
        ),
        (TypeError, r"its dtype is torch\.bool", {"classes": torch.zeros(2, 1).bool()}),
        (TypeError, r"dtype must be floating, but is torch\.int64", {"dtype": torch.int64}),
        (ValueError, r"must have a component dimension: \(N, J, \*spatial\), or \(J,\)", {"classes": torch.tensor(1)}),
        (ValueError, r"prior has shape \(4,\), but must be \(3,\) or \(3, 3\) for num_class", {"prior": torch.ones(4)}),
        (
            ValueError,
            r"weights has shape \(3, 1\), which does not broadcast to classes \(2, 1\)",
            {"weights": torch.ones(3, 1)},
        ),
        (ValueError, r"smoothing has shape \(2, 2\), which does not broadcast", {"smoothing": torch.ones(2, 2)}),
        (ValueError, r"weights has shape \(1, 2, 1\)", {"weights": torch.ones(1, 2, 1)}),
    ],
)
def test_what_cannot_be_a_target_is_refused_with_the_reason(error, message, arguments):
    with pytest.raises(error, match=message):
        SoftTargets(**{"classes": torch.zeros(2, 1).long(), "num_classes": 3, **arguments})


def test_print_tells_what_it_is_and_not_k_numbers_a_row():
    target = SoftTargets(torch.tensor([[0], [99_999]]), 100_000, smoothing=0.25)
    text = "SoftTargets(shape=(2, 100000), components=1, smoothing=0.25, prior=uniform, dtype=float32, device=cpu)"
    assert repr(target) == str(target) == f"{target}" == f"{target!s}" == format(target) == text
    assert f"{target:>110}" == text.rjust(110)
    assert repr([target]) == f"[{text}]"
    per_row = smooth_labels(torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([0.1, 0.2]), prior=torch.eye(3))
    assert "smoothing=(2, 1), prior=row per class" in repr(per_row)
    assert "prior=row," in repr(example(prior=torch.full((5,), 0.2)))


def copies():
    def saved(target):
        file = io.BytesIO()
        torch.save(target, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    return {
        "copy": copy.copy,
        "deepcopy": copy.deepcopy,
        "pickle": lambda target: pickle.loads(pickle.dumps(target)),
        "save": saved,
        "clone": torch.clone,
        "deepcopy of a batch": lambda target: copy.deepcopy({"batch": [target, target]})["batch"][1],
    }


@pytest.mark.parametrize("name", copies())
@pytest.mark.parametrize("prior", [None, torch.full((5,), 0.2), torch.eye(5)])
def test_a_copy_is_equal_and_keeps_its_form(name, prior):
    target = example(prior=prior, dtype=torch.bfloat16)
    target = 0.7 * target + 0.3 * target.flip(0)
    copied = compact(copies()[name](target))
    assert copied.dtype == target.dtype
    assert torch.equal(copied.dense(), target.dense())
    copied.zero_()
    assert target.dense().sum() > 0
    if name == "deepcopy":
        assert copied.classes.data_ptr() != target.classes.data_ptr()


def test_a_batch_that_is_deepcopied_keeps_its_identities():
    target = example()
    first, second = copy.deepcopy([target, target])
    assert first is second


def test_collate_stacks_rows_as_it_does_dense_ones():
    target = example()
    batch = default_collate([{"y": row} for row in (target[0], target[3])])
    assert_close(batch["y"], target.dense()[[0, 3]])


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_compile_takes_and_makes_soft_targets():
    def train_loss(logits, target):
        mixed = target * 0.7 + target.flip(0) * 0.3
        return F.cross_entropy(logits * 2, mixed)

    def label_loss(logits, labels):
        return cross_entropy(logits * 2, smooth_labels(logits, labels, 0.2))

    labels = torch.tensor([0, 3, 1])
    for function, target in ((train_loss, example(3, 4)), (label_loss, labels)):
        torch._dynamo.reset()
        compiled = torch.compile(function, backend="eager")
        for _ in range(2):
            logits = torch.randn(3, 4, requires_grad=True)
            expected, actual = function(logits, target), compiled(logits, target)
            assert_close(actual, expected)
            assert_close(torch.autograd.grad(actual, logits), torch.autograd.grad(expected, logits))


def test_compile_takes_views_of_the_dense_tensor():
    view = example().T
    for function in (lambda rows: 2 * rows[0], lambda rows: rows.T.reshape(-1)[2:]):
        compiled = torch.compile(function, backend="aot_eager")
        assert_close(compiled(view), function(example().dense().T))


def test_autocast_leaves_it_the_same():
    target, x = example(), torch.randn(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close((0.3 * compact(0.5 * target)).dense(), 0.15 * target.dense())
        assert_close(x @ target.T, x @ target.dense().T)


def test_inference_mode_and_no_grad_are_no_matter():
    expected = example().dense()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            target = example()
            target *= 0.5
            target += target.flip(0)
            assert_close(target.dense(), 0.5 * (expected + expected.flip(0)))
            assert_close(target.argmax(1), (expected + expected.flip(0)).argmax(1))
