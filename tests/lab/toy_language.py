"""A toy language of twelve words, and another into which it can be translated."""

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
data: {name: parallel_text, root: ROOT, vocabulary: 400, lowercase: true, batch_tokens: 100, longest: 24, tests: [test]}
model:
  name: transformers/pegasus
  arguments: {d_model: 64, encoder_layers: 1, decoder_layers: 1, encoder_attention_heads: 4, decoder_attention_heads: 4,
    encoder_ffn_dim: 128, decoder_ffn_dim: 128, dropout: 0.0, init_std: 0.125, scale_embedding: true,
    max_position_embeddings: 64}
  beam: 2
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
