"""Prepare data for LLM-Foundry offline: a tokenizer, tokens in MDS shards, and token frequencies.

    python examples/llm_foundry/prepare.py --train multi30k/train.de.gz --val multi30k/val.de.gz --out llm_data

Any text works, plain or gzipped, with one document per line. The folder will contain `tokenizer/`, which the YAML names,
`train/` and `val/`, which its `text` loaders read, and `unigram.json`, a prior for LabelSmoothing. `--test` adds `test/`, which
`compare.py` measures on.
"""

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
from streaming import MDSWriter
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

# The padding token differs from the end token: LLM-Foundry leaves padding out of the labels, and a model that never learns where
# a document ends is wrong about every end in held-out text.
END, PADDING = "<|endoftext|>", "<|padding|>"


def lines_of(path: Path) -> list[str]:
    """The documents in a text file."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [line for line in map(str.strip, content.decode("utf-8").splitlines()) if line]


def make_tokenizer(documents: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer trained on the text, which transformers and LLM-Foundry can load from a folder."""
    learnt = ByteLevelBPETokenizer()
    learnt.train_from_iterator(documents, vocab_size=vocabulary, special_tokens=[END, PADDING], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=learnt._tokenizer, bos_token=END, eos_token=END, pad_token=PADDING)


def sequences(tokenizer: PreTrainedTokenizerFast, documents: list[str], length: int) -> np.ndarray:
    """The concatenated documents, each followed by an end token, in rows of ``length`` tokens; the rest is dropped."""
    ids = [token for row in tokenizer(documents)["input_ids"] for token in [*row, tokenizer.eos_token_id]]
    rows = len(ids) // length
    if rows == 0:
        raise SystemExit(f"the text has {len(ids)} tokens, fewer than one sequence of {length}: give more, or --length")
    return np.array(ids[: rows * length], dtype=np.int32).reshape(rows, length)


def write_shards(folder: Path, rows: np.ndarray) -> None:
    """Write the rows as an MDS data set, in the column that LLM-Foundry's ``text`` loader reads."""
    with MDSWriter(out=str(folder), columns={"tokens": "ndarray:int32"}) as writer:
        for row in rows:
            writer.write({"tokens": row})


def main() -> None:
    """Parse the arguments and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, required=True, help="text, one document per line; may end in .gz")
    parser.add_argument("--val", type=Path, required=True, help="held-out text of the same kind")
    parser.add_argument("--test", type=Path, help="more held-out text")
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("--vocabulary", type=int, default=4_000)
    parser.add_argument("--length", type=int, default=128, help="tokens in a sequence, max_seq_len of the YAML")
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"--out {arguments.out} exists already: remove it, or give another folder")

    texts = {split: lines_of(path) for split in ("train", "val", "test") if (path := getattr(arguments, split))}
    tokenizer = make_tokenizer(texts["train"], arguments.vocabulary)
    rows = {split: sequences(tokenizer, documents, arguments.length) for split, documents in texts.items()}
    tokenizer.save_pretrained(arguments.out / "tokenizer")
    for split, tokens in rows.items():
        write_shards(arguments.out / split, tokens)
    counts = 1 + np.bincount(rows["train"].ravel(), minlength=arguments.vocabulary)  # no token has probability 0
    (arguments.out / "unigram.json").write_text(json.dumps((counts / counts.sum()).tolist()))
    sizes = ", ".join(f"{tokens.size:,} {split} tokens" for split, tokens in rows.items())
    print(f"{arguments.out}: a tokenizer of {len(tokenizer):,} tokens, {sizes}")


if __name__ == "__main__":
    main()
