"""The examples in docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import composer_ls

MODULES = [module.name for module in pkgutil.walk_packages(composer_ls.__path__, "composer_ls.")]
MODULES.remove("composer_ls.__main__")


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0


@pytest.mark.parametrize("name", composer_ls.__all__)
def test_every_public_name_has_an_example(name):
    public = getattr(composer_ls, name)
    examples = doctest.DocTestFinder(recurse=False).find(public, name)
    assert any(example.examples for example in examples)
