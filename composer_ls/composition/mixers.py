"""A registry of the algorithms that mix targets, with one small adapter each. Users can add their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from composer.algorithms import CutMix, MixUp
from composer.core import Algorithm

__all__ = [
    "Mixer",
    "check_mixers",
    "data_mixers",
    "is_smoother",
    "mixer_of",
    "mixers_among",
    "refuse_mixers",
    "register_mixer",
]


@dataclass(frozen=True)
class Mixer:
    """What smoothing needs to know about an algorithm that mixes the targets of two examples.

    Attributes:
        algorithm: Its class, including subclasses.
        second_labels: The attribute that holds the labels of each example's partner, shaped like the targets, from
            ``BEFORE_FORWARD`` until they are mixed in.
        interpolate_loss: The attribute that is true if it mixes two losses at ``BEFORE_BACKWARD``, rather than two
            targets at ``BEFORE_LOSS``. ``None`` if it never does.
        target_key: The attribute that holds the key of the targets in the batch.

    """

    algorithm: type[Algorithm]
    second_labels: str
    interpolate_loss: str | None = None
    target_key: str = "target_key"

    def interpolates(self, algorithm: Algorithm) -> bool:
        """Whether this instance mixes losses rather than targets."""
        return self.interpolate_loss is not None and bool(getattr(algorithm, self.interpolate_loss))

    def second_labels_of(self, algorithm: Algorithm) -> Any:
        """The partners' labels that this instance holds now.

        Raises:
            ValueError: The attribute that the adapter names does not exist.

        """
        return _promised(self, algorithm, self.second_labels, "second_labels")


_REGISTRY: dict[type[Algorithm], Mixer] = {}


def register_mixer(mixer: Mixer) -> None:
    """Register an algorithm that mixes targets, so that both labels of every pair are smoothed.

    A second registration of the same class replaces the first.

    Example:
        >>> import torch
        >>> from composer.core import Algorithm, Event
        >>> from composer_ls.composition import Mixer, register_mixer
        >>> class FlipMix(Algorithm):
        ...     '''Mixes each example half and half with the example at the mirrored position in the batch.'''
        ...
        ...     def __init__(self, target_key=1):
        ...         self.target_key, self.partners = target_key, None
        ...
        ...     def match(self, event, state):
        ...         return event in (Event.BEFORE_FORWARD, Event.BEFORE_LOSS)
        ...
        ...     def apply(self, event, state, logger):
        ...         if event == Event.BEFORE_FORWARD:
        ...             images = state.batch_get_item(0)
        ...             self.partners = state.batch_get_item(self.target_key).flip(0)
        ...             state.batch_set_item(0, 0.5 * images + 0.5 * images.flip(0))
        ...         else:  # targets and partners are already smoothed here, and behave like dense rows
        ...             target = state.batch_get_item(self.target_key)
        ...             state.batch_set_item(self.target_key, 0.5 * target + 0.5 * self.partners)
        >>> register_mixer(Mixer(FlipMix, second_labels="partners"))

    """
    _REGISTRY[mixer.algorithm] = mixer


register_mixer(Mixer(MixUp, second_labels="permuted_target", interpolate_loss="interpolate_loss"))
register_mixer(Mixer(CutMix, second_labels="_permuted_target", interpolate_loss="interpolate_loss"))


def mixer_of(algorithm: Algorithm) -> Mixer | None:
    """The adapter of an algorithm, or ``None`` if it is not a registered mixer."""
    return next((_REGISTRY[cls] for cls in type(algorithm).__mro__ if cls in _REGISTRY), None)


def mixers_among(algorithms: Sequence[Algorithm]) -> list[tuple[Algorithm, Mixer]]:
    """The mixers of a list, in its order, each with its adapter."""
    return [(algorithm, mixer) for algorithm in algorithms if (mixer := mixer_of(algorithm))]


def is_smoother(algorithm: Algorithm, package: str | None = None) -> bool:
    """Whether an algorithm smooths targets: one of ours, Composer's LabelSmoothing, or either, or a subclass."""
    packages = {package} if package else {"composer_ls", "composer"}
    return any(
        cls.__name__ in ("LabelSmoothing", "TargetSmoothing") and cls.__module__.partition(".")[0] in packages
        for cls in type(algorithm).__mro__
    )


def check_mixers(algorithms: Sequence[Algorithm], target_key: Any) -> None:
    """Check that every mixer has the attributes its adapter names, and mixes the same targets that are smoothed.

    Raises:
        ValueError: A mixer lacks such an attribute, or its targets have another key.

    """
    for algorithm, mixer in mixers_among(algorithms):
        if mixer.interpolate_loss is not None:
            _promised(mixer, algorithm, mixer.interpolate_loss, "interpolate_loss")
        key = _promised(mixer, algorithm, mixer.target_key, "target_key")
        if key != target_key:
            name = type(algorithm).__name__
            raise ValueError(
                f"{name} mixes the targets at target_key={key!r}, but LabelSmoothing smooths those at "
                f"target_key={target_key!r}: give both the same target_key"
            )


def refuse_mixers(algorithms: Sequence[Algorithm]) -> None:
    """Refuse mixers with a model that computes its loss in ``forward()``, because mixed targets come too late for it.

    Raises:
        ValueError: There is a mixer.

    """
    for algorithm, _ in mixers_among(algorithms):
        name = type(algorithm).__name__
        raise ValueError(
            f"{name} mixes the targets after the forward pass, but a HuggingFaceModel reads its labels in forward(): take "
            f"{name} out of algorithms, or give the network to a ComposerClassifier, whose loss reads the mixed targets"
        )


def _promised(mixer: Mixer, algorithm: Algorithm, attribute: str, field: str) -> Any:
    if not hasattr(algorithm, attribute):
        name = type(algorithm).__name__
        raise ValueError(
            f"{name} is registered as a mixer with {field}={attribute!r}, but has no attribute {attribute!r}: "
            f"register_mixer(Mixer({name}, ...)) with the name of the attribute that it has, or set it in __init__"
        )
    return getattr(algorithm, attribute)


_DATA_MIXERS = {
    "torchvision.transforms.v2": ("MixUp", "CutMix"),
    "timm.data.mixup": ("Mixup", "FastCollateMixup"),
}
"""Mixers that run in the dataloader, by the module that defines them. Their targets arrive as dense rows."""


def data_mixers(objects: Sequence[Any]) -> list[Any]:
    """The objects that are mixers of a dataloader, recognised without importing torchvision or timm."""
    return [thing for thing in objects if _is_data_mixer(type(thing))]


def _is_data_mixer(cls: type) -> bool:
    return any(
        base.__module__.startswith(module) and base.__name__ in names
        for base in cls.__mro__
        for module, names in _DATA_MIXERS.items()
    )
