"""Label smoothing as pure functions: targets in, smoothed targets out, and the priors that their mass goes to."""

from composer_ls.smoothing.labels import check_kind, check_smoothing, smooth_labels
from composer_ls.smoothing.priors import as_prior, unigram_prior

__all__ = ["as_prior", "check_kind", "check_smoothing", "smooth_labels", "unigram_prior"]
