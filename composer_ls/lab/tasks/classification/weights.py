"""Weights in files: those that a network begins with, and those that a run leaves, with what is needed to use them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from composer_ls.errors import RecipeError
from composer_ls.lab.images.preprocessing import Preprocessing
from composer_ls.lab.run_folder.files import read_tensors

__all__ = ["fit_weights", "preprocessing_in", "read_weights", "weights_metadata"]


def weights_metadata(classes: Sequence[str], preprocessing: Mapping[str, Any] | None, **others: Any) -> dict[str, str]:
    """What a weights file says about itself: text by name, as safetensors has it, each in JSON."""
    content = {"classes": list(classes), "preprocessing": preprocessing} | others
    return {name: json.dumps(value) for name, value in content.items() if value is not None}


def preprocessing_in(file: str) -> Preprocessing | None:
    """The preprocessing that a weights file asks for, or ``None`` if it does not say."""
    content = _metadata(Path(file).expanduser()).get("preprocessing")
    return None if content is None else Preprocessing.from_dict(content)


def read_weights(file: str) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """The weights in a .safetensors or .pt file, by name, and the names of the classes if the file has them.

    A .pt file is read without running code that may be in it.

    Raises:
        RecipeError: The file does not exist, cannot be read or holds something else.

    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise RecipeError(f"model.weights={file}: there is no file {path.absolute()}")
    try:
        if path.suffix == ".safetensors":
            weights = read_tensors(path)
            classes = _metadata(path).get("classes")
            return weights, None if classes is None else tuple(classes)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RecipeError(
            f"model.weights={file} holds more than weights, such as a whole module or a checkpoint of a Trainer, and is not "
            f"read, because such a file can run code: save network.state_dict(), or use the weights.safetensors of a run"
        ) from error
    except (OSError, RuntimeError, EOFError, SafetensorError, ValueError) as error:
        raise RecipeError(f"model.weights={file} cannot be read ({' '.join(str(error).split())[:200]})") from error
    for key in ("state_dict", "model"):  # as timm and others save them
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise RecipeError(
            f"model.weights={file} holds {type(content).__name__}, but must hold a state_dict: tensors by their names"
        )
    return {str(name).removeprefix("module."): value for name, value in content.items()}, None


def fit_weights(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    head: Sequence[str],
    name: str,
    classes: Sequence[str] = (),
    theirs: Sequence[str] | None = None,
) -> list[str]:
    """Load weights into a network, except those of a last layer for other classes.

    Args:
        network: The network.
        weights: Tensors by name.
        head: The names of the network's last layers.
        name: Where the weights are from, for messages.
        classes: The names of the network's classes.
        theirs: The names of the classes that the weights are for, if they are known.

    Returns:
        Sentences about what is left out.

    Raises:
        RecipeError: The weights are of another network, or for other classes while the last layer is not known.

    """
    own = network.state_dict()

    def of_head(key: str) -> bool:
        return any(key == one or key.startswith(f"{one}.") for one in head)

    head_keys = [key for key in own if of_head(key)]
    # Not all of a head's weights have a dimension for the classes, but a head is taken whole or not at all.
    same_shapes = all(key in weights and weights[key].shape == own[key].shape for key in head_keys)
    other_classes = theirs is not None and tuple(theirs) != tuple(classes)
    if theirs is not None and other_classes and not head_keys:
        raise RecipeError(
            f"{name} is for the classes {_some(theirs)}, and the data has {_some(classes)}, but which weights are the last "
            f"layer's is not known, as no linear layer or convolution has {len(classes)} outputs: load the weights that you "
            f"mean in the function of model.target, and leave out model.weights"
        )
    left_out = bool(head_keys) and (not same_shapes or other_classes)
    wanted = {key for key in own if not (left_out and of_head(key))}
    missing = sorted(wanted - weights.keys())
    wrong = [key for key in wanted & weights.keys() if weights[key].shape != own[key].shape]
    unknown = [key for key in weights if key not in own and not of_head(key)]
    if missing or wrong or unknown:
        parts = [
            f"it has no {_some(missing)}" if missing else "",
            f"{_some(unknown)} {'is' if len(unknown) == 1 else 'are'} not in the network" if unknown else "",
            "; ".join(
                f"{key} is {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}" for key in sorted(wrong)[:3]
            ),
        ]
        raise RecipeError(
            f"{name} does not fit the network: {', '.join(filter(None, parts))}; use weights of the same network, with the "
            f"same model.arguments"
        )
    network.load_state_dict({key: weights[key] for key in wanted}, strict=False)
    if not left_out:
        return []
    if theirs is not None:
        why = f"they are for the classes {_some(theirs)}, and the data has {_some(classes)}"
    else:
        shapes = {tuple(weights[key].shape) for key in head_keys if key in weights}
        why = f"they are of the shapes {', '.join(map(str, sorted(shapes)))}" if shapes else "there are none"
    return [f"The last layer ({', '.join(head)}) begins with new weights instead of those of {name}: {why}."]


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{f', ... ({len(names)})' if len(names) > 3 else ''}"


def _metadata(path: Path) -> dict[str, Any]:
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as opened:
            return {key: json.loads(text) for key, text in (opened.metadata() or {}).items() if text[:1] in '[{"'}
    except (OSError, SafetensorError, ValueError):
        return {}  # not ours, or broken, which reading the weights reports
