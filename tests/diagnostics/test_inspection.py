"""Inspecting a network without changing it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from composer_ls.diagnostics.inspection import last_linear, penultimate_features
from composer_ls.errors import DiagnosticsError


class TwoHeads(nn.Module):
    """A network whose last linear layer does not compute the logits."""

    def __init__(self):
        super().__init__()
        self.main, self.spare = nn.Linear(6, 4), nn.Linear(6, 2)

    def forward(self, x):
        return self.main(x)


def batches(*shape, labels=10):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(n, *shape, generator=generator), torch.arange(n) % labels) for n in (5, 3)]


@pytest.mark.parametrize(
    ("name", "shape", "width"),
    [("mlp", (1, 8, 8), 256), ("cnn", (1, 8, 8), 128), ("resnet20", (3, 32, 32), 64), ("resnet18", (3, 64, 64), 512)],
)
def test_the_last_linear_layer_of_every_model_is_found_and_its_inputs_give_the_logits(name, shape, width):
    models = pytest.importorskip("composer_ls.lab.tasks.classification.networks")  # the lab's
    model = models.build_model(name, shape, 10)
    head = last_linear(model)
    taken = penultimate_features(model, batches(*shape))
    assert taken.features.shape == (8, width)
    torch.testing.assert_close(F.linear(taken.features, head.weight, head.bias), taken.logits)
    assert taken.labels.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


def test_the_network_is_left_as_it_was():
    models = pytest.importorskip("composer_ls.lab.tasks.classification.networks")  # the lab's
    model = models.build_model("cnn", (1, 8, 8), 10)
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    penultimate_features(model, batches(1, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_layer_can_be_named():
    taken = penultimate_features(TwoHeads(), batches(6), layer="main")
    assert (taken.features.shape, taken.logits.shape) == ((8, 6), (8, 4))


def test_a_layer_that_does_not_make_the_logits_is_refused():
    with pytest.raises(DiagnosticsError, match="does not use its last linear layer: name the one"):
        penultimate_features(TwoHeads(), batches(6))
    deep = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    with pytest.raises(DiagnosticsError, match="does not compute the logits.*name the layer"):
        penultimate_features(deep, batches(6), layer="0")


def test_a_network_without_linear_layers_or_without_the_named_one_is_refused():
    with pytest.raises(DiagnosticsError, match="Conv2d has no linear layer"):
        last_linear(nn.Conv2d(3, 4, 1))
    with pytest.raises(DiagnosticsError, match="no linear layer 'head': there are 'main', 'spare'"):
        last_linear(TwoHeads(), "head")


def test_no_examples_are_refused_and_the_hook_is_gone_after_an_error():
    model = TwoHeads()
    with pytest.raises(DiagnosticsError, match="no examples"):
        penultimate_features(model, [], layer="main")
    with pytest.raises(RuntimeError):
        penultimate_features(model, [(torch.zeros(2, 7), torch.zeros(2))], layer="main")
    assert not model.main._forward_pre_hooks


class Combined(nn.Module):
    """Two heads on different features, and what is made of their outputs."""

    def __init__(self, combine):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.other, self.head, self.combine = nn.Linear(6, 4), nn.Linear(4, 3), nn.Linear(4, 3), combine

    def forward(self, x):
        x = self.body(x)
        return self.combine(self.other(x.tanh()), self.head(x.relu()))


@pytest.mark.parametrize(
    "combine", [lambda a, b: (a + b) / 2, lambda a, b: -b, lambda a, b: b.square(), lambda a, b: a]
)
def test_a_head_whose_output_is_not_the_logits_is_refused(combine):
    with pytest.raises(
        DiagnosticsError, match="does not compute the logits: they are made of its output and of something else"
    ):
        penultimate_features(Combined(combine), batches(6, labels=3))


@pytest.mark.parametrize(
    "combine",
    [
        lambda a, b: b / 3,
        lambda a, b: b.log_softmax(1),
        lambda a, b: b.bfloat16(),
        lambda a, b: 5 * (b / 5).tanh(),
        lambda a, b: b.masked_fill(torch.tensor([True, False, False]), -torch.inf),
    ],
)
def test_a_temperature_a_softmax_rounding_a_cap_and_masks_leave_a_head_the_head(combine):
    assert penultimate_features(Combined(combine), batches(6, labels=3)).features.shape == (8, 4)
