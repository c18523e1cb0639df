"""Label smoothing as pure functions: from targets to smoothed targets, and what the smoothing is made of.

`labels` is the method, `priors` receive the moved mass, `schedules` and `by_class` let the factor vary, and
`max_suppression` and `online` are two methods of the same family.
"""

from composer_ls.smoothing.by_class import as_factors, smooth_by_class
from composer_ls.smoothing.labels import check_kind, check_smoothing, smooth_labels
from composer_ls.smoothing.max_suppression import check_strength, max_suppression
from composer_ls.smoothing.online import online_prior, right_predictions
from composer_ls.smoothing.priors import as_prior, unigram_prior
from composer_ls.smoothing.schedules import Schedule, as_schedule, constant, cosine, linear

__all__ = [
    "Schedule",
    "as_factors",
    "as_prior",
    "as_schedule",
    "check_kind",
    "check_smoothing",
    "check_strength",
    "constant",
    "cosine",
    "linear",
    "max_suppression",
    "online_prior",
    "right_predictions",
    "smooth_by_class",
    "smooth_labels",
    "unigram_prior",
]
