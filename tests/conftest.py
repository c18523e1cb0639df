"""Settings for all tests."""

import os
import tempfile

import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models are made from configurations, nothing is downloaded

torch.set_num_threads(1)  # one test process a core, and tensors too small to share among threads

settings.register_profile(
    "composer_ls", deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("composer_ls")


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own():
    """Use a temporary cache folder instead of the user's."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPOSER_LS_CACHE", folder)
        yield
