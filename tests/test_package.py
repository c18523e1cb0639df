"""The package as a whole: its public names, and the cost of importing it."""

import subprocess
import sys
from pathlib import Path

import pytest

import composer_ls

ROOT = Path(__file__).parent.parent


def test_importing_the_package_imports_neither_torch_nor_composer():
    code = "import composer_ls, sys; print([m for m in ('torch', 'torchvision', 'composer', 'transformers') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


NOT_FOR_THE_METHOD = """
import sys
sys.modules.update(dict.fromkeys(
    "composer jinja2 matplotlib pydantic rich sacrebleu safetensors scipy sklearn timm tokenizers torchmetrics torchvision "
    "transformers typer yaml".split()
))
"""
"""Python code after which only torch, NumPy and what they need can be imported."""
METHOD = ("targets", "smoothing", "losses", "kernels", "diagnostics")


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def test_the_method_needs_torch_and_numpy_alone():
    imports = "".join(f"import composer_ls.{name}\n" for name in METHOD)
    step = (
        "import torch; from composer_ls import SoftTargets, cross_entropy, dice_loss, smooth_labels\n"
        "from composer_ls.diagnostics import expected_calibration_error\n"
        "x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, -100])\n"
        "print(cross_entropy(x, smooth_labels(x, y)).isfinite().item(), expected_calibration_error(x, y) >= 0)"
    )
    done = run(NOT_FOR_THE_METHOD + imports + step)
    assert done.stdout.strip() == "True True", done.stderr


@pytest.mark.slow
def test_the_tests_of_the_method_can_be_collected_with_torch_and_numpy_alone():
    folders = [f"tests/{name}" for name in METHOD]
    done = run(
        NOT_FOR_THE_METHOD
        + f"import pytest; sys.exit(pytest.main(['--collect-only', '-q', '-n0', '-p', 'no:cacheprovider', *{folders}]))"
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_every_public_name_resolves_and_is_listed():
    assert dir(composer_ls) == sorted(composer_ls.__all__)  # and nothing else
    for name in composer_ls.__all__:
        assert getattr(composer_ls, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error_that_says_which():
    with pytest.raises(AttributeError, match="module 'composer_ls' has no attribute 'smooth'"):
        _ = composer_ls.smooth
    with pytest.raises(ImportError, match="smooth"):
        from composer_ls import smooth  # noqa: F401


def test_the_version_is_a_version():
    assert composer_ls.__version__[0].isdigit()
