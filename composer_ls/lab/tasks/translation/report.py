"""The metrics and curves of translation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from composer_ls.diagnostics.tokens import (
    TokenScores,
    perplexity,
    token_accuracy,
    token_bins,
    token_calibration_error,
    token_nll,
)
from composer_ls.lab.tasks.metric import ACCURACY, ECE, NLL, Metric, Predictions
from composer_ls.lab.tasks.task_report import Curve, TaskReport

__all__ = ["METRICS", "REPORT"]


def _of_tokens(function: Callable[[TokenScores], float]) -> Callable[[Predictions], float]:
    return lambda predictions: function(TokenScores(**predictions))


METRICS = (
    Metric(
        key="bleu",
        name="BLEU",
        meaning="BLEU of the first test set's translations by beam search, as the runs measured it.",
        higher_is_better=True,
        worth=0.5,
        digits=2,
        highest=100,
        result_unit="0 to 100",
    ),
    replace(
        ACCURACY,
        meaning="The fraction of subwords in the test references that the model found most probable, given those before.",
        compute=_of_tokens(token_accuracy),
        result_unit="fraction of subwords",
    ),
    replace(
        NLL,
        meaning="Mean negative log probability of the subwords of the test references.",
        compute=_of_tokens(token_nll),
        result_unit="nats per subword",
    ),
    replace(
        ECE,
        compute=_of_tokens(token_calibration_error),
        result_unit="fraction of subwords, 15 bins",
    ),
)

PERPLEXITY = Metric(
    key="perplexity",
    name="perplexity",
    meaning="The exponential of NLL.",
    higher_is_better=False,
    worth=0.1,
    digits=2,
    compute=_of_tokens(perplexity),
    result_unit="per subword",
)

REPORT = TaskReport(
    counted="subwords",
    metrics=METRICS,
    not_compared=(PERPLEXITY,),
    curves=(
        Curve("metrics/{part}/LanguageCrossEntropy", "{part} NLL", "nats", logarithmic=True),
        Curve("metrics/{part}/MaskedAccuracy", "{part} accuracy of subwords"),
    ),
    bins=lambda predictions: token_bins(TokenScores(**predictions)),
    labels=lambda predictions: torch.zeros_like(predictions["correct"]),  # only how many there are is known
    next_command="composer-ls translate {run} < in.txt > out.txt",
)
