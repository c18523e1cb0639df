"""The Dice loss of labels and soft targets, compared with other implementations."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from composer_ls import SoftTargets, dice_loss, smooth_labels

K = 4


def composers_dice(**options):
    """Composer's loss, imported here because the method does not depend on Composer."""
    return pytest.importorskip("composer.loss").DiceLoss(**options)


def drawn(seed=0, ignore_index=-100, shape=(2, 5, 6)):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape[0], K, *shape[1:], generator=generator, dtype=torch.float64)
    labels = torch.randint(0, K, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < 0.3] = ignore_index
    return logits.requires_grad_(), labels


def gradient(loss, logits):
    (found,) = torch.autograd.grad(loss, logits)
    return found


def at_ignored(tensor, labels, ignore_index):
    return tensor.movedim(1, -1)[labels == ignore_index]


def test_of_hard_labels_it_is_the_usual_soft_dice_loss_of_the_pixels_that_count():
    logits, labels = drawn()
    probabilities = logits.softmax(1).movedim(1, -1)[labels >= 0]
    onehot = F.one_hot(labels[labels >= 0], K)
    usual = 1 - 2 * (probabilities * onehot).sum(0) / (probabilities.sum(0) + onehot.sum(0))
    torch.testing.assert_close(dice_loss(logits, labels), usual.mean())


@given(st.integers(0, 50), st.floats(0, 1))
def test_soft_targets_dense_rows_and_labels_agree(seed, smoothing):
    logits, labels = drawn(seed)
    soft = smooth_labels(logits, labels, smoothing)
    assert isinstance(soft, SoftTargets)
    torch.testing.assert_close(dice_loss(logits, soft), dice_loss(logits, soft.dense()))
    torch.testing.assert_close(dice_loss(logits, smooth_labels(logits, labels, 0.0)), dice_loss(logits, labels))


def test_it_is_least_where_the_probabilities_are_the_smoothed_target():
    logits, labels = drawn()
    target = smooth_labels(logits, labels.clamp(min=0), 0.3)
    exact = target.dense().log()
    assert dice_loss(exact, target).item() == pytest.approx(0, abs=1e-12)
    assert dice_loss(5 * exact, target) > 0.01
    assert dice_loss(0.5 * exact, target) > 0.01
    assert composers_dice(softmax=True)(5 * exact, target) < composers_dice(softmax=True)(
        exact, target
    )  # the usual one is not


@pytest.mark.parametrize("ignore_index", [-100, -1, 2, 11, 255])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("wild", [False, True])
def test_ignored_pixels_get_no_gradient_whatever_their_logits(ignore_index, smoothing, wild):
    logits, labels = drawn(ignore_index=ignore_index)
    before = dice_loss(logits, smooth_labels(logits, labels, smoothing, ignore_index=ignore_index)).item()
    with torch.no_grad():
        value = float("nan") if wild else 7.0
        logits.movedim(1, -1)[labels == ignore_index] = value
    loss = dice_loss(logits, smooth_labels(logits, labels, smoothing, ignore_index=ignore_index))
    assert loss.item() == before
    found = gradient(loss, logits)
    assert at_ignored(found, labels, ignore_index).abs().max() == 0
    assert at_ignored(found, labels + 1, 1).abs().max() > 0  # those of class 0 do


@pytest.mark.parametrize(
    "loss_fn", [dice_loss, lambda x, y: composers_dice(softmax=True)(x, y)], ids=["ours", "Composer's"]
)
def test_a_batch_of_ignored_pixels_only_gives_zero_loss_and_gradient(loss_fn):
    logits, labels = drawn()
    loss = loss_fn(logits, smooth_labels(logits, torch.full_like(labels, -100), 0.1))
    assert loss.item() == 0
    assert gradient(loss, logits).abs().max() == 0


@pytest.mark.parametrize("squared_pred", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, 2, 255])
def test_composers_dice_loss_gets_right_targets_and_gives_ignored_pixels_no_gradient(ignore_index, squared_pred):
    logits, labels = drawn(ignore_index=ignore_index)
    target = smooth_labels(logits, labels, 0.2, ignore_index=ignore_index)
    counted = (labels != ignore_index).unsqueeze(1)
    expected = (0.8 * F.one_hot(labels.where(counted.squeeze(1), 0), K).movedim(-1, 1) + 0.2 / K) * counted
    theirs = composers_dice(softmax=True, squared_pred=squared_pred)
    loss = theirs(logits, target)
    torch.testing.assert_close(loss, theirs(logits, expected), check_dtype=False)
    assert at_ignored(gradient(loss, logits), labels, ignore_index).abs().max() == 0


class MonaiStyle(torch.nn.Module):
    """As MONAI's DiceLoss(softmax=True): wants a target of the logits' shape, and knows nothing of ignored pixels."""

    def forward(self, input, target):
        probabilities = torch.softmax(input, 1)
        if target.shape != probabilities.shape:
            raise AssertionError(f"ground truth has different shape ({target.shape}) from input ({input.shape})")
        axes = list(range(2, input.ndim))
        overlap = torch.sum(target * probabilities, dim=axes)
        size = torch.sum(target, dim=axes) + torch.sum(probabilities, dim=axes)
        return torch.mean(1.0 - (2.0 * overlap + 1e-5) / (size + 1e-5))


def test_a_loss_that_wants_dense_rows_sees_them():
    logits, labels = drawn()
    target = smooth_labels(logits, labels, 0.2)
    loss, expected = MonaiStyle()(logits, target), MonaiStyle()(logits, target.dense())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, logits), gradient(expected, logits))


@pytest.mark.parametrize("dense", [False, True])
def test_a_weight_of_zero_gets_the_gradient_of_the_formula(dense):
    logits, labels = drawn()
    target = smooth_labels(logits, labels, 0.1)
    target = target.dense() if dense else target
    weights = torch.ones(2, 1, 5, 6, dtype=torch.float64)
    weights[0] = 0
    weights.requires_grad_()
    rows = smooth_labels(logits, labels, 0.1).dense() * weights
    probabilities, others = logits.softmax(1) * rows.sum(1, keepdim=True), (0, 2, 3)
    overlap, size = torch.minimum(probabilities, rows).sum(others), (probabilities + rows).sum(others)
    expected = gradient((1 - 2 * overlap / size).mean(), weights)
    assert expected[0].count_nonzero() == (labels[0] >= 0).sum()
    torch.testing.assert_close(gradient(dice_loss(logits, target * weights), weights), expected)
    with torch.no_grad():
        logits.movedim(1, -1)[labels < 0] = float("nan")
    torch.testing.assert_close(gradient(dice_loss(logits, target * weights), weights), expected)


@pytest.mark.parametrize("label", [2, -100])
@pytest.mark.parametrize("form", ["label", "targets", "dense"])
def test_one_row_is_a_batch_of_one_row(label, form):
    logits, label = torch.randn(K, dtype=torch.float64), torch.tensor(label)
    target = label if form == "label" else smooth_labels(logits, label, 0.2)
    target = target.dense() if form == "dense" else target
    row, batch = logits.clone().requires_grad_(), logits[None].clone().requires_grad_()
    found, expected = dice_loss(row, target), dice_loss(batch, target[None])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient(found, row)[None], gradient(expected, batch))


def test_half_precision_is_summed_in_float32():
    logits, labels = drawn(shape=(1, 64, 64))
    exact = dice_loss(logits, smooth_labels(logits, labels, 0.1))
    half = dice_loss(logits.bfloat16(), smooth_labels(logits.bfloat16(), labels, 0.1))
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), abs=2e-3)


def test_compiles_whole():
    logits, labels = drawn()
    compiled = torch.compile(dice_loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, labels), dice_loss(logits, labels))
