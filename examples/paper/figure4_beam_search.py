"""Translation in Müller et al. (2019), figure 4: BLEU, calibration and likelihood against the softmax's temperature.

    python examples/paper/figure4_beam_search.py --quick
    python examples/paper/figure4_beam_search.py --recipe multi30k-transformer-small --jobs 2 data.root=multi30k
    python examples/paper/figure4_beam_search.py data.root=multi30k

The full mode trains the recipe multi30k-transformer (English to German) on Multi30k, task 1, raw, and needs a GPU; the small
version of the recipe takes 10 to 15 minutes per run on one core. The quick mode uses a toy language in which every word has two
translations. Besides drawing the curves, it prints the results at the temperature with the best likelihood on the split val.
"""

import gzip
import random
import sys

import numpy as np
from matplotlib import pyplot as plt
from support import BLACK, BLUE, ORANGE, for_each, mean, options, run_all, save, shown

from composer_ls.diagnostics.tokens import token_calibration_error, token_nll, token_scores
from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.run_folder.folder import read_recipe
from composer_ls.lab.tasks.translation.bleu import bleu
from composer_ls.lab.tasks.translation.data import read_pairs
from composer_ls.lab.tasks.translation.task import encode_pairs, evaluation_logits
from composer_ls.lab.tasks.translation.translator import Translator

RECIPE = "multi30k-transformer"
TEMPERATURES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
FITTED = tuple(np.round(np.arange(0.4, 2.01, 0.05), 2).tolist())
SETTINGS = {
    "hard": ("algorithms.label_smoothing.smoothing=0",),
    "smoothing 0.1": ("algorithms.label_smoothing={smoothing: 0.1}",),
    "smoothing 0.1, unigram": ("algorithms.label_smoothing={smoothing: 0.1, prior: unigram}",),
}
STYLES = dict(zip(SETTINGS, ((BLACK, "o"), (BLUE, "D"), (ORANGE, "^")), strict=True))
QUICK = (
    "data.vocabulary=420", "data.batch_tokens=300", "data.longest=32", "data.tests=[test]",
    "model.arguments={d_model: 64, encoder_layers: 1, decoder_layers: 1, encoder_attention_heads: 4, "
    "decoder_attention_heads: 4, encoder_ffn_dim: 128, decoder_ffn_dim: 128, dropout: 0.0, init_std: 0.125, "
    "scale_embedding: true, max_position_embeddings: 64}",
    "optimizer.learning_rate=0.004", "schedule.warmup=40ba",
    "duration=8ep", "eval_interval=8ep", "checkpoints.interval=8ep",
)  # fmt: skip


def main():
    """Train, translate at every temperature, measure and draw."""
    opts = options(__file__, __doc__, recipe={"help": f"of the full mode (default: {RECIPE})"})
    if opts.recipe and opts.quick:
        sys.exit("--recipe is for the full mode: leave out --quick")
    if opts.recipe:
        opts.stem = f"{opts.name}-{load_recipe(opts.recipe).name}"
    overrides = ()
    if opts.quick:
        write_toy_language(opts.out / "toy")
        overrides = (*QUICK, f"data.root={opts.out / 'toy'}")
    runs = run_all(
        opts,
        {
            (name, seed): (opts.recipe or RECIPE, *overrides, *setting, f"seed={seed}")
            for name, setting in SETTINGS.items()
            for seed in opts.seeds
        },
    )
    measured = dict(zip(runs, for_each(opts, measure, runs.values()), strict=True))
    found = {name: [measured[name, seed] for seed in opts.seeds] for name in SETTINGS}
    curves = {
        name: {key: [mean([one[key][place] for one in each]) for place in range(len(TEMPERATURES))] for key in YLABELS}
        for name, each in found.items()
    }
    fitted = {
        name: {key: mean([one["fitted"][key] for one in each]) for key in each[0]["fitted"]}
        for name, each in found.items()
    }
    plain = TEMPERATURES.index(1.0)
    paired = {f"{name} minus hard": minus(curves[name], curves["hard"], plain) for name in SETTINGS if name != "hard"}
    beyond = {name: minus_fitted(found[name], found["hard"]) for name in SETTINGS if name != "hard"}
    numbers = {
        "temperatures": TEMPERATURES,
        "curves": curves,
        "fitted": fitted,
        "paired at temperature 1": paired,
        "paired, each at its own temperature": {f"{name} minus hard": values for name, values in beyond.items()},
    }
    save(opts, draw(curves), {**numbers, "bleu": runs[next(iter(runs))].result["bleu_signature"]})
    for name in SETTINGS:
        at_one = ", ".join(f"{key} {shown(curves[name][key][plain])}" for key in YLABELS)
        own = ", ".join(f"{key} {shown(value)}" for key, value in fitted[name].items())
        print(f"{name}: {at_one}; at its own temperature: {own}")
    for name, differences in paired.items():
        print(f"{name}, by seed: {', '.join(f'{key} {shown(value)}' for key, value in differences.items())}")
    for name, differences in beyond.items():
        words = ", ".join(f"{key} {shown(value)}" for key, value in differences.items())
        print(f"{name} minus hard, by seed, each at its own temperature: {words}")


def minus(curves, others, place):
    """The mean difference by seed at one temperature."""
    pairs = {key: (curves[key][place]["values"], others[key][place]["values"]) for key in YLABELS}
    return {key: mean([a - b for a, b in zip(*values, strict=True)]) for key, values in pairs.items()}


def minus_fitted(measured, others):
    """The mean difference by seed, each network at the temperature that fits val best: what smoothing gives beyond that."""
    pairs = list(zip(measured, others, strict=True))
    return {key: mean([one["fitted"][key] - other["fitted"][key] for one, other in pairs]) for key in YLABELS}


def measure(run):
    """BLEU, ECE and NLL of a run on its first test set, at every temperature and at the best one for val."""
    translator, data = Translator.load(run.folder), read_recipe(run.folder).data

    def read(split):
        return read_pairs(data.root, split, data.source, data.target)

    def scores(pairs, temperatures):
        rows = encode_pairs(pairs, translator.tokenizer, data)
        return token_scores(evaluation_logits(translator, rows, data.batch_tokens), temperatures)

    test = read(data.tests[0])

    def score(temperature):
        return bleu(translator.translate(test.source, temperature=temperature), test.target, data.lowercase).score

    best = FITTED[int(np.argmin([token_nll(one) for one in scores(read("val"), FITTED)]))]
    *found, own = scores(test, (*TEMPERATURES, best))
    return {
        "bleu": [score(temperature) for temperature in TEMPERATURES],
        "ece": [token_calibration_error(one) for one in found],
        "nll": [token_nll(one) for one in found],
        "fitted": {
            "temperature": best,
            "bleu": score(best),
            "ece": token_calibration_error(own),
            "nll": token_nll(own),
        },
    }


YLABELS = {
    "bleu": "BLEU, beam 4",
    "ece": "expected calibration error of subwords",
    "nll": "negative log-likelihood of subwords (nats)",
}


def draw(curves):
    """Three panels over temperature, with the mean of the seeds and its 95 % interval."""
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 4.2), layout="constrained")
    for axis, (key, label) in zip(axes, YLABELS.items(), strict=True):
        for name, (color, marker) in STYLES.items():
            values = curves[name][key]
            axis.plot(TEMPERATURES, [one["mean"] for one in values], color=color, marker=marker, label=name)
            if len(values[0]["values"]) > 1:
                low, high = ([one[end] for one in values] for end in ("low", "high"))
                axis.fill_between(TEMPERATURES, low, high, color=color, alpha=0.12, linewidth=0)
        axis.axvline(1, color="#999999", linewidth=1)
        axis.set(xlabel="temperature of the softmax", ylabel=label)
    axes[0].set_title("Translations: higher is better", fontsize=11)
    axes[1].set_title("Calibration: lower is better", fontsize=11)
    axes[2].set_title("Likelihood: lower is better", fontsize=11)
    axes[0].legend(loc="lower left")
    return figure


NOUNS = ["man", "woman", "dog", "child", "horse", "boat", "tree", "house", "car", "street", "bird", "ball"]
VERBS = ["sees", "holds", "finds", "follows", "draws", "paints"]


def write_toy_language(folder, train=2400, val=200, test=200):
    """Sentences such as "the red dog sees a boat", with two translations of every word, one of them twice as common."""
    draw = random.Random(0)

    def word(english):
        return english[::-1] + ("a" if draw.random() < 2 / 3 else "o")

    def pair():
        subject, verb, thing = draw.choice(NOUNS), draw.choice(VERBS), draw.choice(NOUNS)
        english = ["the", subject, verb, draw.choice(["a", "the"]), thing]
        return " ".join(english), " ".join(map(word, [*english[:2], *english[3:], verb]))  # the verb comes last

    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("val", val), ("test", test)):
        pairs = [pair() for _ in range(count)]
        for language, lines in zip(("en", "de"), zip(*pairs, strict=True), strict=True):
            text = "".join(f"{line}\n" for line in lines)
            (folder / f"{split}.{language}.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
