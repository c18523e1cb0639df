"""Logit normalisation: what it keeps and what it takes away."""

import pytest
import torch

from composer_ls.diagnostics.normalisation import normalise_logits, normalised_confidence
from composer_ls.errors import DiagnosticsError


@pytest.fixture
def logits():
    return 3 * torch.randn(50, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("p", [1, 2, 4, 10, float("inf")])
def test_rows_have_mean_zero_and_norm_one_and_keep_their_order(logits, p):
    rows = normalise_logits(logits, p)
    torch.testing.assert_close(rows.mean(1), torch.zeros(50).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(rows.norm(p, dim=1), torch.ones(50).double())
    assert torch.equal(rows.argsort(1), logits.argsort(1))


def test_a_scale_and_a_shift_of_each_row_do_not_matter(logits):
    scale, shift = torch.rand(50, 1) + 0.1, torch.randn(50, 1)
    torch.testing.assert_close(
        normalise_logits(logits.double() * scale + shift), normalise_logits(logits), rtol=1e-6, atol=1e-6
    )


def test_confidence_ranks_by_shape_where_the_largest_logit_ranks_by_size():
    clear, large = torch.tensor([[2.0, 0.0, 0.0, 0.0]]), torch.tensor([[5.0, 4.5, -4.0, -4.0]])
    confidence = normalised_confidence(torch.cat([clear, large]))
    assert confidence[0] > confidence[1]
    assert clear.max() < large.max()


def test_equal_logits_have_no_confidence():
    assert torch.equal(normalised_confidence(torch.ones(2, 4)), torch.zeros(2).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3, 123.456, -5.1])
@pytest.mark.parametrize("classes", [3, 7, 10, 1000])
def test_equal_logits_have_no_shape_even_if_their_mean_is_rounded(value, classes, dtype):
    rows = torch.full((2, classes), value, dtype=dtype)
    rows[1, 0] += 1
    normalised = normalise_logits(rows)
    assert not normalised[0].any()
    assert normalised[1].norm(4).item() == pytest.approx(1)


def test_two_classes_nan_and_a_norm_below_one_are_refused(logits):
    with pytest.raises(DiagnosticsError, match=r"\(5, 2\), but must be \(N, K\) with at least 3 classes"):
        normalise_logits(torch.zeros(5, 2))
    with pytest.raises(DiagnosticsError, match="p must be at least 1, but is 0"):
        normalise_logits(logits, 0)
    with pytest.raises(DiagnosticsError, match="NaN"):
        normalise_logits(logits.fill_diagonal_(torch.nan))


@pytest.mark.parametrize("p", [100.0, 1000.0, float("inf")])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_no_power_overflows(p, scale):
    found = normalise_logits(torch.tensor([[3 * scale, 0.0, 0.0]]), p)
    torch.testing.assert_close(found, torch.tensor([[1.0, -0.5, -0.5]], dtype=torch.float64), rtol=1e-3, atol=0)
