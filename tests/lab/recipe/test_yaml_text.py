"""YAML for recipes."""

import math
import time

import pytest
import yaml

from composer_ls.errors import RecipeError
from composer_ls.lab.recipe.yaml_text import dump_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("-007", -7),
        ("0o10", 8),
        ("0x1F", 31),
        ("1e-1", 0.1),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("no", "no"),
        ("true", True),
        ("~", None),
        ("", None),
        ("1ep", "1ep"),
    ],
)
def test_plain_values_are_those_of_yaml_1_2(text, value):
    parsed = parse_yaml(text, "here")
    assert parsed == value
    assert type(parsed) is type(value)


def test_text_is_written_so_that_no_reader_takes_it_for_something_else():
    content = {
        key: key for key in ["010", "1e-1", "0o7", "2024-01-01", "1:30", "no", "1_0", "~", "", "<<", ".5", "x: y"]
    }
    for read in (lambda text: parse_yaml(text, "here"), yaml.safe_load):
        assert read(dump_yaml(content)) == content


def test_numbers_are_written_so_that_they_read_back_as_themselves():
    content = [1e-5, 1e20, 0.1, -3, 2**40, math.inf, True, None]
    assert parse_yaml(dump_yaml(content), "here") == content


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "{a: 1, a: 1}", "x: {1: a, 01: b}", '{a: 1, "a": 2}'])
def test_a_key_that_stands_twice_is_refused_with_its_place(text):
    with pytest.raises(RecipeError, match=r"here, line \d, column \d+: not valid YAML: the key (a|1) occurs twice"):
        parse_yaml(text, "here")


def test_merged_mappings_may_be_written_over():
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}", "here")["b"] == {"x": 3, "y": 2}


def laughs():
    """Nine levels of ten aliases each: a billion values in a few hundred characters."""
    lines = ["a0: &a0 lol"]
    return "\n".join(lines + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (laughs(), "stands for more than 100,000 values: use fewer aliases"),
        ("[" * 5000 + "]" * 5000, "nested too deeply for a recipe: at most 100 levels"),
        ("[" * 150 + "]" * 150, "line 1: nested too deeply for a recipe: at most 100 levels"),
        ("a: &a [*a]", "line 1: an alias stands for something that contains it"),
        ("a: " + "x" * 100_000_000, "has 100,000,003 characters, but a recipe has at most 1,000,000"),
        ("a: " + "1" * 5000, "not valid YAML"),
    ],
    ids=["aliases", "very deep", "deep", "inside itself", "a hundred megabytes", "a long number"],
)
def test_what_would_take_minutes_or_all_memory_is_refused_at_once(text, message):
    begun = time.process_time()
    with pytest.raises(RecipeError, match=message):
        parse_yaml(text, "here")
    assert time.process_time() - begun < 5


def test_aliases_that_share_a_few_values_are_read():
    parsed = parse_yaml("a: &a [1, 2]\nb: {c: *a, d: *a}\ne: &e {f: 1}\ng: {<<: *e, h: 2}", "here")
    assert parsed == {"a": [1, 2], "b": {"c": [1, 2], "d": [1, 2]}, "e": {"f": 1}, "g": {"f": 1, "h": 2}}
