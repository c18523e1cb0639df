"""A language of twelve words and another that says the same in words of its own."""

import gzip
import random

WORDS = dict(
    zip(
        ["a", "man", "dog", "child", "runs", "jumps", "sits", "near", "the", "red", "big", "tree"],
        ["ein", "Mann", "Hund", "Kind", "rennt", "springt", "sitzt", "bei", "dem", "rot", "groß", "Baum"],
        strict=True,
    )
)

RECIPE = """\
name: toy
duration: 14ep
data: {name: parallel_text, root: ROOT, vocabulary: 400, batch_tokens: 100, longest: 24, tests: [test]}
model: {name: transformer, width: 64, heads: 4, layers: 1, feedforward: 128, dropout: 0.0, beam: 2}
optimizer: {name: adamw, learning_rate: 0.004}
schedule: {name: inverse_sqrt, warmup: 30ba}
algorithms:
  label_smoothing: {smoothing: 0.1, prior: unigram}
eval_interval: 14ep
checkpoints: {interval: 14ep}
"""


def sentence(draw):
    words = draw.choices(list(WORDS), k=draw.randint(1, 4))
    return " ".join(words).capitalize(), " ".join(WORDS[word] for word in words)


def write(folder, train=600, test=40):
    """Write train and test, and return the path of a recipe for them."""
    draw = random.Random(0)
    for split, count in (("train", train), ("test", test)):
        pairs = [sentence(draw) for _ in range(count)]
        for language, lines in zip(("en", "de"), zip(*pairs, strict=True), strict=True):
            (folder / f"{split}.{language}.gz").write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    recipe = folder / "toy.yaml"
    recipe.write_text(RECIPE.replace("ROOT", str(folder)))
    return recipe
