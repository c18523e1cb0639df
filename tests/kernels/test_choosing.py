"""Which kernel is chosen, and when the compiled one is built."""

import shutil
import threading
from pathlib import Path

import pytest
import torch

from composer_ls import cross_entropy, smooth_labels
from composer_ls.kernels import VARIABLE, choose, compiled, composite, eager, gradient

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler on this machine"
)


def test_the_choice_can_be_forced_by_keyword_and_by_variable(monkeypatch):
    x = torch.randn(2, 3)
    assert choose(x, kernel="composite") is composite.loss_rows
    monkeypatch.setenv(VARIABLE, "composite")
    assert choose(x) is composite.loss_rows
    assert choose(x, kernel="eager") is eager.loss_rows


def test_the_compiled_kernel_is_refused_for_what_it_does_not_take():
    with pytest.raises(RuntimeError, match=r"takes float32, float64 or bfloat16 logits on the CPU, not torch.float16"):
        choose(torch.randn(2, 3).half(), kernel="compiled")


class Builder(compiled._Builder):
    """A builder that remembers whether it began."""

    began = False

    def _start(self):
        self.began = True
        super()._start()


@pytest.fixture
def builder(monkeypatch):
    fresh = Builder()
    monkeypatch.setattr(compiled, "_builder", fresh)
    monkeypatch.delenv(VARIABLE, raising=False)
    return fresh


def test_a_small_job_never_starts_the_compiler(builder):
    x = torch.randn(512, 10)
    for _ in range(100):
        assert choose(x) is eager.loss_rows
    assert not builder.began


@needs_compiler
def test_a_long_job_goes_on_with_the_eager_kernel_until_the_other_is_built(builder, monkeypatch):
    monkeypatch.setattr(compiled, "REPAYS", 10_000)
    x = torch.randn(512, 10)
    assert choose(x) is eager.loss_rows
    assert not builder.began
    assert choose(x) is eager.loss_rows  # the build begins, and this call does not wait for it
    assert builder.began
    folder = Path(builder._folder.name)
    builder._process.wait(60)
    assert choose(x) is compiled.loss_rows
    assert not folder.exists()
    assert choose(x.half()) is choose(x.t()) is eager.loss_rows
    assert choose(x, components=1000) is eager.loss_rows
    torch.use_deterministic_algorithms(True)
    try:
        assert choose(x) is eager.loss_rows  # or when the build ends would decide the last digits
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("compiler", ["", "/bin/false"])
def test_without_a_working_compiler_the_eager_kernel_goes_on(builder, monkeypatch, compiler):
    monkeypatch.setattr(compiled, "REPAYS", 1)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: compiler or None)
    x = torch.randn(512, 10)
    assert choose(x) is eager.loss_rows
    if builder._process is not None:
        builder._process.wait(60)
    for _ in range(3):
        assert choose(x) is eager.loss_rows
    with pytest.raises(RuntimeError, match=r"cannot be had: (no C\+\+ compiler|.*/bin/false.* failed)"):
        choose(x, kernel="compiled")


@needs_compiler
def test_threads_share_the_rows(monkeypatch):
    started = []

    class Thread(threading.Thread):
        def start(self):
            started.append(self)
            super().start()

    monkeypatch.setenv(VARIABLE, "compiled")
    monkeypatch.setattr(compiled.threading, "Thread", Thread)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    x = torch.randn(7, 100_000)
    cross_entropy(x, smooth_labels(x, torch.arange(7), 0.1))
    assert len(started) == 2


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
