"""The package as a whole: its public names, and what importing it costs."""

import subprocess
import sys

import pytest

import composer_ls


def test_importing_the_package_imports_neither_torch_nor_composer():
    code = "import composer_ls, sys; print([m for m in ('torch', 'torchvision', 'composer', 'transformers') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_loss_and_the_targets_do_not_import_composer():
    code = (
        "import sys; from composer_ls import CrossEntropyLoss, SoftTargets, cross_entropy, smooth_labels;"
        "print([m for m in ('torchvision', 'composer', 'transformers') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_public_name_resolves_and_is_listed():
    assert set(composer_ls.__all__) <= set(dir(composer_ls))
    for name in composer_ls.__all__:
        assert getattr(composer_ls, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error_that_says_which():
    with pytest.raises(AttributeError, match="module 'composer_ls' has no attribute 'smooth'"):
        _ = composer_ls.smooth
    with pytest.raises(ImportError, match="smooth"):
        from composer_ls import smooth  # noqa: F401


def test_the_version_is_a_version():
    assert composer_ls.__version__[0].isdigit()
