"""The algorithms that mix targets during training: one small adapter each, in a registry that users may add to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from composer.algorithms import CutMix, MixUp
from composer.core import Algorithm

__all__ = ["Mixer", "mixer_of", "mixers_among", "register_mixer"]


@dataclass(frozen=True)
class Mixer:
    """What smoothing must know of an algorithm that mixes the targets of two examples.

    Attributes:
        algorithm: Its class; subclasses count too.
        second_labels: The attribute in which it keeps the labels of each example's partner, from ``BEFORE_FORWARD``
            until it mixes them in.
        interpolate_loss: The attribute that says that it mixes two losses at ``BEFORE_BACKWARD``, rather than two
            targets at ``BEFORE_LOSS``. ``None`` if it never does.
        target_key: The attribute with the key of the targets in the batch.

    """

    algorithm: type[Algorithm]
    second_labels: str
    interpolate_loss: str | None = None
    target_key: str = "target_key"

    def interpolates(self, algorithm: Algorithm) -> bool:
        """Whether this instance mixes losses rather than targets."""
        return self.interpolate_loss is not None and bool(getattr(algorithm, self.interpolate_loss))


_REGISTRY: dict[type[Algorithm], Mixer] = {}


def register_mixer(mixer: Mixer) -> None:
    """Make smoothing know one more mixer. A second registration of the same class replaces the first."""
    _REGISTRY[mixer.algorithm] = mixer


register_mixer(Mixer(MixUp, second_labels="permuted_target", interpolate_loss="interpolate_loss"))
register_mixer(Mixer(CutMix, second_labels="_permuted_target", interpolate_loss="interpolate_loss"))


def mixer_of(algorithm: Algorithm) -> Mixer | None:
    """The adapter of an algorithm, or ``None`` if it is not known to mix."""
    return next((_REGISTRY[cls] for cls in type(algorithm).__mro__ if cls in _REGISTRY), None)


def mixers_among(algorithms: Sequence[Algorithm]) -> list[tuple[Algorithm, Mixer]]:
    """The mixers of a list, in its order, each with its adapter."""
    return [(algorithm, mixer) for algorithm in algorithms if (mixer := mixer_of(algorithm))]
