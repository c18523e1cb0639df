"""Label smoothing as pure functions: from targets to smoothed targets, and the priors that receive the moved mass."""

from composer_ls.smoothing.labels import as_number, check_kind, check_smoothing, smooth_labels
from composer_ls.smoothing.priors import as_prior, unigram_prior

__all__ = ["as_number", "as_prior", "check_kind", "check_smoothing", "smooth_labels", "unigram_prior"]
