"""How smoothing composes with whatever else changes targets: who that is, in which order all run, what would clash.

Composition is one table. Mixers are known through one small adapter each, in a registry that users may add to
(:func:`register_mixer`); :func:`describe` tells what will happen in words.
"""

from composer_ls.composition.conflicts import DoubleSmoothingError
from composer_ls.composition.mixers import Mixer, register_mixer
from composer_ls.composition.plan import describe, place

__all__ = ["DoubleSmoothingError", "Mixer", "describe", "place", "register_mixer"]
