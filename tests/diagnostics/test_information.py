"""Mutual information: its limits, its formula, and draws that leave everything as it was."""

import math

import pytest
import torch
from torch import nn

from composer_ls.diagnostics.information import draw_logit_differences, logit_mutual_information
from composer_ls.errors import DiagnosticsError


def noise(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("examples", [2, 50, 600])
def test_separated_examples_are_told_apart_wholly(examples):
    draws = torch.arange(examples).unsqueeze(1) + 1e-3 * noise(examples, 6)
    assert logit_mutual_information(draws) == pytest.approx(math.log(examples), abs=1e-6)


def test_two_collapsed_clusters_tell_the_class_only():
    draws = 100.0 * (torch.arange(600) % 2).unsqueeze(1) + noise(600, 51)
    assert logit_mutual_information(draws) == pytest.approx(math.log(2), abs=0.02)
    assert logit_mutual_information(draws[:, :6]) == pytest.approx(math.log(2), abs=0.08)  # a mean of five is noisy


@pytest.mark.parametrize("draws", [2, 6, 50])
def test_noise_alone_tells_nothing(draws):
    assert logit_mutual_information(noise(600, draws)) < 0.05


def test_without_noise_the_distinct_values_are_told_apart():
    assert logit_mutual_information(torch.arange(8.0).unsqueeze(1).expand(8, 6)) == pytest.approx(math.log(8))
    assert logit_mutual_information((torch.arange(8.0) % 2).unsqueeze(1).expand(8, 6)) == pytest.approx(math.log(2))
    assert logit_mutual_information(torch.zeros(8, 6)) == 0


def test_it_equals_a_direct_double_loop():
    draws = noise(12, 1) + 0.7 * noise(12, 4, seed=1)
    estimates = []
    for turn in range(4):
        rest = [column for column in range(4) if column != turn]
        f = [draws[x, turn].item() for x in range(12)]
        mu = [sum(draws[x, column].item() for column in rest) / 3 for x in range(12)]
        variance = sum((f[x] - mu[x]) ** 2 for x in range(12)) / 12
        total = 0.0
        for x in range(12):
            inner = sum(math.exp(-((f[x] - mu[other]) ** 2) / (2 * variance)) for other in range(12)) / 12
            total += -((f[x] - mu[x]) ** 2) / (2 * variance) - math.log(inner)
        estimates.append(total / 12)
    assert logit_mutual_information(draws) == pytest.approx(sum(estimates) / 4, rel=1e-12)


def test_scale_shift_and_order_do_not_matter():
    draws = noise(30, 1) + 0.5 * noise(30, 6, seed=1)
    expected = logit_mutual_information(draws)
    for other in (1e6 * draws, draws + 1e3, draws.flip(0), 1e-6 * draws):
        assert logit_mutual_information(other) == pytest.approx(expected, rel=1e-6)


def test_examples_far_apart_do_not_overflow():
    draws = 1e150 * torch.arange(5).double().unsqueeze(1) + noise(5, 6)
    assert logit_mutual_information(draws) == pytest.approx(math.log(5))


@pytest.mark.parametrize("shape", [(5,), (5, 1), (1, 6), (2, 3, 4)])
def test_too_few_draws_or_examples_are_refused(shape):
    with pytest.raises(DiagnosticsError, match=r"must be \(N, L\)"):
        logit_mutual_information(torch.zeros(shape))


def test_nan_draws_are_refused():
    draws = torch.zeros(2, 6)
    draws[0, 3] = torch.nan
    with pytest.raises(DiagnosticsError, match="1 of the 12 draws are NaN"):
        logit_mutual_information(draws)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def jitter(images):
    return images + torch.randn(len(images), 1)


def test_draws_are_the_difference_of_two_logits_of_augmented_images():
    model, images = network().eval(), torch.randn(7, 4)
    draws = draw_logit_differences(model, images, jitter, (2, 0), draws=3, batch_size=4, seed=5)
    assert draws.shape == (7, 3)
    torch.manual_seed(5)
    with torch.no_grad():
        logits = torch.cat([model(jitter(part)) for part in images.split(4)])
    torch.testing.assert_close(draws[:, 0], (logits[:, 2] - logits[:, 0]).double())
    assert draws[:, 0].ne(draws[:, 1]).all()


def test_drawing_leaves_modes_statistics_and_random_numbers_alone():
    model, images = network(), torch.randn(7, 4)
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    draw_logit_differences(model, images, jitter)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model.training, model[1].training, model[2].training) == (True, False, True)


def test_classes_that_the_logits_do_not_have_are_refused():
    with pytest.raises(DiagnosticsError, match="lacks the classes 0 and 3"):
        draw_logit_differences(network(), torch.randn(7, 4), jitter, (0, 3))
