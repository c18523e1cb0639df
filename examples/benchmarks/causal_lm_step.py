"""Measures what smoothing adds to a training step of a GPT-2 or MPT in Composer, compared with the model's own hard loss.

Times are of whole steps in the Trainer. Every other step is smoothed, so that other load on the machine affects both.
Memory is the peak of the process beyond what it held before the first step, in a separate process for each loss.

    python examples/benchmarks/causal_lm_step.py
    python examples/benchmarks/causal_lm_step.py --model mpt        # where llm-foundry is installed
"""

import argparse
import subprocess
import sys
import time
import warnings
from pathlib import Path
from statistics import quantiles

import torch
from composer import Trainer
from composer.core import Callback, Event
from composer.models import HuggingFaceModel
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from composer_ls import LabelSmoothing

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", choices=("gpt2", "mpt"), default="gpt2", help="mpt is LLM-Foundry's mpt_causal_lm")
parser.add_argument("--vocabulary", type=int, help="default: 50,257, and 50,368 for mpt, as LLM-Foundry pads it")
parser.add_argument("--sentences", type=int, default=4, help="sentences per batch, of 128 tokens each")
parser.add_argument("--width", type=int, default=256)
parser.add_argument("--layers", type=int, default=4)
parser.add_argument("--repeats", type=int, default=21, help="measured steps of each loss")
parser.add_argument("--memory-of", choices=("hard", "smoothed", "never"), help=argparse.SUPPRESS)
arguments = parser.parse_args()
arguments.vocabulary = arguments.vocabulary or {"gpt2": 50_257, "mpt": 50_368}[arguments.model]
LENGTH, WARM_UP = 128, 10
KINDS = {"hard": "kept", "smoothed": "kept", "never": "never"}
"""What the steps are called, and whether LabelSmoothing keeps the logits; each takes turns with the hard loss."""


def new_model():
    """The model, with its own hard loss."""
    width, layers, heads = arguments.width, arguments.layers, 4
    if arguments.model == "gpt2":
        config = GPT2Config(arguments.vocabulary, LENGTH, n_embd=width, n_layer=layers, n_head=heads)
        return HuggingFaceModel(GPT2LMHeadModel(config))
    from llmfoundry.models import ComposerMPTCausalLM

    sizes = {"d_model": width, "n_layers": layers, "n_heads": heads, "max_seq_len": LENGTH}
    options = {"attn_config": {"attn_impl": "torch"}, "loss_fn": "torch_crossentropy", "use_train_metrics": False}
    return ComposerMPTCausalLM(vocab_size=arguments.vocabulary, **sizes, **options)


class EveryOther(LabelSmoothing):
    """LabelSmoothing in every second step."""

    def match(self, event, state):
        """Leave the other steps to the model's own loss."""
        setting_up = event in (Event.INIT, Event.FIT_START)
        return super().match(event, state) and (setting_up or state.timestamp.batch.value % 2 == 1)


class Clock(Callback):
    """Records the seconds of every step."""

    def __init__(self):
        self.seconds = []

    def batch_start(self, state, logger):
        """Start the clock."""
        self.began = time.perf_counter()

    def batch_end(self, state, logger):
        """Stop the clock."""
        self.seconds.append(time.perf_counter() - self.began)


def fit(algorithms, steps, callbacks=()):
    """Train for some steps on the same batch."""
    torch.manual_seed(0)
    model = new_model()
    ids = torch.randint(arguments.vocabulary, (arguments.sentences, LENGTH))
    attended = torch.ones(LENGTH, dtype=torch.bool)
    examples = [{"input_ids": row, "labels": row, "attention_mask": attended} for row in ids] * steps
    Trainer(
        model=model,
        train_dataloader=DataLoader(examples, arguments.sentences),
        max_duration=f"{steps}ba",
        algorithms=algorithms,
        callbacks=list(callbacks),
        optimizers=torch.optim.SGD(model.parameters(), 0.01),
        progress_bar=False,
        device="cpu",
    ).fit()


def resident(field):
    """Memory of this process in bytes, now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


warnings.simplefilter("ignore")
if arguments.memory_of:
    before = resident("VmRSS")
    fit([] if arguments.memory_of == "hard" else [LabelSmoothing(0.1, logits=KINDS[arguments.memory_of])], 3)
    print(resident("VmHWM") - before)
    raise SystemExit

print("| step | median (s) | quartiles | over hard | peak memory (MiB) |\n| --- | --- | --- | --- | --- |")
for name, logits in KINDS.items():
    clock = Clock()
    fit([EveryOther(0.1, logits=logits)], 2 * (WARM_UP + arguments.repeats), [clock])
    seconds = [clock.seconds[2 * WARM_UP + first :: 2] for first in (0, 1)]
    low, median, high = quantiles(seconds[name != "hard"], n=4)
    ratio = median / quantiles(seconds[0], n=4)[1]
    command = [sys.executable, *sys.argv, "--memory-of", name]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    print(f"| {name} | {median:.3f} | {low:.3f} to {high:.3f} | {ratio:.3f} | {int(answer) / 2**20:.0f} |", flush=True)
print(
    f"\n{arguments.model}, {arguments.sentences * LENGTH} tokens, vocabulary {arguments.vocabulary}, {torch.get_num_threads()} threads"
)
