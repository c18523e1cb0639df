"""Settings that all tests share."""

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)  # one test process a core, and tensors too small to share among threads

settings.register_profile(
    "composer_ls", deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("composer_ls")
