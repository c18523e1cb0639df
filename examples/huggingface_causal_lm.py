"""Trains a small GPT-2 on English captions with Composer's HuggingFaceModel, with smoothing 0 and 0.1.

The text is the English side of Multi30k (https://github.com/multi30k/dataset, task 1, raw): train.en.gz and val.en.gz in
one folder. Nothing is downloaded: subwords are learnt from the text, and the network starts from random weights.

    python examples/huggingface_causal_lm.py --data multi30k            # five epochs of 29,000 sentences
    python examples/huggingface_causal_lm.py --data multi30k --quick    # one epoch of 6,400, under 2 minutes on 2 cores
    python examples/huggingface_causal_lm.py --data multi30k --quick --logits never    # the same in less memory
"""

import argparse
import gzip
import resource
from pathlib import Path

import torch
from composer import Trainer
from composer.models import HuggingFaceModel
from composer.optim import CosineAnnealingWithWarmupScheduler
from composer.utils import reproducibility
from tokenizers import ByteLevelBPETokenizer
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from composer_ls import LabelSmoothing
from composer_ls.composition import describe
from composer_ls.diagnostics.tokens import perplexity, token_calibration_error, token_scores

VOCABULARY, LONGEST, END = 4_000, 64, 0

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", type=Path, required=True, help="the folder with train.en.gz and val.en.gz")
parser.add_argument("--seed", type=int, default=17)
parser.add_argument("--quick", action="store_true", help="one epoch of 6,400 sentences instead of five of 29,000")
parser.add_argument(
    "--logits", choices=("kept", "never"), default="kept", help="never: train without making the logits"
)
arguments = parser.parse_args()


def sentences(name):
    """The lines of one file."""
    path = arguments.data / f"{name}.en.gz"
    if not path.is_file():
        parser.error(f"{path} does not exist: --data is the folder with train.en.gz and val.en.gz of Multi30k")
    return gzip.open(path, "rt", encoding="utf-8").read().splitlines()


train_text, val_text = sentences("train")[: 6_400 if arguments.quick else None], sentences("val")
tokenizer = ByteLevelBPETokenizer()
tokenizer.train_from_iterator(train_text, vocab_size=VOCABULARY, special_tokens=["<|end|>"], show_progress=False)


def collate(texts):
    """A padded batch of sentences with an end token on both sides. Padding is ignored in the labels."""
    ids = [torch.tensor([END, *tokenizer.encode(text).ids[: LONGEST - 2], END]) for text in texts]
    labels = pad_sequence(ids, batch_first=True, padding_value=-100)
    return {"input_ids": labels.clamp(min=END), "attention_mask": (labels != -100).long(), "labels": labels}


def train(smoothing):
    """Train a model."""
    reproducibility.seed_all(arguments.seed)
    config = GPT2Config(VOCABULARY, LONGEST, n_embd=128, n_layer=3, n_head=4, bos_token_id=END, eos_token_id=END)
    model = HuggingFaceModel(GPT2LMHeadModel(config))
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(train_text, 64, shuffle=True, collate_fn=collate),
        max_duration="1ep" if arguments.quick else "5ep",
        algorithms=[LabelSmoothing(smoothing, logits=arguments.logits)],
        optimizers=torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01),
        schedulers=CosineAnnealingWithWarmupScheduler("0.05dur"),
        progress_bar=False,
        seed=arguments.seed,
    )
    trainer.fit()
    print(describe(trainer))
    trainer.close()
    return model.model


@torch.no_grad()
def predictions(network):
    """Logits (N, K, T) and labels (N, T) of the validation text."""
    device = next(network.parameters()).device
    for batch in DataLoader(val_text, 64, collate_fn=collate):
        labels = batch.pop("labels")[:, 1:].to(device)  # the logits at each position predict the next token
        logits = network(**{key: value.to(device) for key, value in batch.items()}).logits
        yield logits[:, :-1].movedim(-1, 1), labels


def evaluate(network):
    """Perplexity per token, and the calibration error."""
    (scores,) = token_scores(predictions(network.eval()))
    return perplexity(scores), token_calibration_error(scores)


def peak_memory():
    """The most memory that this process has had, in MiB: the GPU's, if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


before = peak_memory()
networks = {smoothing: train(smoothing) for smoothing in (0.0, 0.1)}
training = peak_memory() - before
results = {smoothing: evaluate(network) for smoothing, network in networks.items()}
print(
    f"\n{len(train_text):,} sentences, seed {arguments.seed}, logits {arguments.logits}: {training:.0f} MiB for training\n\n"
    f"| smoothing | perplexity | token ECE |\n| --- | --- | --- |"
)
for smoothing, (token_perplexity, ece) in results.items():
    print(f"| {smoothing:g} | {token_perplexity:.2f} | {ece:.4f} |")
