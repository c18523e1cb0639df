"""Does smoothing help this language model? `mpt-tiny.yaml` without and with smoothing, over several seeds, on test text.

    python examples/llm_foundry/prepare.py --train train.de.gz --val val.de.gz --test test_2016_flickr.de.gz --out llm_data
    python examples/llm_foundry/compare.py --data llm_data --out llm_runs

Finished runs are skipped. The temperature is fitted on the validation text. The table has means over seeds and, after the first
row, differences to no smoothing, paired by seed, with half their 95 % t-interval.
"""

import argparse
import json
from pathlib import Path

import torch
from llmfoundry.command_utils import train
from omegaconf import OmegaConf
from streaming import StreamingDataset

from composer_ls.diagnostics.calibration import expected_calibration_error, fit_temperature
from composer_ls.lab.compare.statistics import interval_of_mean

HERE = Path(__file__).parent
SETTINGS = {
    "none": {},
    "uniform 0.05": {"label_smoothing": {"smoothing": 0.05}},
    "uniform 0.1": {"label_smoothing": {"smoothing": 0.1}},
    "unigram 0.05": {"unigram_smoothing": {"smoothing": 0.05}},
    "unigram 0.1": {"unigram_smoothing": {"smoothing": 0.1}},
}


def main():
    """Train what is not trained yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder that prepare.py wrote, with --test")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the numbers of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = {name: [] for name in SETTINGS}
    for seed in arguments.seeds:
        for name, runs in results.items():
            file = arguments.out / f"{name.replace(' ', '-')}-{seed}.json"
            if not file.exists():
                file.write_text(json.dumps(run(name, seed, arguments.data), indent=1))
            runs.append(json.loads(file.read_text()))
    print(table(results))


def run(name, seed, data):
    """Train one model, and measure it."""
    recipe = OmegaConf.load(HERE / "mpt-tiny.yaml")
    recipe.algorithms = SETTINGS[name]
    if "unigram_smoothing" in recipe.algorithms:
        recipe.algorithms.unigram_smoothing.path = str(data / "unigram.json")
    recipe.code_paths = [str(HERE / "unigram_smoothing.py")]
    recipe.variables.data = str(data)
    recipe.seed = recipe.train_loader.dataset.shuffle_seed = seed
    recipe.eval_interval = recipe.max_duration
    trainer = train(recipe)
    model = trainer.state.model.eval()
    temperature = fit_temperature(*predictions(model, data / "val"))
    logits, labels = predictions(model, data / "test")
    found = measured(logits, labels)
    scaled = measured(logits.div_(temperature), labels)
    trainer.close()
    return {
        **found,
        "temperature": temperature,
        "loss at it": scaled["loss"],
        "calibration error at it": scaled["calibration error"],
    }


def predictions(model, folder):
    """Logits (M, K) and next tokens (M,) of all sequences in a split."""
    data = StreamingDataset(local=str(folder), batch_size=1)
    rows = torch.stack([torch.from_numpy(data[i]["tokens"].copy()) for i in range(len(data))]).long()
    with torch.no_grad():
        parts = [model({"input_ids": ids, "attention_mask": ids >= 0}).logits[:, :-1] for ids in rows.split(32)]
    return torch.cat(parts).flatten(0, 1), rows[:, 1:].flatten()


def measured(logits, labels):
    """Loss in nats, perplexity, accuracy, and calibration error of tokens."""
    loss = torch.nn.functional.cross_entropy(logits, labels)
    return {
        "loss": loss.item(),
        "perplexity": loss.exp().item(),
        "accuracy": (logits.argmax(1) == labels).float().mean().item(),
        "calibration error": expected_calibration_error(logits, labels),
    }


def table(results):
    """The comparison in Markdown."""
    metrics = list(results["none"][0])
    lines = [f"| smoothing | {' | '.join(metrics)} |", "| --- |" + " --- |" * len(metrics)]
    for name, runs in results.items():
        cells = []
        for metric in metrics:
            digits = 2 if metric in ("perplexity", "temperature") else 4
            difference = interval_of_mean([a[metric] - b[metric] for a, b in zip(runs, results["none"], strict=True)])
            half = (difference.high - difference.low) / 2
            change = f" ({difference.mean:+.{digits}f} ± {half:.{digits}f})" if name != "none" else ""
            cells.append(f"{interval_of_mean([run[metric] for run in runs]).mean:.{digits}f}{change}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
