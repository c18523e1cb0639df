"""A run that is continued goes on with the data with which it began."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from composer.core import Callback

from composer_ls.errors import RunFolderError

__all__ = ["SameData"]


class SameData(Callback):
    """Writes what is known of the data into checkpoints, and refuses a checkpoint of other data.

    Args:
        known: What is known, by name in words, such as ``labels of train``; numbers and text.

    """

    def __init__(self, known: Mapping[str, Any]) -> None:
        self._known = dict(known)

    def state_dict(self) -> dict[str, Any]:
        """What is known of the data."""
        return dict(self._known)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compare it with what a checkpoint knows.

        Raises:
            RunFolderError: They differ.

        """
        differing = [name for name, value in self._known.items() if name in state and state[name] != value]
        if differing:
            raise RunFolderError(
                f"the data has changed since the run was interrupted ({', '.join(differing)}), so it cannot be continued: run it "
                f"again with --overwrite, or into another folder with --out DIR"
            )
