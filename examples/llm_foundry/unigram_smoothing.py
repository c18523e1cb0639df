"""`unigram_smoothing` for LLM-Foundry's YAML: label smoothing toward the token frequencies.

A prior over a whole vocabulary is too long for a YAML file. List this file under `code_paths`, and name the JSON file that
contains the prior:

    code_paths: [examples/llm_foundry/unigram_smoothing.py]
    algorithms:
      unigram_smoothing: {smoothing: 0.1, path: llm_data/unigram.json}
"""

import json
from pathlib import Path

from llmfoundry.registry import algorithms

from composer_ls import LabelSmoothing


@algorithms.register("unigram_smoothing")
class UnigramSmoothing(LabelSmoothing):
    """LabelSmoothing whose prior is read from a file."""

    def __init__(self, path: str, smoothing: float = 0.1) -> None:
        super().__init__(smoothing, prior=json.loads(Path(path).read_text()))
