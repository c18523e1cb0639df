"""Planning a comparison: arguments, folders, and existing runs in them."""

import shlex
from pathlib import Path

import pytest
from comparison_support import make_run

from composer_ls.errors import InputError, RecipeError, RunFolderError
from composer_ls.lab.compare.planned_runs import Axis, decimal, make_plan, parse_axis, parse_smoothing
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.run_folder.folder import RunFolder


def plan(out, *overrides, smoothing="0,0.1", seeds=2, vary=()):
    return make_plan("digits-mlp", overrides, smoothing, seeds, vary, out)


def folders(made):
    return [run.folder.relative_to(made.out).as_posix() for run in made.runs]


def test_a_plan_has_a_run_for_each_setting_factor_and_seed_and_goes_seed_by_seed(tmp_path):
    made = plan(tmp_path, smoothing="0,0.05", vary=["algorithms.cutmix=[null, {alpha: 1.0}]"])
    assert folders(made) == [
        f"{setting}/smoothing-{factor}/seed-{seed}"
        for seed in (17, 18)
        for setting in ("plain", "cutmix-alpha-1")
        for factor in ("0", "0.05")
    ]
    assert [run.name for run in made.runs[2:4]] == [
        "cutmix(alpha 1), smoothing 0, seed 17",
        "cutmix(alpha 1), smoothing 0.05, seed 17",
    ]
    assert [(run.recipe.smoothing, run.recipe.seed) for run in made.runs[:2]] == [(0, 17), (0.05, 17)]


def test_seeds_begin_with_the_recipes_own(tmp_path):
    assert [run.recipe.seed for run in plan(tmp_path, "seed=40", smoothing="0", seeds=3).runs] == [40, 41, 42]


def test_the_command_of_a_run_gives_its_recipe(tmp_path):
    for run in plan(
        tmp_path, "duration=2ep", smoothing="0,0.00001", vary=["algorithms.mixup=[null, {alpha: 0.2}]"]
    ).runs:
        program, command, recipe, *overrides, option, out = shlex.split(run.command)
        assert (program, command, recipe, option, out) == (
            "composer-ls",
            "train",
            "digits-mlp",
            "--out",
            str(run.folder),
        )
        assert load_recipe(recipe, overrides) == run.recipe


def test_several_mixers_are_one_axis_of_whole_lists(tmp_path):
    made = plan(tmp_path, smoothing="0.1", seeds=1, vary=["algorithms=[{}, {mixup: {alpha: 0.2}}, {cutmix: {}}]"])
    assert folders(made) == [f"{setting}/smoothing-0.1/seed-17" for setting in ("plain", "mixup-alpha-0.2", "cutmix")]
    assert all(run.recipe.smoothing == 0.1 for run in made.runs)


def test_what_an_axis_does_not_change_without_smoothing_is_run_once(tmp_path):
    made = plan(tmp_path, seeds=1, vary=["algorithms.label_smoothing.implementation=[composer_ls, composer]"])
    assert folders(made) == [
        "implementation-composer_ls/smoothing-0/seed-17",
        "implementation-composer_ls/smoothing-0.1/seed-17",
        "implementation-composer/smoothing-0.1/seed-17",
    ]


@pytest.mark.parametrize(
    "axis",
    [
        "optimizer.learning_rate=[1e-3, 0.001]",
        "optimizer.learning_rate=[1.0e-3, 1e-3]",
        "algorithms.mixup=[{alpha: 0.2}, {alpha: 2e-1}]",
        "algorithms.cutmix=[{alpha: 1}, {alpha: 1.0}]",
        "duration=[2ep, 02ep]",
        "data.label_noise=[{rate: 0.1}, {rate: 1e-1}]",
    ],
)
def test_equal_values_are_one_run_however_they_are_written(tmp_path, axis):
    made = plan(tmp_path, smoothing="0.1", seeds=1, vary=[axis])
    assert len(made.runs) == 1
    assert made.notes == (f"--vary {axis.partition('=')[0]} has a duplicate value, which is used once",)


def test_settings_that_would_share_a_folder_name_do_not(tmp_path):
    made = plan(tmp_path, smoothing="0", seeds=1, vary=["optimizer.weight_decay=[1.0e-6, 1.0000001e-6]"])
    assert len(set(folders(made))) == 2


@pytest.mark.parametrize(
    ("text", "factors", "note"),
    [
        ("0,0.1", (0, 0.1), ""),
        ("0.2, 0,0.2", (0, 0.2), "--smoothing 0.2, 0,0.2 is read as 0,0.2, sorted and without duplicates"),
        ("1", (1,), ""),
        ("-0", (0,), ""),
        ("1e-5", (1e-5,), ""),
    ],
)
def test_factors_are_sorted_and_that_is_told(text, factors, note):
    assert parse_smoothing(text) == (factors, (note,) if note else ())


@pytest.mark.parametrize("text", ["", "0,", "0,1.1", "-0.1", "nan", "0;0.1", "a"])
def test_factors_outside_0_to_1_are_refused(text):
    with pytest.raises(InputError, match=r"--smoothing has .*, but factors are numbers in \[0, 1\]"):
        parse_smoothing(text)


def test_an_axis_keeps_each_value_once():
    axis, notes = parse_axis("model.name=[mlp, cnn, mlp]")
    assert axis == Axis("model.name", ("mlp", "cnn"))
    assert notes == ("--vary model.name has a duplicate value, which is used once",)
    assert parse_axis("data.batch_size=[1, true, 1.0]")[0].values == (1, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.name", "is not KEY="),
        ("model.name=mlp", "is not KEY="),
        ("model.name=[]", "is not KEY="),
        ("model.name=[mlp", "is not KEY="),
        ("=[1]", "is not KEY="),
        ("seed=[1, 2]", "--vary seed: compare varies this key anyway, with --seeds"),
        ("algorithms.label_smoothing.smoothing=[0]", "varies this key anyway, with --smoothing"),
        ("name=[a, b]", "this key only describes the recipe"),
    ],
)
def test_what_is_no_axis_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_axis(text)


@pytest.mark.parametrize(
    "key",
    ["data.root", "device", "data.workers", "data.download", "checkpoints", "checkpoints.keep", "diagnostics.sets"],
)
def test_varying_where_or_how_runs_run_is_refused_with_the_way_out(key):
    with pytest.raises(InputError, match=f"--vary {key}: .*same setting.*two comparisons, each with its own --out"):
        parse_axis(f"{key}=[a, b]")


def test_varying_them_in_a_whole_section_is_refused_too(tmp_path):
    with pytest.raises(InputError, match="--vary data.workers: .*two comparisons, each with its own --out"):
        plan(tmp_path, vary=["data=[{name: digits, workers: 0}, {name: digits, workers: 1}]"])
    assert plan(tmp_path, vary=["data=[{name: digits, batch_size: 32}, {name: digits, batch_size: 64}]"]).runs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "--seeds is 0, but must be at least 1"),
        ({"vary": ["data.batch_size=[1]", "data.batch_size=[2]"]}, "set the same key: give one list"),
        (
            {"vary": ["algorithms=[{}]", "algorithms.mixup=[{}]"]},
            "--vary algorithms and --vary algorithms.mixup set the same",
        ),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        plan(tmp_path, **options)


def test_an_override_of_what_is_varied_is_refused(tmp_path):
    with pytest.raises(InputError, match="smoothing=0.3' and --smoothing set the same key"):
        plan(tmp_path, "algorithms.label_smoothing.smoothing=0.3")
    with pytest.raises(InputError, match="'model.name=cnn' and --vary model.name set the same key"):
        plan(tmp_path, "model.name=cnn", vary=["model.name=[mlp]"])


def test_a_key_that_the_recipe_does_not_have_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="unknown key data.batchsize: did you mean data.batch_size"):
        plan(tmp_path, vary=["data.batchsize=[1, 2]"])


def test_finished_runs_are_found_wherever_in_the_folder_they_are(tmp_path):
    folder = make_run(tmp_path / "some" / "where", 0.1, 17)
    made = plan(tmp_path)
    assert [run.folder for run in made.runs if run.finished] == [folder]
    assert next(run for run in made.runs if run.finished).name == "smoothing 0.1, seed 17"


def test_a_comparison_can_be_widened_without_losing_what_is_there(tmp_path):
    for run in plan(tmp_path).runs:
        make_run(run.folder, run.recipe.smoothing, run.recipe.seed)
    wider = plan(tmp_path, smoothing="0,0.1,0.2", seeds=3, vary=["algorithms.mixup=[null, {}]"])
    assert sum(run.finished for run in wider.runs) == 4
    assert len({run.folder for run in wider.runs}) == len(wider.runs) == 18


def test_a_finished_run_goes_before_an_unfinished_one_of_the_same_recipe(tmp_path):
    finished = make_run(tmp_path / "b", 0.1, 17)
    for name in "ac":
        (make_run(tmp_path / name, 0.1, 17) / "result.json").unlink()
    assert finished in [run.folder for run in plan(tmp_path).runs]


def test_runs_of_another_recipe_are_refused_with_the_keys(tmp_path):
    make_run(tmp_path / "other", 0.1, 17, "optimizer.learning_rate=0.5", "data.batch_size=32")
    with pytest.raises(
        InputError, match=r"another recipe \(other differs in data.batch_size, optimizer.learning_rate\): .* --out DIR"
    ):
        plan(tmp_path)
    assert plan(tmp_path, vary=["data.batch_size=[32, 64]", "optimizer.learning_rate=[0.5]"]).runs


def test_a_folder_whose_recipe_cannot_be_read_is_left_to_the_report(tmp_path):
    (make_run(tmp_path / "torn") / "recipe.yaml").write_text("name: [")
    assert len(plan(tmp_path).runs) == 4


def test_the_folder_follows_from_the_recipe_and_the_axes_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = plan(None).out
    assert base.parent.name == "runs"
    assert base.name.startswith("compare-digits-mlp-")
    assert plan(None, "seed=3", smoothing="0,0.5", seeds=7).out == base
    assert plan(None, "duration=2ep").out != base
    assert plan(None, vary=["model.name=[mlp]"]).out != base
    assert plan(None, vary=["model.name=[cnn]"]).out == plan(None, vary=["model.name=[mlp, cnn]"]).out


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.1, "0.1"), (1.0, "1"), (1e-5, "0.00001"), (0.30000001, "0.30000001")]
)
def test_a_factor_is_written_without_an_exponent(value, text):
    assert decimal(value) == text


def test_a_home_folder_is_found_where_the_shell_leaves_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    planned = make_plan("digits-mlp", [], "0,0.1", 1, [], Path("~/runs"))
    assert planned.out == tmp_path / "runs"
    assert all(tmp_path in run.folder.parents for run in planned.runs)


ALL = "none,label_smoothing,max_sup,online_label_smoothing"


def test_methods_share_the_runs_without_smoothing(tmp_path):
    made = make_plan("digits-mlp", [], "0.1,0.2", 2, [], tmp_path, ALL)
    one_seed = [
        "plain/smoothing-0",
        *(f"{method}/smoothing-{factor}" for method in ALL.split(",")[1:] for factor in ("0.1", "0.2")),
    ]
    assert folders(made) == [f"{folder}/seed-{seed}" for seed in (17, 18) for folder in one_seed]
    assert [run.recipe.method for run in made.runs[:7:2]] == [
        None,
        "label_smoothing",
        "max_sup",
        "online_label_smoothing",
    ]
    for run in made.runs:
        assert load_recipe("digits-mlp", shlex.split(run.command)[3:-2]) == run.recipe
        assert sum(arguments is not None for arguments in run.recipe.algorithms.values()) == 1


def test_runs_of_an_earlier_comparison_of_factors_are_used(tmp_path):
    earlier = {factor: make_run(tmp_path / str(factor), factor, 17) for factor in (0.0, 0.1)}
    made = make_plan("digits-mlp", [], "0.1", 1, [], tmp_path, ALL)
    assert [run.folder for run in made.runs[:2]] == [earlier[0.0], earlier[0.1]]
    assert [run.finished for run in made.runs] == [True, True, False, False]
    make_run(tmp_path / "max_sup", 0, 17, "algorithms.label_smoothing=null", "algorithms.max_sup={strength: 0.1}")
    again = make_plan("digits-mlp", [], "0.1", 1, [], tmp_path, ALL)
    assert [run.finished for run in again.runs] == [True, True, True, False]


def test_wrong_methods_are_refused(tmp_path):
    with pytest.raises(InputError, match="--methods has 'maxsup', but methods are none, label_smoothing, max_sup"):
        make_plan("digits-mlp", [], "0.1", 1, [], tmp_path, "none,maxsup")
    with pytest.raises(InputError, match="set the same key"):
        make_plan("digits-mlp", ["algorithms.max_sup.strength=0.3"], "0.1", 1, [], tmp_path, ALL)


MIX, CUT = '"mixup": {"alpha": 0.2}', '"cutmix": {"alpha": 1.0}'


def test_the_order_of_algorithms_is_a_part_of_the_run(tmp_path):
    first, second = (load_recipe("digits-mlp", [f"algorithms={{{a}, {b}}}"]) for a, b in ((MIX, CUT), (CUT, MIX)))
    assert first.fingerprint() != second.fingerprint()
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run", first).write_recipe()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    with pytest.raises(RunFolderError, match="differ in order of algorithms"):
        RunFolder(tmp_path / "run", second).check(overwrite=False)
    planned = plan(tmp_path / "all", seeds=1, vary=[f"algorithms=[{{{MIX}, {CUT}}}, {{{CUT}, {MIX}}}]"])
    names = [run.name for run in planned.runs]
    assert len(names) == len(set(names)) == 4
    assert any("order mixup, cutmix" in name for name in names)


def test_the_place_of_what_finds_its_own_is_no_part_of_the_run():
    ours = '"label_smoothing": {"smoothing": 0.1}'
    first, second = (load_recipe("digits-mlp", [f"algorithms={{{a}, {b}}}"]) for a, b in ((MIX, ours), (ours, MIX)))
    assert first.fingerprint() == second.fingerprint()
    theirs = '"label_smoothing": {"smoothing": 0.1, "implementation": "composer"}'
    first, second = (load_recipe("digits-mlp", [f"algorithms={{{a}, {b}}}"]) for a, b in ((MIX, theirs), (theirs, MIX)))
    assert first.fingerprint() != second.fingerprint()


@pytest.mark.parametrize(
    ("overrides", "vary"),
    [
        (["algorithms.label_smoothing={smoothing: 0.3}"], ()),
        (["algorithms={label_smoothing: {smoothing: 0.3}}"], ()),
        ([], ["algorithms.label_smoothing=[{smoothing: 0.05}, {smoothing: 0.2}]"]),
        ([], ["algorithms=[{label_smoothing: {smoothing: 0.3}}, {}]"]),
    ],
)
def test_a_factor_inside_a_mapping_is_refused_as_one_of_its_own_is(overrides, vary, tmp_path):
    with pytest.raises(InputError, match="as --smoothing does"):
        plan(tmp_path, *overrides, vary=vary)


def test_by_default_the_recipes_own_method_is_compared(tmp_path):
    made = plan(tmp_path, "algorithms.label_smoothing=null", "algorithms.max_sup={ignore_index: 0}", seeds=1)
    assert [run.recipe.method for run in made.runs] == [None, "max_sup"]
    assert made.runs[1].recipe.algorithms["max_sup"] == {"ignore_index": 0, "strength": 0.1}
    assert made.notes == ()


@pytest.mark.parametrize("override", ["algorithms.max_sup={}", "algorithms.max_sup.ignore_index=0"])
def test_an_override_about_a_method_that_is_off_in_all_runs_is_refused(tmp_path, override):
    with pytest.raises(InputError, match=r"is about max_sup, which is off in all runs.*add max_sup to --methods"):
        make_plan("digits-mlp", [override], "0,0.1", 1, (), tmp_path, "label_smoothing")
    make_plan("digits-mlp", [override], "0,0.1", 1, (), tmp_path, "label_smoothing,max_sup")
    make_plan("digits-mlp", ["algorithms.max_sup=null"], "0,0.1", 1, (), tmp_path, "label_smoothing")


@pytest.mark.parametrize(
    ("algorithms", "methods", "smoothing", "note"),
    [
        ("{max_sup: {strength: 0.2}}", "label_smoothing", "0,0.1", "the recipe's own max_sup is off in all runs"),
        (
            "{label_smoothing: {smoothing: 0.05}}",
            None,
            "0,0.1",
            "own smoothing of 0.05; --smoothing 0,0.05 compares it",
        ),
        ("{label_smoothing: {smoothing: 0.05}}", None, "0,0.05", None),
        ("{label_smoothing: {smoothing: 0}}", None, "0,0.1", None),
        ("{}", None, "0,0.1", None),
        (
            "{label_smoothing: {smoothing: {schedule: cosine, start: 0.2, end: 0}}}",
            None,
            "0,0.1",
            r'smoothing={"schedule": "cosine", "start": 0.2, "end": 0.0}, because compare takes constant factors, here 0, 0.1;',
        ),
    ],
)
def test_a_note_says_if_no_run_smooths_as_the_recipe_does(tmp_path, algorithms, methods, smoothing, note):
    file = tmp_path / "mine.yaml"
    text = (Path(__file__).parents[3] / "recipes" / "digits-mlp.yaml").read_text()
    file.write_text(text[: text.index("algorithms:")] + f"algorithms: {algorithms}\n")
    made = make_plan(str(file), (), smoothing, 1, (), tmp_path / "all", methods)
    assert len(made.notes) == (note is not None)
    assert note is None or note in made.notes[0]
