"""The names by which LLM-Foundry's YAML knows what this package has."""

import inspect
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from composer.core import Algorithm, Callback
from llmfoundry import registry

import composer_ls

GROUPS = {"llmfoundry_algorithms": Algorithm, "llmfoundry_callbacks": Callback}


@pytest.mark.parametrize("group", GROUPS)
def test_every_algorithm_and_callback_has_a_name(group):
    public = [getattr(composer_ls, name) for name in composer_ls.__all__]
    expected = {thing for thing in public if inspect.isclass(thing) and issubclass(thing, GROUPS[group])}
    named = {point.load() for point in entry_points(group=group) if point.value.startswith("composer_ls:")}
    assert named == expected
    assert named


def test_the_registry_finds_them():
    assert registry.algorithms.get("label_smoothing") is composer_ls.LabelSmoothing
    assert registry.algorithms.get("max_sup") is composer_ls.MaxSup
    assert registry.algorithms.get("online_label_smoothing") is composer_ls.OnlineLabelSmoothing
    assert registry.callbacks.get("smoothing_diagnostics") is composer_ls.SmoothingDiagnostics


def test_looking_a_name_up_imports_nothing_else_of_the_package():
    script = """
import sys
from importlib.metadata import entry_points
(point,) = entry_points(group="llmfoundry_algorithms", name="label_smoothing")
point.load()
floor = {"algorithm", "composition", "errors", "kernels", "losses", "smoothing", "target_smoothing", "targets", "varying"}
print([name for name in sys.modules if name.startswith("composer_ls.") and name.split(".")[1] not in floor])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
