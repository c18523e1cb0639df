"""The network that a recipe asks for: one of ours, one of torchvision or timm, or what a function of the user's returns."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from composer.core import Callback, State
from composer.loggers import Logger
from composer.models import ComposerClassifier
from composer.utils import dist
from torch import Tensor, nn

from composer_ls.errors import MissingPackageError, RecipeError
from composer_ls.lab.images.preprocessing import Preprocessing
from composer_ls.lab.tasks.classification.networks import build_model
from composer_ls.lab.tasks.classification.schema import ClassificationModel
from composer_ls.lab.tasks.classification.weights import fit_weights, preprocessing_in, read_weights
from composer_ls.lab.tasks.target import call_target

__all__ = [
    "FrozenStatistics",
    "backbone_parameters",
    "build_network",
    "expected_preprocessing",
    "head_names",
    "load_weights",
]

AUXILIARY = ("googlenet", "inception_v3")
"""Networks of torchvision that have more than one output while training, unless told not to.

Their pretrained weights are for images in another normalisation, which the networks themselves make with ``transform_input``.
"""
OF_OLD_DENSENETS = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
"""Names in torchvision's files, where its networks now have ``norm1`` for ``norm.1``."""


def build_network(
    settings: ClassificationModel, image_shape: Sequence[int], num_classes: int, *, bare: bool = False
) -> nn.Module:
    """The network from images ``(N, *image_shape)`` to logits ``(N, num_classes)``.

    It has new weights, except that timm's are already those of ``weights: default``, which timm adapts to the images.

    Args:
        settings: The model section of a recipe.
        image_shape: (C, H, W).
        num_classes: K.
        bare: Whether nothing is downloaded, because other weights will replace those of ``weights: default``.

    Raises:
        RecipeError: There is no such network, it does not fit the images, or its output is not of that shape.
        MissingPackageError: The network is timm's, which is not installed.

    Example:
        >>> import torch
        >>> from composer_ls.lab.tasks.classification.network import build_network
        >>> from composer_ls.lab.tasks.classification.schema import ClassificationModel
        >>> network = build_network(ClassificationModel(name="torchvision/squeezenet1_1"), (3, 64, 64), 5)
        >>> network(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 5])

    """
    shape = tuple(image_shape)
    if settings.name == "target":
        network = _of_target(settings, shape, num_classes)
    elif len(shape) != 3:
        raise RecipeError(
            f"model.name={settings.name} takes images (channels, height, width), but these are of shape {shape}: use a "
            f"model.target that takes them"
        )
    elif settings.name.startswith("timm/"):
        network = _of_timm(settings, shape, num_classes, settings.weights == "default" and not bare)
    elif settings.name.startswith("torchvision/"):
        network = _of_torchvision(settings, shape, num_classes)
    else:
        return build_model(settings.name, shape, num_classes)
    _check_output(settings, network, shape, num_classes)
    return network


def load_weights(network: nn.Module, settings: ClassificationModel, classes: Sequence[str]) -> dict[str, Any] | None:
    """Load the weights that the recipe names into its network.

    Returns:
        For ``result.json``, where the weights are from, and sentences about what was ``left_out``; ``None`` for new weights.

    Raises:
        RecipeError: The weights cannot be read or downloaded, or are of another network.

    """
    if settings.weights is None:
        return None
    head = head_names(network, len(classes))
    if settings.weights != "default":
        weights, theirs = read_weights(settings.weights)
        left_out = fit_weights(network, weights, head, f"model.weights={settings.weights}", classes, theirs)
        return {"from": settings.weights, "left_out": left_out}
    if settings.name.startswith("torchvision/"):  # timm has loaded them by now
        name = settings.name.partition("/")[2]
        with dist.run_local_rank_zero_first():  # the others find them in the cache
            weights = _default_torchvision_weights(name)
        kept = {
            OF_OLD_DENSENETS.sub(r"\1\2", key): value
            for key, value in weights.items()
            if not key.startswith(("aux", "AuxLogits"))
        }
        fit_weights(network, kept, head, f"the weights of {settings.name}")
    return {"from": settings.name, "left_out": []}


def expected_preprocessing(settings: ClassificationModel) -> Preprocessing | None:
    """What a network's pretrained weights expect, or ``None`` if it begins with new weights or this is not known.

    A file that composer-ls wrote says it. For other files of torchvision's and timm's networks it is the library's own.
    """
    if settings.weights is None:
        return None
    if settings.weights != "default" and (own := preprocessing_in(settings.weights)) is not None:
        return own
    library, _, name = settings.name.partition("/")
    if library == "torchvision":
        _check_torchvision(settings.name)
        known = torchvision.models.get_model_weights(name)["DEFAULT"].transforms()
        size = known.crop_size[0]
        return Preprocessing((size, size), tuple(known.mean), tuple(known.std))
    if library == "timm":
        timm = _timm()
        cfg = timm.get_pretrained_cfg(name)
        if cfg is None:
            raise _no_such(settings.name, timm.list_models())
        _, height, width = cfg.input_size
        return Preprocessing((height, width), tuple(cfg.mean), tuple(cfg.std))
    return None


def backbone_parameters(network: nn.Module, settings: ClassificationModel, num_classes: int) -> list[nn.Parameter]:
    """The parameters of all layers but those that compute the logits.

    Raises:
        RecipeError: No layer computes K logits.

    """
    head = head_names(network, num_classes)
    if not head:
        raise RecipeError(
            f"the last layer of {settings.called} is not known, as no linear layer or convolution in it has {num_classes} "
            f"outputs: leave out model.freeze and optimizer.backbone_scale"
        )
    own = {id(parameter) for name in head for parameter in network.get_submodule(name).parameters()}
    return [parameter for parameter in network.parameters() if id(parameter) not in own]


def head_names(network: nn.Module, num_classes: int) -> list[str]:
    """The layers that compute the logits: those that timm names, or else the last one with K outputs."""
    named = (getattr(network, "pretrained_cfg", None) or {}).get("classifier")
    if named:
        return [named] if isinstance(named, str) else list(named)
    outputs = {
        name: module.out_features if isinstance(module, nn.Linear) else module.out_channels
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    return [name for name, count in outputs.items() if count == num_classes][-1:]


class FrozenStatistics(Callback):
    """Keeps the running statistics of batch normalisation in layers whose parameters are frozen."""

    def before_forward(self, state: State, logger: Logger) -> None:
        """Put these layers in evaluation mode, as the Trainer puts all in training mode."""
        for module in state.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not any(
                parameter.requires_grad for parameter in module.parameters()
            ):
                module.eval()


def _of_target(settings: ClassificationModel, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    assert settings.target is not None
    offered = {"num_classes": num_classes, "image_shape": shape}
    made = call_target("model.target", settings.target, settings.arguments, offered)
    if isinstance(made, ComposerClassifier):
        made = made.module
    if not isinstance(made, nn.Module):
        raise RecipeError(
            f"model.target={settings.target} returned {type(made).__name__}, but must return a torch.nn.Module from images "
            f"{('N', *shape)} to logits (N, {num_classes})".replace("'", "")
        )
    return made


def _of_torchvision(settings: ClassificationModel, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    _check_torchvision(settings.name)
    if shape[0] != 3:
        raise RecipeError(
            f"model.name={settings.name} takes images of 3 channels, but these have {shape[0]}: use a network of timm, "
            f"which takes any number"
        )
    name = settings.name.partition("/")[2]
    # Input is transformed with new weights too, because a file of weights does not say whether it was.
    own = {"aux_logits": False, "init_weights": True, "transform_input": True} if name in AUXILIARY else {}
    arguments = {"num_classes": num_classes} | own | settings.arguments
    try:
        network: nn.Module = torchvision.models.get_model(name, **arguments)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"torchvision does not make {name} of model.arguments={settings.arguments}: {error}"
        ) from error
    return network


def _of_timm(settings: ClassificationModel, shape: tuple[int, ...], num_classes: int, pretrained: bool) -> nn.Module:
    timm = _timm()
    name = settings.name.partition("/")[2]
    if not timm.is_model(name):
        raise _no_such(settings.name, timm.list_models())
    cfg = timm.get_pretrained_cfg(name)
    arguments: dict[str, Any] = {"num_classes": num_classes, "in_chans": shape[0]}
    if cfg is not None and cfg.fixed_input_size and tuple(cfg.input_size[1:]) != shape[1:]:
        arguments["img_size"] = shape[1:]
    try:
        made: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments | settings.arguments)
        return made
    except OSError as error:  # urllib's, requests' and the hub's errors are all of this kind
        raise RecipeError(_not_downloaded(settings.name, error)) from error
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        given = f" and model.arguments={settings.arguments}" if settings.arguments else ""
        raise RecipeError(f"timm does not make {name} for images of shape {shape}{given}: {error}") from error


def _not_downloaded(name: str, error: Exception) -> str:
    return (
        f"model.weights=default: the weights of {name} could not be downloaded ({' '.join(str(error).split())[:200]}): "
        f"try again with a connection, or download them elsewhere and use model.weights=FILE"
    )


def _default_torchvision_weights(name: str) -> dict[str, Tensor]:
    """The weights of a network of torchvision, downloaded if they are not in PyTorch's cache.

    Raises:
        RecipeError: They cannot be downloaded.

    """
    try:
        weights: dict[str, Tensor] = torchvision.models.get_model_weights(name)["DEFAULT"].get_state_dict(
            progress=False, check_hash=True
        )
    except (OSError, RuntimeError) as error:
        raise RecipeError(_not_downloaded(f"torchvision/{name}", error)) from error
    return weights


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingPackageError(
            "model.name=timm/... needs the package timm, which is not installed: pip install 'composer_ls[timm]'"
        ) from error
    return timm


def _check_torchvision(name: str) -> None:
    known = torchvision.models.list_models(torchvision.models)
    if name.partition("/")[2] not in known:
        raise _no_such(name, known)


def _no_such(name: str, known: Sequence[str]) -> RecipeError:
    library, _, own = name.partition("/")
    near = difflib.get_close_matches(own, known, n=3)
    hint = f"did you mean {' or '.join(f'{library}/{one}' for one in near)}? " if near else ""
    where = f"the classification networks of {library}"
    return RecipeError(
        f"model.name={name}: there is no {own} among {where}: {hint}{library}'s list_models() has them all"
    )


def _check_output(settings: ClassificationModel, network: nn.Module, shape: tuple[int, ...], num_classes: int) -> None:
    """Run the network once on zeros, to say what is wrong with its output before training begins."""
    training = network.training
    try:
        with torch.random.fork_rng([]), torch.no_grad():
            output = network.eval()(torch.zeros(2, *shape))
    except Exception as error:
        raise RecipeError(
            f"{settings.called} does not take images of shape {('N', *shape)}: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}".replace("'N'", "N")
        ) from error
    finally:
        network.train(training)
    if not isinstance(output, Tensor) or output.shape != (2, num_classes):
        what = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"type {type(output).__name__}"
        raise RecipeError(
            f"{settings.called} turns 2 images into an output of {what}, but must give logits of shape (2, {num_classes}), a "
            f"tensor with one number for each class"
        )
