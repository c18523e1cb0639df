"""How smoothing composes with the other algorithms that change targets: who they are, and in which order all run."""

from composer_ls.composition.mixers import Mixer, register_mixer
from composer_ls.composition.plan import place

__all__ = ["Mixer", "place", "register_mixer"]
