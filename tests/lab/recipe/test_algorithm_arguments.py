"""What is known about algorithms without importing them."""

import inspect

import composer.algorithms

from composer_ls.lab.recipe.algorithm_arguments import algorithm_names, arguments_of
from composer_ls.lab.training.algorithms import algorithms_by_name


def test_what_the_sources_say_is_what_the_classes_say():
    classes = algorithms_by_name()
    assert set(algorithm_names()) == set(classes)
    for name, cls in classes.items():
        assert arguments_of(name) == tuple(inspect.signature(cls).parameters), name
    composers_own = arguments_of("label_smoothing", composers_own=True)
    assert composers_own == tuple(inspect.signature(composer.algorithms.LabelSmoothing).parameters)
