"""Translation recipes: training on a toy language, what a run leaves, and composer-ls translate."""

import io
import json
import math
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from composer.models import HuggingFaceModel
from composer.utils import dist
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, MarianConfig, MarianMTModel, pipeline

from composer_ls.errors import MissingPackageError, RecipeError, TextError
from composer_ls.lab.commands.cli import main
from composer_ls.lab.compare.measured_runs import read_runs
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.run_folder.folder import RunFolder
from composer_ls.lab.tasks.registry import open_task
from composer_ls.lab.tasks.translation.batches import IGNORED
from composer_ls.lab.tasks.translation.data import read_pairs
from composer_ls.lab.tasks.translation.subwords import encode, learn_tokenizer
from composer_ls.lab.tasks.translation.translator import Translator
from composer_ls.lab.training.algorithms import build_algorithms
from composer_ls.lab.training.train import train


def test_a_run_learns_the_toy_language_and_leaves_its_numbers(run):
    result = json.loads((run / "result.json").read_text())
    assert result["task"] == "translation"
    metrics = result["metrics"]
    assert metrics["bleu"] > 30
    assert metrics["accuracy"] > 0.85
    assert 0 < metrics["nll"] < 1
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["nll"]))
    assert 0 < metrics["ece"] < 0.5
    assert result["bleu_signature"].startswith("nrefs:1|case:lc|")
    assert result["tests"]["test"] == metrics
    assert result["plan"].startswith("smoothing 0.1, to the given prior; loss cross_entropy, fused")
    assert "PegasusForConditionalGeneration" in result["plan"]


def test_a_run_leaves_a_folder_that_hugging_face_opens_and_its_translations_are_ours(run, data):
    source = read_pairs(data, "test", "en", "de").source
    ours = (run / "translations.test.de").read_text().splitlines()
    network = AutoModelForSeq2SeqLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    tokens = network.generate(**tokenizer(source, return_tensors="pt", padding=True))
    assert tokenizer.batch_decode(tokens, skip_special_tokens=True) == ours
    translate = pipeline("translation", model=str(run / "model"), device="cpu")
    assert [one["translation_text"] for one in translate(source, num_beams=2)] == ours


def test_the_predictions_give_the_metrics_again(run):
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    scores = load_file(run / "predictions.safetensors")
    assert -scores["log_probability"].double().mean().item() == pytest.approx(metrics["nll"], rel=1e-5)
    assert scores["correct"].double().mean().item() == pytest.approx(metrics["accuracy"])
    bins = (scores["confidence"] * 15).long().clamp(max=14)
    gaps = torch.zeros(15).index_add(0, bins, scores["confidence"] - scores["correct"].float())
    assert gaps.abs().sum().item() / len(bins) == pytest.approx(metrics["ece"], abs=1e-3)


def test_a_report_computes_what_the_run_measured(run):
    (reported,), _ = read_runs(run)
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert {key: reported.values[key] for key in metrics if key != "perplexity"} == pytest.approx(
        {key: value for key, value in metrics.items() if key != "perplexity"}
    )


def test_compare_says_whether_smoothing_helps_translation(data, tmp_path, capsys):
    words = ["duration=1ep", "--seeds", "2", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as exit_info:
        main(["compare", str(data / "toy.yaml"), *words])
    assert not exit_info.value.code
    assert re.search(r"^BLEU [+-]\d+\.\d\d.*, 2 seeds: \w+", capsys.readouterr().out, re.M)
    assert (tmp_path / "out" / "report.html").is_file()


def test_compare_finds_what_does_not_fit_before_anything_runs(data, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["compare", str(data / "toy.yaml"), "algorithms.mixup={}", "--out", str(tmp_path / "out")])
    assert exit_info.value.code == 2
    assert "MixUp is for images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_run_folder_alone_translates_as_the_run_did(run, data):
    source = read_pairs(data, "test", "en", "de").source
    translations = (run / "translations.test.de").read_text().splitlines()
    assert Translator.load(run).translate(source, batch=7) == translations


def test_capitals_are_written_and_counted_if_the_recipe_keeps_them(run, data, tmp_path):
    recipe = load_recipe(data / "toy.yaml", ["data.lowercase=false"])
    result = train(recipe, RunFolder(tmp_path, recipe), progress=False)
    assert result["bleu_signature"].startswith("nrefs:1|case:mixed|")
    kept, small = ((folder / "translations.test.de").read_text() for folder in (tmp_path, run))
    assert "Mann" in kept
    assert "mann" not in kept
    assert "mann" in small
    assert small == small.lower()


def translate(run, text, monkeypatch, capfdbinary, *options):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    code = 0
    try:
        main(["translate", str(run), *options])
    except SystemExit as stop:
        code = stop.code
    return code or 0, *capfdbinary.readouterr()


def test_translate_gives_one_line_per_line_and_empty_lines_stay(run, monkeypatch, capfdbinary):
    text = b"A man runs\n\nThe red tree\r\n   \ndog"
    code, out, _ = translate(run, text, monkeypatch, capfdbinary, "--beam", "3", "--batch", "1")
    assert code == 0
    man, tree, dog = Translator.load(run).translate(["a man runs", "the red tree", "dog"], beam=3)
    assert out.decode() == f"{man}\n\n{tree}\n\n{dog}\n"
    assert all((man, tree, dog))


def test_with_a_batch_of_one_each_line_is_answered_before_the_next_is_read(run, monkeypatch, capfdbinary):
    answers = []

    def lines():
        for line in (b"a dog\n", b"\n", b"the man\n"):
            yield line
            answers.append(capfdbinary.readouterr().out.count(b"\n"))

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=lines(), isatty=lambda: False))
    with pytest.raises(SystemExit) as stop:
        main(["translate", str(run), "--batch", "1", "--beam", "1"])
    assert not stop.value.code
    assert answers == [1, 1, 1]


def test_translate_of_nothing_is_nothing(run, monkeypatch, capfdbinary):
    assert translate(run, b"", monkeypatch, capfdbinary)[:2] == (0, b"")


@pytest.mark.slow
def test_translate_round_trips_on_a_pipe(run):
    command = [sys.executable, "-m", "composer_ls", "translate", str(run), "--beam", "1"]
    done = subprocess.run(command, input=b"The big dog\n\na child\n", capture_output=True, timeout=120)
    assert done.returncode == 0
    dog, child = Translator.load(run).translate(["the big dog", "a child"], beam=1)
    assert done.stdout.decode() == f"{dog}\n\n{child}\n"


def test_what_is_not_utf8_is_told_with_its_line(run, monkeypatch, capfdbinary):
    code, out, err = translate(run, b"a dog\nM\xfctze\n", monkeypatch, capfdbinary)
    assert code == 2
    assert "standard input, line 2: byte 2 (0xfc) is not UTF-8" in err.decode()
    assert b"Traceback" not in err
    del out


def test_a_long_line_is_cut_and_told(run, monkeypatch, capfdbinary, caplog):
    code, out, _ = translate(run, b"a dog\n" + b"the man " * 30 + b"\n", monkeypatch, capfdbinary)
    assert code == 0
    assert len(out.splitlines()) == 2
    assert (
        "standard input: 1 of 2 sentences have more than 24 subwords, including the end (line 2) and were cut"
        in caplog.text
    )


def test_a_translation_that_reaches_the_limit_is_told_with_its_line(run):
    translator, told = Translator.load(run), []
    short, long = "the dog", "the big red tree a"
    translator.translate([short, "", long], warn=told.append)
    assert told == []
    translator.longest = 7
    translator.translate([short, "", long], first=7, warn=told.append)
    assert told == [
        "the input: 1 of 3 translations reach the maximum of 7 subwords, so their ends may be missing (line 9)"
    ]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--beam", "0"), "beam is 0, but must be at least 1"),
        (("--temperature", "0"), "temperature is 0.0, but must be more than 0"),
        (("--length-penalty", "-1"), "length_penalty is -1.0, but must be at least 0"),
        (("--batch", "0"), "batch is 0, but must be at least 1"),
    ],
)
def test_a_wrong_option_is_named(run, monkeypatch, capfdbinary, option, message):
    code, out, err = translate(run, b"a dog\n", monkeypatch, capfdbinary, *option)
    assert (code, out) == (2, b"")
    assert message in err.decode()


def test_only_the_folder_of_a_finished_translation_run_translates(run, tmp_path, monkeypatch, capfdbinary):
    _, _, err = translate(tmp_path / "none", b"", monkeypatch, capfdbinary)
    assert "there is no run in" in err.decode()
    (tmp_path / "none").mkdir()
    _, _, err = translate(tmp_path / "none", b"", monkeypatch, capfdbinary)
    assert "and no config.json" in err.decode()
    recipe = load_recipe("digits-mlp")
    folder = RunFolder(tmp_path / "digits", recipe)
    folder.path.mkdir()
    folder.write_recipe()
    _, _, err = translate(folder.path, b"", monkeypatch, capfdbinary)
    assert "is a run of the recipe digits-mlp, which does not translate" in err.decode()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    _, _, err = translate(tmp_path / "half", b"", monkeypatch, capfdbinary)
    assert "is not finished" in err.decode()


def test_weights_of_other_subwords_are_told(run, tmp_path, monkeypatch, capfdbinary):
    shutil.copytree(run, tmp_path / "copy")
    learn_tokenizer([f"word{index} " * 3 for index in range(300)], 600).save_pretrained(tmp_path / "copy" / "model")
    _, _, err = translate(tmp_path / "copy", b"a dog\n", monkeypatch, capfdbinary)
    assert "its tokenizer has ids up to" in " ".join(err.decode().split())


def test_translate_takes_any_folder_of_hugging_face(tmp_path, monkeypatch, capfdbinary):
    learn_tokenizer(["a man and a dog"], 280).save_pretrained(tmp_path)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 1}
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    torch.manual_seed(0)
    MarianMTModel(MarianConfig(280, **ids, **sizes, max_position_embeddings=40)).save_pretrained(tmp_path)
    code, out, err = translate(tmp_path, b"a man\n\na dog\n", monkeypatch, capfdbinary, "--beam", "2")
    assert code == 0, err
    man, empty, dog = out.decode().splitlines()
    assert (man, dog) == tuple(Translator.load(tmp_path).translate(["a man", "a dog"], beam=2))
    assert empty == ""


def test_the_unigram_prior_is_the_frequency_of_subwords_in_the_training_translations(data):
    opened = open_task(load_recipe(data / "toy.yaml"))
    counts = torch.zeros(opened.num_classes)
    for row in encode(opened._tokenizer, read_pairs(data, "train", "en", "de").target, 24):
        for token in row:
            counts[token] += 1
    (smoothing,) = build_algorithms({"label_smoothing": {"prior": "unigram"}}, opened.num_classes, opened.label_counts)
    assert torch.allclose(smoothing.prior, counts / counts.sum(), atol=1e-6)
    assert smoothing.prior[0] == 0  # padding is never said


def test_two_processes_of_one_seed_would_train_on_the_same_text(data):
    first, second = (open_task(load_recipe(data / "toy.yaml")) for _ in range(2))
    left, right = (next(iter(one.training_loader().dataloader))["labels"] for one in (first, second))
    assert torch.equal(left, right)
    other = open_task(load_recipe(data / "toy.yaml", ["seed=18"]))
    assert not torch.equal(left[:, :1], next(iter(other.training_loader().dataloader))["labels"][:, :1])


def test_fewer_batches_than_processes_are_refused(data, monkeypatch):
    opened = open_task(load_recipe(data / "toy.yaml", ["data.examples=4"]))
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(RecipeError, match="data.batch_tokens=100 gives 1 batches for 2 processes: make it smaller"):
        opened.training_loader()


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_test_sentence_counts_once_in_any_number_of_processes(data, monkeypatch, processes):
    opened = open_task(load_recipe(data / "toy.yaml", ["data.batch_tokens=64"]))
    counted, batches, repeated = [], set(), set()
    monkeypatch.setattr(dist, "get_world_size", lambda: processes)
    for rank in range(processes):
        monkeypatch.setattr(dist, "get_global_rank", lambda rank=rank: rank)
        loader = opened.evaluation_loader().dataloader
        repeated.add(loader.sampler.total_size - len(loader.dataset))
        batches.add(len(loader))
        counted += [row[row != IGNORED].tolist() for batch in loader for row in batch["labels"]]
    assert (len(batches), repeated) == (1, {0})  # what is repeated, Composer removes by the number of sentences
    assert sorted(filter(None, counted)) == sorted(row["labels"] for row in opened._test_rows["test"])


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["model.compile=true"], RecipeError, "model.compile=true does not go with translation"),
        (["microbatch_size=8"], RecipeError, "microbatch_size=8 does not go with translation"),
        (["data.too_long=refuse", "data.longest=4"], TextError, "data.longest=4 allows"),
        (["data.batch_tokens=3"], RecipeError, "data.batch_tokens=3 is less than"),
        (["algorithms.mixup={}"], RecipeError, "MixUp is for images"),
        (["algorithms.label_smoothing.prior=bigram"], RecipeError, "prior is 'bigram', but must be uniform, unigram"),
        (["schedule.warmup=0ba"], RecipeError, "schedule.name=inverse_sqrt needs a warmup"),
        (
            ["algorithms.label_smoothing={implementation: composer}"],
            RecipeError,
            "implementation=composer does not reach",
        ),
        (["model={name: mlp}"], RecipeError, "use data and a model of one task"),
        (["data.tests=[]"], RecipeError, "data.tests is"),
        (["data.source=de"], RecipeError, "data.source and data.target are both de: set one"),
        (["data.beam=3"], RecipeError, "unknown key data.beam"),
    ],
)
def test_a_recipe_that_cannot_be_is_told(data, tmp_path, overrides, error, message):
    def start():
        recipe = load_recipe(data / "toy.yaml", overrides)
        train(recipe, RunFolder(tmp_path / "run", recipe), progress=False)

    with pytest.raises(error, match=message):
        start()
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_run_warns_of_cut_sentences_and_of_translations_that_reach_the_limit(data, tmp_path):
    recipe = load_recipe(data / "toy.yaml", ["data.longest=4", "duration=2ep", "model.beam=1"])
    warnings = train(recipe, RunFolder(tmp_path, recipe), progress=False)["warnings"]
    for expected in (
        r"The target of train: \d+ of 600 sentences have more than 4 subwords, including the end \(line .*\) and were cut.",
        r"The source of test: \d+ of 40 sentences have more than 4 subwords, including the end \(line .*\) and were cut.",
        r"The source of test: \d+ of 40 translations reach the maximum of 4 subwords, so their ends may be missing \(line .*\).",
    ):
        assert len([warning for warning in warnings if re.fullmatch(expected, warning)]) == 1


def test_a_run_warns_of_test_pairs_that_it_has_learnt(run):
    warnings = json.loads((run / "result.json").read_text())["warnings"]
    assert any(re.fullmatch(r"Test: \d+ of 40 pairs are in train too \(line .*\)\.", warning) for warning in warnings)


def test_a_run_without_such_sentences_does_not_warn_of_them(run):
    assert not any("subwords" in warning for warning in json.loads((run / "result.json").read_text())["warnings"])


def test_bleu_is_that_of_the_target_language(data, tmp_path):
    for split in ("train", "test"):
        shutil.copy(data / f"{split}.en.gz", tmp_path)
        shutil.copy(data / f"{split}.de.gz", tmp_path / f"{split}.zh.gz")
    recipe = load_recipe(data / "toy.yaml", [f"data.root={tmp_path}", "data.target=zh", "duration=1ba"])
    result = train(recipe, RunFolder(tmp_path / "run", recipe), progress=False)
    assert "|tok:zh|" in result["bleu_signature"]


def test_a_missing_tokenizer_is_told_before_training(data, monkeypatch):
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_ja_mecab.MeCab", None)
    with pytest.raises(MissingPackageError, match="BLEU of ja needs"):
        open_task(load_recipe(data / "toy.yaml", ["data.target=ja"]))


def test_another_run_leaves_no_file_of_the_one_before(run, data, tmp_path):
    recipe = load_recipe(data / "toy.yaml")
    folder = RunFolder(tmp_path, recipe)
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    assert (tmp_path / "model" / "model.safetensors").is_file()
    folder.clear()
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_run_stopped_within_an_epoch_goes_on_with_the_same_sentences(data, tmp_path, monkeypatch):
    overrides = [
        "duration=2ep",
        "checkpoints.interval=3ba",
        "data.examples=60",
        "model.arguments.dropout=0.1",
        "data.batch_tokens=60",
    ]
    recipe = load_recipe(data / "toy.yaml", overrides)

    def go(name):
        return train(recipe, RunFolder(tmp_path / name, recipe), progress=False)

    whole, calls = go("whole"), []
    forward = HuggingFaceModel.forward

    def stops_in_the_second_epoch(model, batch):
        calls.extend([1] * model.training)
        if len(calls) > whole["steps"] - 2:
            raise KeyboardInterrupt
        return forward(model, batch)

    monkeypatch.setattr(HuggingFaceModel, "forward", stops_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        go("stopped")
    monkeypatch.undo()
    resumed = go("stopped")
    assert resumed["steps"] == whole["steps"] > 6
    assert resumed["metrics"] == pytest.approx(whole["metrics"], rel=1e-6)
