"""Small Hugging Face models of every kind of task, with data to train them on."""

import torch
import transformers as hf
from composer.models import HuggingFaceModel
from torch.utils.data import DataLoader
from trainer_support import fit

V, T, N = 41, 9, 8  # vocabulary, tokens, examples
SMALL = {"vocab_size": V, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def bert(**options):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return hf.BertConfig(**SMALL, **sizes, max_position_embeddings=T, **options)


def gpt2(**options):
    return hf.GPT2Config(**SMALL, n_embd=16, n_layer=1, n_head=2, n_positions=T, **options)


def bart(cls=hf.BartConfig, **options):
    sides = ("encoder", "decoder")
    sizes = {
        f"{side}_{name}": n for side in sides for name, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))
    }
    return cls(**SMALL, **sizes, d_model=16, max_position_embeddings=2 * T, decoder_start_token_id=2, **options)


def t5():
    return hf.T5Config(**SMALL, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)


def resnet():
    return hf.ResNetConfig(hidden_sizes=[8, 8], depths=[1, 1], embedding_size=8, num_labels=5, layer_type="basic")


TASKS = {
    "causal LM": (hf.GPT2LMHeadModel, gpt2, "shifted by one"),
    "causal LM whose labels are not shifted": (hf.BartForCausalLM, bart, "with labels, which are not passed"),
    "masked LM": (hf.BertForMaskedLM, bert, "with labels, which are not passed"),
    "sequence to sequence": (hf.T5ForConditionalGeneration, t5, "with labels, which are not passed"),
    "sequence to sequence with a shift of its own": (
        hf.BartForConditionalGeneration,
        bart,
        "with labels, which are not passed",
    ),
    "sequence to sequence that hides its shift": (
        hf.M2M100ForConditionalGeneration,
        lambda: bart(hf.M2M100Config),
        "in place of the loss that M2M100ForConditionalGeneration also computes",
    ),
    "sequence classification": (
        hf.BertForSequenceClassification,
        lambda: bert(num_labels=5),
        "with labels, which are not passed",
    ),
    "sequence classification by a decoder": (
        hf.BartForSequenceClassification,
        lambda: bart(num_labels=5),
        "not passed to",
    ),
    "token classification": (
        hf.BertForTokenClassification,
        lambda: bert(num_labels=5),
        "with labels, which are not passed",
    ),
    "question answering": (hf.BertForQuestionAnswering, bert, "start_positions (positions outside the text ignored)"),
    "image classification": (hf.ResNetForImageClassification, resnet, "with labels, which are not passed"),
}
TOKENS = [name for name in TASKS if "LM" in name or "sequence to" in name or name == "token classification"]


def wrapped(task, **options):
    cls, config, _ = TASKS[task]
    torch.manual_seed(3)
    config = config()
    for name, value in options.items():
        setattr(config, name, value)
    return HuggingFaceModel(cls(config))


def examples(task, n=N):
    """One dict per example, with some labels ignored."""
    generator = torch.Generator().manual_seed(5)

    def draw(high, *shape):
        return torch.randint(3, high, shape, generator=generator)

    if task == "image classification":
        images = torch.randn(n, 3, 32, 32, generator=generator)
        return [{"pixel_values": image, "labels": label % 5} for image, label in zip(images, draw(V, n), strict=True)]
    ids = draw(V, n, T)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if task == "question answering":
        batch |= {"start_positions": draw(T + 4, n) - 3, "end_positions": draw(T + 4, n) - 3}
    elif task.startswith("sequence classification"):
        batch["input_ids"][:, -1] = 2  # where BART looks
        batch["labels"] = draw(V, n) % 5
    else:
        labels = ids.clone() if "causal" in task else draw(V, n, T)
        labels = labels % 5 if task == "token classification" else labels
        batch["labels"] = torch.where(torch.rand(n, T, generator=generator) < 0.3, -100, labels)
    return [{key: value[i] for key, value in batch.items()} for i in range(n)]


def train(task, algorithms, model=None, steps=2, data=None, **options):
    """The weights, and buffers, after a few steps."""
    model = model or wrapped(task)
    fit(algorithms, model=model, loader=DataLoader(data or examples(task), 4), steps=steps, **options)
    return torch.cat([value.detach().flatten().float() for value in model.state_dict().values()])
