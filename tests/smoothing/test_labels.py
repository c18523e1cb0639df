"""smooth_labels: what it makes of labels, dense rows and SoftTargets, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import SPATIAL, class_dim, dense_reference, generators, random_prior, random_soft_targets
from torch.nn import functional as F
from torch.testing import assert_close

from composer_ls import SoftTargets, cross_entropy, smooth_labels

ALPHAS = st.sampled_from([0, 0.0, 0.1, 0.5, 0.9, 1.0, 1])


def composer_smooth_labels(*args):
    """Composer's function, imported here because the method does not depend on Composer."""
    return pytest.importorskip("composer.algorithms.label_smoothing").smooth_labels(*args)


def shaped(spatial, num_classes):
    """The shape of logits and of labels: (N, K, *spatial) and (N, *spatial), or (K,) and ()."""
    return ((num_classes,), ()) if spatial is None else ((3, num_classes, *spatial), (3, *spatial))


def one_hot(labels, num_classes):
    rows = F.one_hot(labels, num_classes)
    return rows if labels.ndim == 0 else rows.movedim(-1, 1)


@given(generators(), st.sampled_from(SPATIAL), st.integers(1, 5), ALPHAS, st.integers(0, 2), st.booleans())
def test_labels_become_the_mixture_of_the_formula(generator, spatial, num_classes, alpha, prior_ndim, ignore):
    shape, label_shape = shaped(spatial, num_classes)
    logits = torch.randn(shape, dtype=torch.float64, generator=generator)
    labels = torch.randint(num_classes, label_shape, generator=generator)
    prior = random_prior(num_classes, prior_ndim, generator)
    ignored = torch.rand(label_shape, generator=generator) < 0.3 if ignore else torch.zeros(label_shape).bool()
    soft = smooth_labels(logits, labels.masked_fill(ignored, -100), alpha, prior=prior)
    assert isinstance(soft, SoftTargets)
    assert soft.shape == logits.shape
    assert soft.dtype == logits.dtype
    dim = class_dim(logits)
    expected = dense_reference(labels.unsqueeze(dim), num_classes, (~ignored).double().unsqueeze(dim), alpha, prior)
    assert_close(soft.dense(), expected)
    assert_close(soft.dense().sum(dim), (~ignored).double())  # rule 5


@given(generators(), st.sampled_from(SPATIAL), st.integers(1, 5), ALPHAS, st.integers(0, 2))
def test_labels_and_their_one_hot_rows_of_any_dtype_are_smoothed_alike(generator, spatial, num_classes, alpha, ndim):
    shape, label_shape = shaped(spatial, num_classes)
    logits = torch.randn(shape, generator=generator)
    labels = torch.randint(num_classes, label_shape, generator=generator)
    prior = random_prior(num_classes, ndim, generator)
    expected = smooth_labels(logits, labels, alpha, prior=prior).dense()
    rows = one_hot(labels, num_classes)
    for dtype in (torch.int64, torch.uint8, torch.bool, torch.float32, torch.float64):
        smoothed = smooth_labels(logits, rows.to(dtype), alpha, prior=prior)
        assert type(smoothed) is torch.Tensor
        assert smoothed.is_floating_point()
        assert_close(smoothed, expected, check_dtype=False)


@given(generators(), st.sampled_from(SPATIAL), st.integers(1, 5), ALPHAS, st.integers(0, 2), st.integers(1, 3))
def test_soft_targets_are_smoothed_like_their_dense_rows(generator, spatial, num_classes, alpha, ndim, components):
    shape, _ = shaped(spatial, num_classes)
    logits = torch.randn(shape, dtype=torch.float64, generator=generator)
    prior = random_prior(num_classes, ndim, generator)
    soft, dense = random_soft_targets(shape, components, prior, generator)
    for second_prior in (prior, random_prior(num_classes, 2, generator), None):
        expected = smooth_labels(logits, dense, alpha, prior=second_prior, validate=False)
        assert_close(smooth_labels(logits, soft, alpha, prior=second_prior).to_dense(), expected)


def test_smoothing_twice_with_one_row_stays_compact():
    logits, labels = torch.zeros(3, 4), torch.tensor([0, 3, -100])
    for prior in (None, torch.tensor([0.1, 0.2, 0.3, 0.4])):
        twice = smooth_labels(logits, smooth_labels(logits, labels, 0.1, prior=prior), 0.2, prior=prior)
        assert isinstance(twice, SoftTargets)
        assert_close(twice.dense(), smooth_labels(logits, labels, 0.28, prior=prior).dense())


def test_mixed_hard_labels_can_be_smoothed_afterwards_with_any_prior():
    logits, labels = torch.zeros(4, 3), torch.tensor([0, 1, 2, -100])
    prior = torch.tensor([[0.0, 0.5, 0.5], [0.9, 0.0, 0.1], [1.0, 0.0, 0.0]])
    hard, soft = smooth_labels(logits, labels, 0.0), smooth_labels(logits, labels, 0.3, prior=prior)
    mixed_first = smooth_labels(logits, 0.7 * hard + 0.3 * hard.roll(1, 0), 0.3, prior=prior)
    assert isinstance(mixed_first, SoftTargets)
    assert_close(mixed_first.dense(), (0.7 * soft + 0.3 * soft.roll(1, 0)).dense())


@given(generators(), st.sampled_from(SPATIAL), st.integers(2, 5), st.sampled_from([0, 0.1, 0.5, 1.0]))
def test_spread_others_gives_each_incorrect_class_its_share(generator, spatial, num_classes, epsilon):
    shape, label_shape = shaped(spatial, num_classes)
    logits = torch.randn(shape, dtype=torch.float64, generator=generator)
    labels = torch.randint(num_classes, label_shape, generator=generator)
    rows = one_hot(labels, num_classes).double()
    expected = rows * (1 - epsilon) + (1 - rows) * epsilon / (num_classes - 1)
    assert_close(smooth_labels(logits, labels, epsilon, spread="others").dense(), expected)
    assert_close(smooth_labels(logits, rows, epsilon, spread="others"), expected)
    each = torch.full(label_shape, float(epsilon), dtype=torch.float64)
    assert_close(smooth_labels(logits, labels, each, spread="others").dense(), expected)


@given(generators(), st.sampled_from(SPATIAL), st.integers(1, 5), st.integers(0, 2))
def test_each_example_may_have_its_own_smoothing(generator, spatial, num_classes, ndim):
    shape, label_shape = shaped(spatial, num_classes)
    dim = 0 if spatial is None else 1
    logits = torch.randn(shape, dtype=torch.float64, generator=generator)
    labels = torch.randint(num_classes, label_shape, generator=generator)
    prior = random_prior(num_classes, ndim, generator)
    each = torch.rand(label_shape, dtype=torch.float64, generator=generator)
    expected = dense_reference(labels.unsqueeze(dim), num_classes, 1.0, each.unsqueeze(dim), prior)
    rows = one_hot(labels, num_classes).double()
    hard = smooth_labels(logits, labels, 0.0)
    for target in (labels, rows, hard):
        assert_close(smooth_labels(logits, target, each, prior=prior).to_dense(), expected)


@given(generators(), st.sampled_from(SPATIAL))
def test_smoothing_zero_gives_the_hard_loss(generator, spatial):
    shape, label_shape = shaped(spatial, 4)
    logits = torch.randn(shape, dtype=torch.float64, generator=generator)
    labels = torch.randint(4, label_shape, generator=generator)
    expected = F.cross_entropy(logits, labels)  # rule 2
    assert_close(cross_entropy(logits, smooth_labels(logits, labels, 0.0)), expected)
    assert_close(cross_entropy(logits, smooth_labels(logits, one_hot(labels, 4).double(), 0.0)), expected)


@pytest.mark.parametrize("alpha", [0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_agrees_with_composer_on_valid_labels(alpha, num_classes):
    logits, labels = torch.randn(64, num_classes).softmax(1), torch.randint(num_classes, (64,))
    rows = F.one_hot(labels, num_classes)
    reference = rows * (1 - alpha) + alpha / num_classes  # what Composer's own tests expect
    for target in (labels, rows):
        assert_close(smooth_labels(logits, target, alpha), reference)
        assert_close(smooth_labels(logits, target, alpha), composer_smooth_labels(logits, target, alpha))


def test_agrees_with_composer_on_label_maps():
    logits, labels = torch.randn(2, 5, 3, 4), torch.randint(5, (2, 3, 4))
    assert_close(smooth_labels(logits, labels, 0.2), composer_smooth_labels(logits, labels, 0.2))


@pytest.mark.parametrize("ignore_index", [-100, 255, 1])
def test_ignored_labels_get_no_mass(ignore_index):
    labels = torch.tensor([0, ignore_index, 2])
    rows = smooth_labels(torch.zeros(3, 3), labels, 0.3, ignore_index=ignore_index).dense()
    assert_close(rows.sum(1), torch.tensor([1.0, 0.0, 1.0]))
    assert torch.equal(rows[1], torch.zeros(3))


def test_labels_of_bytes_are_classes_even_where_they_wrap_to_the_ignored_one():
    labels = torch.tensor([156, 0, 255], dtype=torch.uint8)
    rows = smooth_labels(torch.zeros(3, 200), labels, 0.0, ignore_index=255).dense()
    assert rows[0, 156] == 1
    unseen = smooth_labels(torch.zeros(2, 200), labels[:2], 0.0, validate=False).dense()  # -100 wraps to 156
    assert unseen[0, 156] == 1


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8])
def test_labels_may_have_any_integer_dtype(dtype):
    labels = torch.tensor([0, 3, 2])
    assert_close(smooth_labels(torch.zeros(3, 4), labels.to(dtype)), smooth_labels(torch.zeros(3, 4), labels).dense())


def test_the_labels_of_the_user_are_never_changed():
    labels, rows = torch.tensor([0, -100, 2]), torch.eye(3)
    kept = labels.clone(), rows.clone()
    logits = torch.zeros(3, 3)
    soft = smooth_labels(logits, labels, 0.3)
    soft.mul_(0.5)
    soft[0:1] = soft[2:3]
    soft.zero_()
    smooth_labels(logits, rows, 0.3)
    assert torch.equal(labels, kept[0])
    assert torch.equal(rows, kept[1])


def test_only_the_shape_of_the_logits_is_read():
    labels = torch.tensor([0, 2])
    logits = torch.full((2, 3), float("nan"), requires_grad=True)
    soft = smooth_labels(logits, labels, 0.3)
    assert_close(soft, smooth_labels(torch.zeros(2, 3), labels, 0.3).dense())
    assert not soft.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_target_has_the_dtype_of_the_logits(dtype):
    assert smooth_labels(torch.zeros(1, 3, dtype=dtype), torch.tensor([1])).dense().dtype == dtype
    assert smooth_labels(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([1])).dtype == torch.float32


@pytest.mark.parametrize("empty", [(0, 3), (2, 3, 0)])
def test_nothing_to_smooth_is_smoothed(empty):
    labels = torch.empty((empty[0], *empty[2:]), dtype=torch.long)
    assert smooth_labels(torch.zeros(empty), labels).dense().shape == empty


def test_numbers_of_numpy_and_0_dim_tensors_are_numbers():
    logits, labels = torch.zeros(2, 4), torch.tensor([1, 2])
    expected = smooth_labels(logits, labels, 0.25).dense()
    for amount in (np.float32(0.25), np.float64(0.25), torch.tensor(0.25)):
        assert_close(smooth_labels(logits, labels, amount), expected)


LOGITS, LABELS = torch.zeros(3, 4), torch.tensor([0, 1, 2])


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, 2, -1, math.inf, np.float32(1.5)])
def test_smoothing_outside_0_to_1_is_refused(smoothing):
    with pytest.raises(ValueError, match=rf"smoothing must be in \[0, 1\], but is {float(smoothing):g}"):
        smooth_labels(LOGITS, LABELS, smoothing)


def test_smoothing_that_is_nan_is_refused():
    with pytest.raises(ValueError, match=r"smoothing must be in \[0, 1\], but is nan"):
        smooth_labels(LOGITS, LABELS, math.nan)


@pytest.mark.parametrize(
    ("smoothing", "message"),
    [
        ("0.1", r"smoothing must be a number in \[0, 1\], but is '0\.1' \(str\)"),
        (None, r"is None \(NoneType\)"),
        (True, r"is True \(bool\)"),
        ([0.1], r"is \[0\.1\] \(list\)"),
        (0.1j, r"\(complex\)"),
        (torch.tensor(0), r"must be a float tensor or a number, but its dtype is torch\.int64"),
        (torch.tensor([True, False, True]), r"dtype is torch\.bool"),
    ],
)
def test_smoothing_that_is_no_number_is_refused(smoothing, message):
    with pytest.raises(TypeError, match=message):
        smooth_labels(LOGITS, LABELS, smoothing)


@pytest.mark.parametrize(
    ("smoothing", "message"),
    [
        (torch.tensor(1.5), r"smoothing must be in \[0, 1\], but is 1\.5"),
        (torch.tensor([0.1, -0.5, 0.1]), r"smoothing\[1\] must be in \[0, 1\], but is -0\.5"),
        (torch.tensor([0.1, 0.5, math.nan]), r"smoothing\[2\] must be in \[0, 1\], but is nan"),
        (torch.tensor([0.1, 0.2]), r"smoothing has shape \(2,\), but must .* the labels, \(3,\)"),
        (torch.full((3, 1), 0.1), r"smoothing has shape \(3, 1\)"),
    ],
)
@pytest.mark.parametrize("kind", ["labels", "rows", "soft"])
def test_a_tensor_of_smoothing_is_checked_whatever_the_target(smoothing, message, kind):
    target = {"labels": LABELS, "rows": torch.eye(4)[LABELS], "soft": smooth_labels(LOGITS, LABELS)}[kind]
    with pytest.raises(ValueError, match=message):
        smooth_labels(LOGITS, target, smoothing)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (LOGITS, torch.tensor([0, 4, 9]), r"target\[1\] is 4, but the logits have 4 classes.* 0 to 3.*ignore_index=4"),
        (
            LOGITS,
            torch.tensor([0, -1, 0]),
            r"target\[1\] is -1, .*if -1 marks positions to ignore, pass ignore_index=-1",
        ),
        (LOGITS, torch.tensor([-100, 0, 255]), r"target\[2\] is 255"),
        (torch.zeros(2, 3, 2, 2), torch.tensor([[[0, 0], [0, 0]], [[0, 3], [0, 0]]]), r"target\[1, 0, 1\] is 3"),
        (torch.zeros(3), torch.tensor(7), r"target is 7, but the logits have 3 classes"),
    ],
)
def test_a_label_out_of_range_is_refused_with_its_place(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        smooth_labels(logits, labels)


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (LOGITS, torch.zeros(2).long(), r"target has shape \(2,\), but logits \(3, 4\) take labels of shape \(3,\) or"),
        (LOGITS, torch.zeros(3, 5), r"dense rows of shape \(3, 4\); the target has 5 classes, the logits 4"),
        (LOGITS, torch.zeros(3, 1).long(), r"target has shape \(3, 1\)"),
        (
            torch.zeros(2, 4, 3),
            torch.zeros(2, 4).long(),
            r"labels of shape \(2, 3\) or dense rows of shape \(2, 4, 3\)",
        ),
        (LOGITS, torch.zeros(3), r"shape of labels, \(3,\), but dtype torch\.float32: .*use target\.long\(\)"),
        (LOGITS, torch.zeros(3).bool(), r"dtype torch\.bool"),
        (torch.tensor(1.0), torch.tensor(0), r"logits have no dimensions"),
        (LOGITS, SoftTargets(LABELS[:, None], 5), r"the target has 5 classes, the logits 4"),
    ],
)
def test_shapes_that_fit_neither_labels_nor_rows_are_refused(logits, target, message):
    with pytest.raises(ValueError, match=message):
        smooth_labels(logits, target)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ([0.5, 0.5, 0.5, -0.5], r"prior has an entry -0\.5"),
        ([math.nan, 0.5, 0.5, 0.0], r"prior has an entry nan"),
        ([0.5, 0.5, 0.5, 0.5], r"prior sums to 2, but must sum to 1"),
        (torch.full((4, 4), 0.3), r"row 0 of prior sums to 1\.2"),
        ([0.5, 0.5], r"prior has shape \(2,\), but the logits \(3, 4\) have K = 4 classes"),
        (torch.full((3, 4), 0.25), r"prior has shape \(3, 4\)"),
    ],
)
def test_a_prior_that_does_not_fit_is_refused(prior, message):
    for target in (LABELS, torch.eye(4)[LABELS], smooth_labels(LOGITS, LABELS)):
        with pytest.raises(ValueError, match=message):
            smooth_labels(LOGITS, target, 0.1, prior=prior)


def test_spread_is_checked():
    with pytest.raises(ValueError, match="spread must be 'all' or 'others', but is 'some'"):
        smooth_labels(LOGITS, LABELS, spread="some")
    with pytest.raises(ValueError, match="leave prior=None"):
        smooth_labels(LOGITS, LABELS, spread="others", prior=[0.25] * 4)
    with pytest.raises(ValueError, match="needs at least 2 classes"):
        smooth_labels(torch.zeros(3, 1), torch.zeros(3).long(), spread="others")


def test_values_are_not_read_unless_asked():
    prior = torch.full((4,), 0.5)
    soft = smooth_labels(LOGITS, LABELS, 0.1, prior=prior, validate=False)
    assert torch.equal(soft.prior, prior)
    each = torch.tensor([2.0, 0.0, 0.0])
    assert smooth_labels(LOGITS, LABELS, each, validate=False).smoothing.flatten().tolist() == [2, 0, 0]


def test_rows_with_several_labels_are_refused():
    rows = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0]])
    with pytest.raises(ValueError, match=r"row at \[1\] sums to 3, .* several labels per example and a binary loss"):
        smooth_labels(torch.zeros(2, 4), rows, validate=True)


@given(generators(), st.sampled_from([(), (4,), (3, 5), (2, 1, 3, 3)]), ALPHAS)
def test_binary_labels_move_toward_a_half(generator, shape, alpha):
    labels = torch.rand(shape, generator=generator) < 0.5
    logits = torch.randn(shape, generator=generator)
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64):
        smoothed = smooth_labels(logits, labels.to(dtype), alpha, kind="binary")
        assert smoothed.is_floating_point()
        expected = torch.where(labels, 1 - alpha / 2, alpha / 2)
        assert_close(smoothed, expected.expand(shape), check_dtype=False)


def test_binary_smoothing_and_mixing_commute():
    labels, logits = (torch.rand(6, 5) < 0.4).float(), torch.randn(6, 5)
    mixed = smooth_labels(logits, 0.7 * labels + 0.3 * labels.flip(0), 0.1, kind="binary")
    smoothed = smooth_labels(logits, labels, 0.1, kind="binary")
    assert_close(mixed, 0.7 * smoothed + 0.3 * smoothed.flip(0))


def test_binary_labels_may_have_a_smoothing_each():
    each = torch.tensor([[0.0, 0.2], [0.4, 1.0]])
    smoothed = smooth_labels(torch.zeros(2, 2), torch.tensor([[1, 1], [0, 0]]), each, kind="binary")
    assert_close(smoothed, torch.tensor([[1.0, 0.9], [0.2, 0.5]]))


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (torch.tensor([0, 3, 1]), {}, r"every one of the logits \(3, 4\) takes a label .* kind='multiclass'"),
        (
            torch.eye(4)[LABELS] * -100,
            {},
            r"target\[0, 0\] is -100, but .* labels must be in \[0, 1\]; .* weight= of 0",
        ),
        (torch.eye(4)[LABELS] * float("nan"), {}, r"target\[0, 0\] is nan"),
        (torch.eye(4)[LABELS], {"prior": [0.25] * 4}, "kind='binary' moves the mass of each label to 1/2; leave prior"),
        (torch.eye(4)[LABELS], {"spread": "others"}, "leave prior=None and spread='all' with it"),
        (torch.eye(4)[LABELS], {"kind": "multilabel"}, "kind must be 'multiclass' or 'binary', but is 'multilabel'"),
        (torch.eye(4)[LABELS], {"smoothing": torch.zeros(3)}, r"the shape of the labels, \(3, 4\)"),
    ],
)
def test_binary_targets_that_do_not_fit_are_refused(target, options, message):
    with pytest.raises(ValueError, match=message):
        smooth_labels(LOGITS, target, **{"kind": "binary"} | options)
