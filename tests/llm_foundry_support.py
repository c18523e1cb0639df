"""Small trainings by LLM-Foundry's own `train()`: data, tokenizer and models made here, nothing downloaded."""

import contextlib
import copy
import gc
import importlib.util
import json
import logging
import random
import resource
import warnings
from pathlib import Path

import pytest
import torch
from llmfoundry.command_utils import train as llm_foundry_train
from omegaconf import OmegaConf
from torch.nn import functional as F
from transformers import GPT2Config, LlamaConfig

EXAMPLE = Path(__file__).parents[1] / "examples" / "llm_foundry"
LENGTH, VOCABULARY, STEPS = 16, 300, 20

# Each training keeps some 40 files open, because streaming never closes its shared memory.
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)


def example(name):
    """A script of the example, as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_data(folder):
    """What the example's script makes of a text in a toy language, with prompts and responses of it beside."""
    words = ["der", "die", "das", "ein", "Hund", "Mann", "Frau", "läuft", "sitzt", "Straße", "auf", "mit", "rot"]
    drawn = random.Random(3)
    text = [" ".join(drawn.choices(words, k=drawn.randint(3, 12))) for _ in range(900)]
    (folder / "train.txt").write_text("\n".join(text[:800]), encoding="utf-8")
    (folder / "val.txt").write_text("\n".join(text[800:]), encoding="utf-8")
    arguments = ["prepare.py", "--vocabulary", str(VOCABULARY), "--length", str(LENGTH)]
    for name in ("train", "val"):
        arguments += [f"--{name}", str(folder / f"{name}.txt")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [*arguments, "--out", str(folder / "data")])
        example("prepare").main()
    (folder / "prompts").mkdir()
    rows = [{"prompt": f"{a} ", "response": b} for a, b in zip(text[:400], text[400:800], strict=True)]
    (folder / "prompts" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sizes = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=64, resid_pdrop=0.1, **sizes).save_pretrained(
        folder / "gpt2"
    )
    LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, **sizes
    ).save_pretrained(folder / "llama")
    return folder


def model_of(name, folder):
    """A model's part of the configuration: an MPT, or a Hugging Face model, whole or with LoRA."""
    if name == "mpt":
        sizes = {
            "d_model": 32,
            "n_heads": 2,
            "n_layers": 1,
            "expansion_ratio": 2,
            "max_seq_len": LENGTH,
            "vocab_size": VOCABULARY,
        }
        options = {"attn_config": {"attn_impl": "torch"}, "loss_fn": "torch_crossentropy", "resid_pdrop": 0.1}
        return {"name": "mpt_causal_lm", "init_device": "cpu", **sizes, **options}
    base, _, lora = name.partition("+")
    model = {
        "name": "hf_causal_lm",
        "pretrained_model_name_or_path": str(folder / base),
        "pretrained": False,
        "init_device": "cpu",
    }
    if lora:
        model["peft_config"] = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": 4,
            "lora_alpha": 8,
            "lora_dropout": 0.1,
            "target_modules": ["q_proj", "v_proj"],
        }
    return model


def loader_of(name, folder):
    """A training loader's part of the configuration: text, or prompts and responses, one or several in a sequence."""
    if name == "text":
        dataset = {"local": str(folder / "data"), "split": "train", "shuffle": True, "max_seq_len": LENGTH}
        return {"name": "text", "dataset": dataset, **_WORKERS}
    dataset = {
        "hf_name": str(folder / "prompts"),
        "split": "train",
        "max_seq_len": 3 * LENGTH,
        "decoder_only_format": True,
        "shuffle": True,
    }
    if name == "packed":
        dataset["packing_ratio"] = 1.5
    return {"name": "finetuning", "dataset": dataset, **_WORKERS}


_WORKERS = {
    "drop_last": True,
    "num_workers": 0,
    "prefetch_factor": None,
    "persistent_workers": False,
    "pin_memory": False,
}


def configuration(folder, model="mpt", loader="text", algorithms=None, **others):
    """A configuration as a YAML file would give it."""
    evaluated = {"local": str(folder / "data"), "split": "val", "shuffle": False, "max_seq_len": LENGTH}
    made = {
        "seed": 5,
        "max_seq_len": LENGTH if loader == "text" else 3 * LENGTH,
        "max_duration": f"{STEPS}ba",
        "eval_interval": f"{STEPS}ba",
        "eval_subset_num_batches": 4,
        "precision": "fp32",
        "global_train_batch_size": 4,
        "device_train_microbatch_size": 2,
        "device_eval_batch_size": 4,
        "model": model_of(model, folder),
        "tokenizer": {"name": str(folder / "data" / "tokenizer"), "kwargs": {"model_max_length": 64}},
        "train_loader": loader_of(loader, folder),
        "eval_loader": {"name": "text", "dataset": evaluated, **_WORKERS, "drop_last": False},
        # A bias of keys has a gradient of rounding alone, which Adam with a usual eps would make steps of.
        "optimizer": {"name": "decoupled_adamw", "lr": 2e-2, "betas": [0.9, 0.95], "eps": 1e-2, "weight_decay": 0.0},
        "scheduler": {"name": "constant_with_warmup", "t_warmup": "2ba"},
        "log_config": False,
        "log_to_console": False,
        "python_log_level": "warning",
        **others,
    }
    if loader != "text":  # its sequences are longer than an MPT of this length takes
        made["model"].update({"max_seq_len": 3 * LENGTH} if model == "mpt" else {})
        made["eval_loader"]["dataset"]["max_seq_len"] = LENGTH
    if algorithms is not None:
        made["algorithms"] = algorithms
    return made


def train(settings):
    """The Trainer after LLM-Foundry's `train()`."""
    with warnings.catch_warnings(), _logging_as_it_was():
        warnings.simplefilter("ignore")
        trainer = llm_foundry_train(OmegaConf.create(copy.deepcopy(settings)))
    gc.collect()
    return trainer


def weights(trainer):
    """What was trained, by name."""
    model = trainer.state.model
    model = getattr(model, "module", model)
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def measured(trainer):
    """What the last evaluation measured, and what training did."""
    found = {f"eval/{name}": metric.compute() for name, metric in trainer.state.eval_metrics["eval"].items()}
    return found | {f"train/{name}": metric.compute() for name, metric in trainer.state.train_metrics.items()}


def assert_same(found, expected, tolerance=1e-5):
    """Whether tensors with the same names agree, relative to the largest number of each."""
    assert found.keys() == expected.keys()
    assert found
    for name, value in expected.items():
        worst = (found[name] - value).abs().max() / value.abs().max().clamp(min=1e-3)
        assert worst <= tolerance, f"{name} differs by {worst:.2g} of its largest number"


@contextlib.contextmanager
def every_cross_entropy_smooths(smoothing):
    """What a user without this package would do: `label_smoothing=` in every cross entropy that has a gradient."""
    real = F.cross_entropy

    def smoothed(*args, **options):
        if torch.is_grad_enabled():
            options["label_smoothing"] = smoothing
        return real(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "cross_entropy", smoothed)
        yield


@contextlib.contextmanager
def _logging_as_it_was():
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
