"""How smoothing composes with everything else that changes targets: the order of execution, and conflicts.

Each algorithm that mixes targets is described by a small adapter in a registry, to which users can add their own
(:func:`register_mixer`). :func:`describe` says in words what happens to the targets.
"""

from composer_ls.composition.conflicts import DoubleSmoothingError
from composer_ls.composition.mixers import Mixer, register_mixer
from composer_ls.composition.plan import describe, place

__all__ = ["DoubleSmoothingError", "Mixer", "describe", "place", "register_mixer"]
