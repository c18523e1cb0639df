"""Reading recipes: what is shipped, overrides, and the messages of mistakes."""

import json
import subprocess
import sys

import pytest
import yaml

from composer_ls.errors import RecipeError
from composer_ls.lab.recipe.reading import load_recipe, shipped_recipes
from composer_ls.lab.recipe.recipe import recipe_schema

SHIPPED = [
    "camvid-unet",
    "cifar10-alexnet",
    "cifar10-resnet20",
    "cifar10-resnet20-fast",
    "cifar10-resnet20-small-data",
    "cifar10-resnet56",
    "cifar10-resnet9",
    "cifar100-resnet56",
    "digits-cnn",
    "digits-mlp",
    "imagenet-resnet50",
    "multi30k-transformer",
    "multi30k-transformer-small",
]


def test_the_shipped_recipes_are_there():
    assert list(shipped_recipes()) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_is_valid_and_says_what_it_is_and_needs(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert recipe.needs
    assert recipe.smoothing == (0 if name == "cifar10-resnet20-small-data" else 0.1)


def test_resnet56_trains_as_mosaicmls_example():
    recipe = load_recipe("cifar10-resnet56")
    assert (recipe.duration, recipe.data.batch_size) == ("160ep", 1024)
    assert (recipe.optimizer.learning_rate, recipe.optimizer.weight_decay) == (1.2, 2e-3)
    assert recipe.optimizer.decoupled
    assert (recipe.schedule.warmup, recipe.schedule.milestones) == ("5ep", ["80ep", "120ep"])


def test_the_resolved_recipe_reads_back_as_itself(tmp_path):
    recipe = load_recipe("digits-mlp", ["seed=3"])
    path = tmp_path / "resolved.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert load_recipe(path).fingerprint() == recipe.fingerprint()


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optimizer.learning_rate=1e-3", 0.001),
        ("algorithms.mixup={alpha: 0.2}", {"alpha": 0.2}),
        ("algorithms.label_smoothing=null", None),
        ("schedule.milestones=[1ep, 2ep]", ["1ep", "2ep"]),
        ("data.download=true", True),
        ("schedule.warmup=0dur", "0dur"),
        ("eval_interval=0.5dur", "0.5dur"),
        ("data.root=some/where=else", "some/where=else"),
    ],
)
def test_an_override_is_parsed_as_yaml(override, value):
    place = load_recipe("digits-mlp", [override]).model_dump()
    for key in override.partition("=")[0].split("."):
        place = place[key]
    assert place == value


@pytest.mark.parametrize(
    ("overrides", "smoothing"),
    [
        ([], 0.1),
        (["algorithms.label_smoothing={}"], 0.1),
        (["algorithms.label_smoothing.smoothing=0"], 0.0),
        (["algorithms.label_smoothing=null"], 0.0),
        (["algorithms.label_smoothing=null", "algorithms.max_sup={}"], 0.1),
        (["algorithms.label_smoothing=null", "algorithms.max_sup.strength=0.3"], 0.3),
        (["algorithms.label_smoothing.smoothing=0", "algorithms.online_label_smoothing={}"], 0.5),
        (["algorithms.label_smoothing.smoothing={schedule: linear, start: 0.0, end: 0.3}"], 0.3),
        (["algorithms.label_smoothing.smoothing=[0.1, 0.2]"], 0.2),
        (["algorithms={}"], 0.0),
    ],
)
def test_the_smoothing_of_a_recipe(overrides, smoothing):
    assert load_recipe("digits-mlp", overrides).smoothing == smoothing


def test_the_fingerprint_follows_what_decides_the_run_and_not_the_words():
    base = load_recipe("digits-mlp")
    assert load_recipe("digits-mlp", ["description=other words"]).fingerprint() == base.fingerprint()
    assert load_recipe("digits-mlp", ["seed=18"]).fingerprint() != base.fingerprint()


def test_the_fingerprint_is_what_it_was_when_there_was_one_task_only():
    """Finished runs are found by it."""
    assert load_recipe("digits-mlp").fingerprint() == "b991ce3f"
    assert load_recipe("cifar10-resnet20-fast", ["data.root=x", "diagnostics={}"]).fingerprint() == "4ade8eee"


def test_the_fingerprint_does_not_change_when_a_default_is_written_out_or_an_algorithm_is_off():
    base = load_recipe("digits-mlp").fingerprint()
    for same in ("data.workers=0", "optimizer.momentum=0.9", "checkpoints.keep=false", "algorithms.mixup=null"):
        assert load_recipe("digits-mlp", [same]).fingerprint() == base
    off = load_recipe("digits-mlp", ["algorithms.label_smoothing=null"]).fingerprint()
    assert load_recipe("digits-mlp", ["algorithms.label_smoothing.smoothing=0"]).fingerprint() == off != base
    assert load_recipe("digits-mlp", ["algorithms.label_smoothing={smoothing: 0, spread: others}"]).fingerprint() == off


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batchsize=3", "unknown key data.batchsize: did you mean data.batch_size=3\\? allowed are name, root, "),
        (
            "optimiser.name=sgd",
            "unknown key optimiser: did you mean optimizer.name=sgd\\? allowed are name, description",
        ),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate is 'fast': input should be a valid number"),
        ("duration=3", "duration is 3: a duration is a whole number followed by ep, ba or sp .*such as 3ep"),
        ("duration=1.5ep", "duration is '1.5ep': a duration is a whole number"),
        ("duration=0ep", "duration is '0ep': it must be more than 0"),
        ("duration=0.5dur", "duration is '0.5dur': the run cannot be a fraction of itself"),
        ("eval_interval=0ba", "eval_interval is '0ba': it must be more than 0"),
        ("eval_interval=1.5dur", "eval_interval is '1.5dur': a fraction of the run is at most 1dur"),
        ("checkpoints.interval=0.0dur", "checkpoints.interval is '0.0dur': it must be more than 0"),
        ("seed=true", "seed is True: input should be a valid integer"),
        ("data.batch_size=64.0", "data.batch_size is 64.0: input should be a valid integer"),
        ("data.download=1", "data.download is 1: input should be a valid boolean"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate is inf: input should be a finite number"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate is nan: input should be"),
        ("optimizer.momentum=false", "optimizer.momentum is False: input should be a number"),
        ("schedule.name=multistep", "schedule.name=multistep needs milestones, as schedule.milestones="),
        ("schedule.milestones=[80]", "schedule.milestones.0 is 80: a duration"),
        ("data.validation=0", "data.validation is 0: it must be a whole number of images, such as 500, or a fraction"),
        ("data.validation=1.5", "data.validation is 1.5: it must be a whole number of images"),
        ("data.validation=true", "data.validation is True: input should be a number"),
        ("data.examples=0", "data.examples is 0: input should be greater than or equal to 1"),
        ("seed=-1", "seed is -1: input should be greater than or equal to 0"),
        ("data=4", "data is 4: input should be a valid dictionary"),
        (
            "data.name=mnist",
            "data.name is 'mnist': input should be 'digits', 'cifar10', 'cifar100', 'imagefolder', 'camvid' or 'par",
        ),
        ("data={name: [cifar10]}", "data.name is \\['cifar10'\\]: input should be 'digits', 'cifar10'"),
        ("data={root: here}", "the key data.name is missing"),
        ("data={name: camvid, workers: 2}", "unknown key data.workers: allowed are name, root, batch_size, augmen"),
        (
            "data.name=camvid",
            "model.name=mlp is for classification and data.name=camvid for segmentation: use data and",
        ),
        (
            "data.label_noise={rate: 0.1, pears: {}}",
            "unknown key data.label_noise.pears: did you mean data.label_noise.pairs",
        ),
        (
            "diagnostics={mutual_information: {draw: 3}}",
            "unknown key diagnostics.mutual_information.draw: did you mean",
        ),
        ("loss=dice", "loss=dice is for segmentation: use loss=cross_entropy for classification"),
        ("model.name=resnet57", "model.name is 'resnet57': input should be 'mlp', 'cnn'"),
        ("model.name=timm/", "model.name is 'timm/': input should be 'mlp', .* torchvision/NAME or timm/NAME"),
        ("model.arguments={width: 3}", "mlp takes no arguments: leave them out, or use a target"),
        ("model.weights=default", "weights=default are those of torchvision and timm, and mlp has none: use"),
        ("model={target: nets}", "model.target is 'nets': a target is a module and a function in it, such as"),
        ("model={target: null}", "the key model.name is missing"),
        (
            "model={name: mlp, target: 'nets:make'}",
            "it has both name: mlp and target: nets:make: leave one of them out",
        ),
        ("model={name: target}", "name: target needs a target, as target: my_package.nets:make"),
        ("data.arguments={n: 1}", "arguments are for a target: leave them out"),
        (
            "data={target: 'mine:load', augmentation: crop_flip, validation: 5}",
            "augmentation, validation are for images that composer_ls reads: leave them out, and do it in mine:load",
        ),
        ("model.freeze=head", "model.freeze is 'head': input should be 'backbone'"),
        ("optimizer.backbone_scale=0", "optimizer.backbone_scale is 0: input should be greater than 0"),
        ("seed.low=3", "goes into seed, which is a value, not a mapping"),
        ("seed", "'seed' is not key.path=value"),
        ("seed=[1", "'seed=\\[1', line 1, column 3: not valid YAML"),
    ],
)
def test_a_wrong_override_is_named_with_what_is_allowed(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("digits-mlp", [override])


def test_an_unknown_recipe_has_near_matches():
    with pytest.raises(RecipeError, match="no recipe 'digits-mpl': did you mean digits-mlp"):
        load_recipe("digits-mpl")
    with pytest.raises(RecipeError, match="no recipe file some/where.yaml"):
        load_recipe("some/where.yaml")


def test_broken_yaml_is_reported_with_file_and_line(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("name: a\nduration: [1ep\nseed: 3\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"broken.yaml, line 3, column 5: not valid YAML"):
        load_recipe(path)
    path.write_text("- a\n- b\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="contains list, but a recipe is a mapping"):
        load_recipe(path)
    path.write_text("name: a\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="the key duration is missing; the key data is missing"):
        load_recipe(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(path)


@pytest.mark.parametrize("value", ["2026-13-45", "0x_", "00.5dur"])
def test_what_looks_like_a_number_or_a_date_and_is_none_is_text(tmp_path, value):
    path = tmp_path / "odd.yaml"
    path.write_text(load_recipe("digits-mlp").to_yaml().replace("duration: 30ep", f"duration: {value}"))
    with pytest.raises(RecipeError, match=rf"odd.yaml: duration is '{value}'"):
        load_recipe(path)
    with pytest.raises(RecipeError, match=f"the override 'duration={value}': duration is '{value}'"):
        load_recipe("digits-mlp", [f"duration={value}"])


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("smoothing=0.1", "algorithms.label_smoothing.smoothing=0.1"),
        ("label_smoothing=0.1", "algorithms.label_smoothing.smoothing=0.1"),
        ("label_smoothing.smoothing=0.1", "algorithms.label_smoothing.smoothing=0.1"),
        ("algorithms.label_smoothing=0.1", "algorithms.label_smoothing.smoothing=0.1"),
        ("algorithms.mixup=0.2", "algorithms.mixup.alpha=0.2"),
        ("algorithms.max_sup=0.2", "algorithms.max_sup.strength=0.2"),
        ("mixup=0.2", "algorithms.mixup.alpha=0.2"),
        ("mixup={alpha: 0.2}", "algorithms.mixup={alpha: 0.2}"),
        ("epochs=3", "duration=3ep"),
        ("max_steps=100", "duration=100ba"),
        ("lr=0.1", "optimizer.learning_rate=0.1"),
        ("optimizer.lr=0.1", "optimizer.learning_rate=0.1"),
        ("learningrate=1e-3", "optimizer.learning_rate=1e-3"),
        ("batch_size=32", "data.batch_size=32"),
        ("data.batchsize=32", "data.batch_size=32"),
        ("model=cnn", "model.name=cnn"),
    ],
)
def test_a_guess_gets_the_override_that_it_means(override, hint):
    with pytest.raises(RecipeError) as refused:
        load_recipe("digits-mlp", [override])
    assert str(refused.value).startswith(f"the override {override!r}: ")
    assert f"did you mean {hint}?" in str(refused.value)
    load_recipe("digits-mlp", [hint])


def test_a_number_as_duration_gets_the_unit_and_nothing_that_would_be_refused():
    with pytest.raises(RecipeError, match="such as 7ep$"):
        load_recipe("digits-mlp", ["duration=7"])


def test_a_mistake_is_blamed_on_the_override_that_made_it_and_others_on_the_recipe(tmp_path):
    with pytest.raises(RecipeError) as refused:
        load_recipe("digits-mlp", ["seed=3", "optimizer.momentum=2", "data={name: digits, batch_size: 0}"])
    first, second = str(refused.value).split("; ")
    assert first.startswith("the override 'data={name: digits, batch_size: 0}': data.batch_size is 0")
    assert second.startswith("the override 'optimizer.momentum=2': optimizer.momentum is 2")
    path = tmp_path / "own.yaml"
    path.write_text("name: own\nduration: 1ep\ndata: {name: digits}\nmodel: {name: mlp}\noptimizer: {momentum: 2}\n")
    with pytest.raises(RecipeError, match=r"own.yaml: optimizer.momentum is 2.*"):
        load_recipe(path, ["seed=3"])


def test_quotes_are_explained_where_text_came_out_as_something_else(tmp_path):
    with pytest.raises(RecipeError, match="""data.root is 2024: YAML reads it as a number; .*data.root='"2024"'"""):
        load_recipe("digits-mlp", ["data.root=2024"])
    with pytest.raises(RecipeError, match="data.root is given no value"):
        load_recipe("digits-mlp", ["data.root="])
    with pytest.raises(RecipeError, match="data.root is null, which means no value"):
        load_recipe("digits-mlp", ["data.root=~"])
    assert load_recipe("digits-mlp", ['data.root="2024"']).data.root == "2024"
    assert load_recipe("digits-mlp", ["data.root=2024-01-01"]).data.root == "2024-01-01"


def test_misspelt_algorithms_and_arguments_are_told_without_torch():
    code = """
import sys
from composer_ls.errors import RecipeError
from composer_ls.lab.recipe.reading import load_recipe
for override, part in [("algorithms.cutmixx={}", "did you mean cutmix?"), ("algorithms.mixup.alfa=1", "did you mean alpha?")]:
    try:
        load_recipe("digits-mlp", [override])
    except RecipeError as error:
        assert part in str(error) and override in str(error), error
    else:
        raise AssertionError(override)
assert "torch" not in sys.modules and "composer" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("name", "light"), [("cifar", 2), ("CIFAR10", 2), ("digits", 2), ("imagenet", 1)])
def test_the_beginning_of_a_recipes_name_gets_those_that_a_laptop_can_train(name, light):
    with pytest.raises(RecipeError, match="did you mean") as refused:
        load_recipe(name)
    hint = str(refused.value).partition("did you mean ")[2].partition("?")[0].split(" or ")
    assert len(hint) == light
    assert all(name.lower() in one for one in hint)
    if name != "imagenet":
        assert not any("GPU" in load_recipe(one).needs for one in hint)


def test_a_seed_has_32_bits():
    assert load_recipe("digits-mlp", ["seed=4294967295"]).seed == 2**32 - 1
    with pytest.raises(RecipeError, match="seed is 4294967296: input should be less than 4294967296"):
        load_recipe("digits-mlp", ["seed=4294967296"])


def test_the_schema_describes_every_shipped_recipe():
    schema = recipe_schema().model_json_schema()
    json.dumps(schema)
    for path in shipped_recipes().values():
        assert set(yaml.safe_load(path.read_text())) <= set(schema["properties"])
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("optimiser.lr=1", "optimizer.learning_rate=1"),
        ("optimiser.learning_rat=1", "optimizer.learning_rate=1"),
        ("optimiser.frequency=1", "optimizer"),
        ("optimiser.name=adamw", "optimizer.name=adamw"),
        ("algorithm.mixup.alpha=0.2", "algorithms.mixup.alpha=0.2"),
    ],
)
def test_a_suggestion_is_not_refused_for_its_key(override, meant):
    with pytest.raises(RecipeError, match=f"did you mean {meant}\\?"):
        load_recipe("digits-mlp", [override])


def test_a_target_replaces_a_name_and_a_name_replaces_a_target():
    recipe = load_recipe("digits-mlp", ["model.target=my.nets:make", "model.arguments={width: 3}"])
    assert (recipe.model.name, recipe.model.target, recipe.model.called) == ("target", "my.nets:make", "my.nets:make")
    back = load_recipe("digits-mlp", ["model.target=my.nets:make", "model.arguments={width: 3}", "model.name=cnn"])
    assert back.model == load_recipe("digits-mlp", ["model.name=cnn"]).model
    assert load_recipe("multi30k-transformer", ["data.target=fr"]).data.target == "fr"


def test_networks_of_libraries_are_named_by_them():
    assert load_recipe("digits-mlp", ["model.name=timm/resnet10t.c3_in1k"]).model.weights is None
    recipe = load_recipe("digits-mlp", ["model={name: torchvision/resnet50, weights: default, freeze: backbone}"])
    assert (recipe.model.weights, recipe.model.freeze) == ("default", "backbone")


@pytest.mark.parametrize(
    "override",
    [
        "algorithms.mixup={interpolate_loss: no}",
        "callbacks={speed_monitor: {}, system_metrics_monitor: {log_all_data: off}}",
    ],
)
def test_text_for_what_is_true_or_false_is_refused(override):
    with pytest.raises(RecipeError, match=r"is '(no|off)', but must be true or false"):
        load_recipe("digits-mlp", [override])


def test_a_comment_in_an_override_is_refused_and_text_with_a_number_sign_is_not():
    with pytest.raises(RecipeError, match="holds a comment, which begins with # after a space"):
        load_recipe("cifar10-resnet20-fast", ["data.root=photos #2"])
    for text in ("'photos #2'", "photos#2"):
        assert load_recipe("cifar10-resnet20-fast", [f"data.root={text}"]).data.root == text.strip("'")
