"""The networks that recipes name."""

import pytest
import torch

from composer_ls.errors import RecipeError
from composer_ls.lab.tasks.classification.networks import CifarResNet, build_model


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mlp", (1, 8, 8)),
        ("cnn", (1, 8, 8)),
        ("alexnet", (3, 32, 32)),
        ("alexnet", (1, 9, 14)),
        ("resnet9", (3, 32, 32)),
        ("resnet9", (1, 8, 8)),
        ("resnet20", (3, 32, 32)),
        ("resnet56", (3, 32, 32)),
        ("resnet18", (3, 64, 64)),
    ],
)
def test_logits_have_a_row_an_image_and_reach_every_weight(name, shape):
    model = build_model(name, shape, 7)
    logits = model(torch.randn(2, *shape))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_torchvisions_networks_refuse_grey_images():
    with pytest.raises(
        RecipeError, match="model.name=resnet18 takes images of 3 channels, but these have 1: use .*mlp"
    ):
        build_model("resnet18", (1, 8, 8), 10)


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_cifar_resnets_have_the_size_of_the_papers_table(depth, millions):
    """He et al., 2016, table 6."""
    weights = sum(parameter.numel() for parameter in CifarResNet(depth, 3, 10).parameters())
    assert round(weights / 1e6, 2 if depth < 110 else 1) == millions


def test_depth_counts_the_layers_with_weights():
    for depth in (20, 56):
        layers = [m for m in CifarResNet(depth, 3, 10).modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
        assert len(layers) == depth


@pytest.mark.parametrize(("name", "thousands"), [("resnet9", 6_573), ("alexnet", 1_756)])
def test_fast_networks_have_the_size_of_their_sources(name, thousands):
    """Page's 6,573,120 weights; 4,800 + 102,400 + 1,572,864 + 73,728 + 1,920 and 714 biases."""
    weights = sum(parameter.numel() for parameter in build_model(name, (3, 32, 32), 10).parameters())
    assert weights // 1000 == thousands


@pytest.mark.parametrize("name", ["alexnet", "resnet9", "resnet20"])
def test_channels_last_gives_the_same_logits(name):
    torch.manual_seed(0)
    model, images = build_model(name, (3, 32, 32), 10).eval(), torch.randn(2, 3, 32, 32)
    expected = model(images)
    torch.testing.assert_close(model.to(memory_format=torch.channels_last)(images), expected, rtol=1e-4, atol=1e-4)
