"""The choice of a kernel, and its memory."""

import torch

from composer_ls.kernels import VARIABLE, choose, composite, eager, gradient


def test_the_choice_can_be_forced_by_keyword_and_by_variable(monkeypatch):
    x = torch.randn(2, 3)
    assert choose(x, kernel="composite") is composite.loss_rows
    monkeypatch.setenv(VARIABLE, "composite")
    assert choose(x) is composite.loss_rows
    assert choose(x, kernel="eager") is eager.loss_rows
    monkeypatch.setenv(VARIABLE, "")
    assert choose(x) is eager.loss_rows


def test_large_gradients_ask_for_huge_pages_and_small_ones_do_not(monkeypatch):
    asked = []
    monkeypatch.setattr(gradient, "_madvise", lambda: lambda start, length, advice: asked.append((start, length)) or 0)
    gradient.empty_gradient(torch.empty(1000, 1000))
    assert not asked
    made = gradient.empty_gradient(torch.empty(3000, 3000))
    ((start, length),) = asked
    assert start % 4096 == 0
    assert made.data_ptr() <= start
    assert start + length == made.data_ptr() + made.nbytes
