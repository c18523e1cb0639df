"""What a search varies."""

import pytest

from composer_ls.errors import InputError
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.tune.space import parse_dimension, search_space

MLP = load_recipe("digits-mlp")


def space(*vary, overrides=()):
    return [str(one) for one in search_space(load_recipe("digits-mlp", overrides), vary)]


def test_by_default_the_factor_and_the_alpha_of_the_mixers_that_are_on_are_varied():
    factor = "algorithms.label_smoothing.smoothing=0..0.3"
    assert space() == [factor]
    on = ["algorithms.mixup={alpha: 0.4}", "algorithms.cutmix={}"]
    assert space(overrides=on) == [factor, "algorithms.mixup.alpha=0.1..2", "algorithms.cutmix.alpha=0.1..2"]
    assert space(overrides=["algorithms.mixup=null"]) == [factor]


def test_what_is_asked_for_takes_the_place_of_the_alphas_and_of_the_factors_range():
    rate = "optimizer.learning_rate=0.001..0.1"
    assert space(rate, overrides=["algorithms.mixup={}"]) == ["algorithms.label_smoothing.smoothing=0..0.3", rate]
    assert space("algorithms.label_smoothing.smoothing=0..0.1") == ["algorithms.label_smoothing.smoothing=0..0.1"]
    assert space("algorithms.label_smoothing=[null, {smoothing: 0.1}]") == [
        'algorithms.label_smoothing=[null, {"smoothing": 0.1}]'
    ]


def test_the_factor_is_that_of_the_recipes_own_method():
    overrides = ["algorithms.label_smoothing=null", "algorithms.max_sup={}"]
    assert space(overrides=overrides) == ["algorithms.max_sup.strength=0..0.3"]
    assert space("algorithms.max_sup.strength=0..0.1", overrides=overrides) == ["algorithms.max_sup.strength=0..0.1"]


def test_a_range_over_a_factor_of_ten_is_logarithmic_and_one_of_a_whole_number_stays_whole():
    assert parse_dimension("optimizer.learning_rate=1e-4..1e-2", MLP).logarithmic
    assert not parse_dimension("optimizer.learning_rate=0.001..0.009", MLP).logarithmic
    assert not parse_dimension("optimizer.weight_decay=0..0.1", MLP).logarithmic
    assert parse_dimension("data.batch_size=16..256", MLP).whole
    assert not parse_dimension("optimizer.weight_decay=0..1", MLP).whole  # the recipe has 0.01
    assert parse_dimension("optimizer.learning_rate=1e-4..1e-2", MLP).ends == ("0.0001", "0.01")


def test_the_recipes_own_value_is_known_to_be_inside_or_outside():
    rate = parse_dimension("optimizer.learning_rate=0.001..0.01", MLP)
    assert rate.holds(0.002)
    assert not rate.holds(0.1)
    assert not rate.holds(None)
    assert not rate.holds(True)
    names = parse_dimension("schedule.name=[cosine, linear]", MLP)
    assert names.holds("cosine")
    assert not names.holds("constant")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.learning_rate", "is neither KEY=LOW..HIGH"),
        ("optimizer.learning_rate=0.1", "is neither KEY=LOW..HIGH"),
        ("optimizer.learning_rate=a..b", "is neither KEY=LOW..HIGH"),
        ("optimizer.learning_rate=0..inf", "is neither KEY=LOW..HIGH"),
        ("schedule.name=[cosine]", "is neither KEY=LOW..HIGH"),
        ("optimizer.learning_rate=0.1..0.01", "the range is empty: its first number must be the smaller one"),
        ("seed=0..5", "--vary seed: this key cannot be tuned"),
        ("data.validation=0.1..0.5", "--vary data.validation: this key cannot be tuned"),
        ("data.root=[a, b]", "--vary data.root: this key says where and on which files a run runs"),
        ("device=[cpu, gpu]", "--vary device: this key says where"),
    ],
)
def test_what_is_no_range_is_refused_with_the_way_out(text, message):
    with pytest.raises(InputError, match=message):
        parse_dimension(text, MLP)


def test_two_ranges_for_one_key_are_refused():
    with pytest.raises(InputError, match="--vary algorithms.mixup and --vary algorithms.mixup.alpha set the same key"):
        space("algorithms.mixup=[null, {}]", "algorithms.mixup.alpha=0.1..1")


@pytest.mark.parametrize(
    ("given", "vary"),
    [
        ("algorithms.label_smoothing.smoothing=0", "algorithms.label_smoothing.smoothing=0..1"),
        ("algorithms.mixup={alpha: 1}", "algorithms.mixup.alpha=1..2"),
        ("algorithms.online_label_smoothing={smoothing: 1}", "algorithms.online_label_smoothing.smoothing=0..1"),
    ],
)
def test_a_real_argument_of_an_algorithm_stays_real_however_it_is_written(given, vary):
    assert not parse_dimension(vary, load_recipe("digits-mlp", [given])).whole
    sam = load_recipe("digits-mlp", ["algorithms.sam={interval: 2}"])
    assert parse_dimension("algorithms.sam.interval=1..4", sam).whole


def test_small_ends_of_a_range_are_written_whole():
    assert parse_dimension("optimizer.weight_decay=1e-14..1e-13", MLP).ends == ("0.00000000000001", "0.0000000000001")
