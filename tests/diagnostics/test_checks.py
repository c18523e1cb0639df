"""Common behaviour of all diagnostics of labels: the arrays they accept, what is ignored, and what is refused."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import composer_ls.diagnostics
from composer_ls import diagnostics
from composer_ls.diagnostics.checks import as_tensor
from composer_ls.errors import DiagnosticsError

OF_LOGITS = {
    "accuracy": diagnostics.accuracy,
    "negative_log_likelihood": diagnostics.negative_log_likelihood,
    "brier_score": diagnostics.brier_score,
    "expected_calibration_error": diagnostics.expected_calibration_error,
    "binned_calibration_error": lambda x, y: diagnostics.binned_calibration_error(diagnostics.reliability_bins(x, y)),
    "fit_temperature": diagnostics.fit_temperature,
    "classwise_calibration_error": diagnostics.classwise_calibration_error,
    "brier_decomposition": diagnostics.brier_decomposition,
    "equivalent_smoothing": diagnostics.equivalent_smoothing,
}
OF_FEATURES = {
    "relative_spread": diagnostics.relative_spread,
    "neural_collapse": diagnostics.neural_collapse,
    "class_means": lambda x, y: diagnostics.class_means(x, y).flatten().tolist(),
    "template_distances": lambda x, y: diagnostics.template_distances(x, y, np.eye(6), np.zeros(6)),
}
OF_LABELS = {**OF_LOGITS, **OF_FEATURES}
N, K = 200, 6


@pytest.fixture
def arrays():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(N, K, generator=generator)
    labels = torch.where(torch.rand(N, generator=generator) < 0.5, logits.argmax(1), torch.arange(N) % K)
    return logits, labels


@pytest.fixture(params=OF_LABELS)
def function(request):
    return OF_LABELS[request.param]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_every_integer_type_give_the_same_number(arrays, function, dtype):
    logits, labels = arrays
    assert function(logits, labels.to(dtype)) == function(logits, labels)


def test_numpy_arrays_and_lists_give_the_same_number(arrays, function):
    logits, labels = arrays
    expected = function(logits.double(), labels)
    rows, classes = logits.double().numpy(), labels.numpy().astype(np.int32)
    frozen = rows.copy()
    frozen.flags.writeable = False
    turned = np.ascontiguousarray(rows[::-1])[::-1]
    for values in (rows, frozen, turned, np.asfortranarray(rows), rows.astype(">f8"), rows.tolist()):
        assert function(values, classes) == pytest.approx(expected, rel=1e-12)
    assert function(rows, classes.tolist()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_the_number_of_the_same_values_in_float64(arrays, function, dtype):
    logits, labels = arrays
    assert function(logits.to(dtype), labels) == function(logits.to(dtype).double(), labels)


def test_nothing_is_written_to_the_arguments(arrays, function):
    logits, labels = arrays[0].double(), arrays[1]
    labels[::5] = -100
    rows, classes = logits.clone(), labels.clone()
    function(rows, classes)
    function(rows.numpy(), classes.numpy())  # which share their memory
    assert torch.equal(rows, logits)
    assert torch.equal(classes, labels)


def test_what_is_ignored_changes_nothing(arrays, function):
    logits, labels = arrays
    more = torch.cat([logits, torch.full((3, K), torch.nan)])
    marked = torch.cat([labels, torch.full((3,), -100)])
    assert function(more, marked) == function(logits, labels)


def test_another_label_can_be_ignored(arrays):
    logits, labels = arrays
    left = labels != 2
    marked = labels.masked_fill(~left, 255)
    for one in (*list(OF_LOGITS.values())[:4], diagnostics.fit_temperature, diagnostics.neural_collapse):
        assert one(logits, marked, ignore_index=255) == one(logits[left], labels[left])


def test_labels_of_two_dimensions_are_refused_with_the_way_out(arrays, function):
    logits, labels = arrays
    with pytest.raises(DiagnosticsError, match=r"are \(200, 6\) and \(200, 1\): give labels.squeeze\(1\)"):
        function(logits, labels[:, None])


def test_maps_and_sequences_are_refused_with_the_way_out(function):
    maps, sequences = torch.zeros(2, K, 3, 4), torch.zeros(2, 3, K)
    with pytest.raises(DiagnosticsError, match=r"movedim\(1, -1\).flatten\(0, -2\) and labels.flatten\(\)"):
        function(maps, torch.zeros(2, 3, 4).long())
    with pytest.raises(DiagnosticsError, match=r"(logits|features).flatten\(0, -2\) and labels.flatten\(\)"):
        function(sequences, torch.zeros(2, 3).long())


def test_labels_that_are_no_integers_or_all_ignored_are_refused(arrays, function):
    logits, labels = arrays
    with pytest.raises(DiagnosticsError, match="labels must be integers, but their dtype is torch.float32"):
        function(logits, labels.float())
    with pytest.raises(DiagnosticsError, match="all 200 labels are -100, which is ignored"):
        function(logits, torch.full_like(labels, -100))
    with pytest.raises(DiagnosticsError, match="must be a tensor, a NumPy array or a list of numbers, but is dict"):
        function({}, labels)


@pytest.mark.parametrize("name", OF_LOGITS)
def test_labels_outside_of_the_classes_are_refused(arrays, name):
    logits, labels = arrays
    for wrong in (-1, K):
        with pytest.raises(DiagnosticsError, match=rf"labels must be in \[0, {K}\).*, but go from"):
            OF_LOGITS[name](logits, torch.cat([torch.tensor([wrong]), labels[1:]]))


@pytest.mark.parametrize(
    "name", [name for name in OF_LOGITS if name not in {"classwise_calibration_error", "equivalent_smoothing"}]
)
def test_a_class_that_is_masked_counts_as_one_that_is_not_there(arrays, name):
    logits, labels = arrays
    masked = torch.cat([logits, torch.full((N, 1), -torch.inf)], 1)
    assert OF_LOGITS[name](masked, labels) == pytest.approx(OF_LOGITS[name](logits, labels), rel=1e-9)


def test_a_masked_class_adds_a_calibrated_one_to_what_averages_over_classes(arrays):
    logits, labels = arrays
    masked = torch.cat([logits, torch.full((N, 1), -torch.inf)], 1)
    error = diagnostics.classwise_calibration_error
    assert error(masked, labels) == pytest.approx(error(logits, labels) * K / (K + 1))


def test_scores_take_numpy_arrays_and_differing_shapes_are_refused():
    scores, right = np.array([0.9, 0.8, 0.8, 0.6], dtype=np.float32), np.array([True, True, False, False])
    assert diagnostics.aurc(scores, right) == diagnostics.aurc(torch.tensor(scores), torch.tensor(right))
    with pytest.raises(DiagnosticsError, match=r"must both be \(N,\)"):
        diagnostics.aurc(scores, right[:, None])
    with pytest.raises(DiagnosticsError, match=r"must both be \(N,\)"):
        diagnostics.bins_of_confidence(torch.rand(4), torch.ones(4, 1, dtype=torch.bool))


def test_a_nan_confidence_is_not_left_out_of_the_calibration_error():
    bins = diagnostics.bins_of_confidence(torch.tensor([0.9, torch.nan]), torch.tensor([True, True]))
    assert math.isnan(diagnostics.binned_calibration_error(bins))


def test_a_tensor_is_not_copied_and_loses_its_gradient():
    logits = torch.zeros(3, 2, requires_grad=True)
    assert as_tensor("logits", logits).data_ptr() == logits.data_ptr()
    assert not as_tensor("logits", logits).requires_grad


def test_every_public_name_is_exported_and_only_the_metrics_need_torchmetrics():
    assert len(set(diagnostics.__all__)) == len(diagnostics.__all__)
    for name in composer_ls.diagnostics.__all__:
        assert getattr(diagnostics, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'fit_temperatures'"):
        _ = diagnostics.fit_temperatures


def test_all_functions_work_with_torch_and_numpy_alone():
    code = """
import sys
allowed = sys.argv[1:]
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in allowed:
            raise ImportError(name + " is not installed")
sys.meta_path.insert(0, Absent())
import torch
from composer_ls import diagnostics as d
x, y = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 4
d.fit_temperature(x, y), d.cross_fit_temperature(x, y), d.expected_calibration_error(x, y), d.classwise_calibration_error(x, y)
d.brier_decomposition(x, y), d.aurc(d.log_odds(x), x.argmax(1) == y), d.logit_mutual_information(x), d.neural_collapse(x, y)
d.summarise(d.Penultimate(x, x, y), torch.eye(4), None), d.distillation_loss(x, x, y), d.count_pixels(x, y)
print([name for name in allowed if name in sys.modules])
"""
    absent = ["composer", "scipy", "sklearn", "torchmetrics", "torchvision", "matplotlib", "pydantic", "yaml", "rich"]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *absent], capture_output=True, text=True, check=False
    )
    assert run.stderr == ""
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("confidence", [[90.0, 70.0], [0.9, -0.1]])
def test_confidences_that_are_no_probabilities_are_refused(confidence):
    with pytest.raises(DiagnosticsError, match=r"must be probabilities in \[0, 1\], but one is (90|-0.1)"):
        diagnostics.bins_of_confidence(torch.tensor(confidence), torch.tensor([True, True]))
    diagnostics.bins_of_confidence(torch.tensor([1 + 1e-7, 0.0]), torch.tensor([True, True]))
