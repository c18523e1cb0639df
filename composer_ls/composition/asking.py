"""Asking a model what its loss is.

To ask a model means to run it once on the first microbatch, without gradient or side effects, while calls to PyTorch's
loss functions are intercepted. The recorded calls show which logits and labels the loss uses and with what options. The
other files of this folder use the same words: a model is asked, its calls are heard, and they are answered with a loss.
"""

from __future__ import annotations

import contextlib
import copy
import os
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import composer
import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

import composer_ls
from composer_ls.composition.batches import Path, leaves
from composer_ls.targets.dispatch import out_of_place

__all__ = [
    "BINARY",
    "CLASSES",
    "HALF",
    "MADE",
    "Call",
    "Listening",
    "is_out_of_memory",
    "modules_called",
    "on_trial",
    "storage_of",
    "total",
    "with_other_containers",
]

CLASSES = (F.cross_entropy, F.nll_loss)
"""Losses over mutually exclusive classes."""
BINARY = (F.binary_cross_entropy_with_logits, F.binary_cross_entropy)
"""Losses with a separate label for every logit."""
MOVES = {
    *("__getitem__", "bfloat16", "cat", "chunk", "clamp", "clone", "concat", "contiguous", "cpu", "cuda", "detach"),
    *("double", "expand", "flatten", "flip", "float", "half", "index_select", "masked_fill", "masked_select"),
    *("movedim", "nan_to_num", "narrow", "pad", "permute", "repeat", "repeat_interleave", "reshape", "roll", "select"),
    *("scatter", "scatter_", "split", "squeeze", "stack", "swapaxes", "swapdims", "t", "take", "take_along_dim"),
    *("tile", "to", "transpose"),
    *("type", "type_as", "unbind", "unflatten", "unsqueeze", "view", "where"),
}
"""Functions that only move, mark or convert labels. Their result still counts as labels, even if it is floating-point."""
HALF = (torch.float16, torch.bfloat16)
"""Dtypes in which losses are rounded to few digits."""
LIKE = {"to", "type_as", "view", "expand"}
"""Functions whose second argument only says what the result looks like."""
KEEPS = {
    *("__get__", "bfloat16", "chunk", "clone", "contiguous", "cpu", "cuda", "detach", "double", "expand", "flatten"),
    *("float", "half", "int", "long", "movedim", "narrow", "pad", "permute", "reshape", "select", "split", "squeeze"),
    *("cat", "concat", "expand_as", "flip", "moveaxis", "ravel", "reshape_as", "roll", "short", "stack", "swapaxes"),
    *("swapdims", "t", "to", "transpose", "type", "type_as", "unbind", "unflatten", "unsqueeze", "view", "view_as"),
}
"""Functions after which a label is still the same, wherever it is then."""
CONTAINERS = (list, dict, set, deque)
"""What a model may gather things in."""
MADE: Path = ("the output of forward()",)
"""In place of a path in the batch, for labels that a model has in its output."""


@dataclass(frozen=True)
class Call:
    """A model's call of one of PyTorch's loss functions.

    Attributes:
        function: The PyTorch function.
        input: Logits, or scores such as log-probabilities for ``nll_loss`` and probabilities for ``binary_cross_entropy``.
        target: Labels or rows.
        options: The other arguments of the call.
        origins: The paths in the batch from which the target was computed.
        changes: The functions on that way that change labels or select some, such as ``masked_fill``.
        place: File and line of the call in the user's code, or an empty string if a library made it.
        is_checkpointed: Whether the backward pass will repeat the call (activation checkpointing), when calls are no
            longer intercepted.

    """

    function: Callable[..., Tensor]
    input: Tensor
    target: Tensor
    options: dict[str, Any]
    origins: frozenset[Path]
    changes: frozenset[str]
    place: str
    is_checkpointed: bool

    @property
    def name(self) -> str:
        """The function's name."""
        return str(self.function.__name__)

    @property
    def ignore_index(self) -> int:
        """The ``ignore_index`` of the call."""
        return int(self.options.get("ignore_index", -100))

    @property
    def label_smoothing(self) -> float:
        """The ``label_smoothing`` of the call."""
        return float(self.options.get("label_smoothing", 0.0))

    @property
    def is_of_labels(self) -> bool:
        """Whether the target comes from the batch and consists of labels, or of one row over classes per label."""
        has_rows = self.target.shape == self.input.shape
        return bool(self.origins) and (has_rows or not self.target.is_floating_point())

    def as_it_is(self) -> Tensor:
        """The loss of the call as PyTorch computes it."""
        return self.function(self.input, self.target, **self.options)


@dataclass(frozen=True)
class _Origin:
    """Where labels, or numbers that were computed from nothing else, come from.

    Attributes:
        paths: The paths in the batch.
        changes: The functions that changed or selected labels on the way.
        has_floats: Whether floating-point tensors of the batch, such as images, are among them.

    """

    paths: frozenset[Path] = frozenset()
    changes: frozenset[str] = frozenset()
    has_floats: bool = False

    def __bool__(self) -> bool:
        return bool(self.paths)

    def __or__(self, other: _Origin) -> _Origin:
        return _Origin(self.paths | other.paths, self.changes | other.changes, self.has_floats or other.has_floats)


@dataclass
class _Origins:
    """Tracks which objects were computed from which paths of a batch.

    Attributes:
        labels: The origins of what counts as labels, by the object's id.
        numbers: Those of other numbers that were computed from labels alone, such as labels that were made smaller by
            interpolation. They count as labels again once they are converted to integers.

    """

    # The reference to an object keeps its id from being reused.
    labels: dict[int, tuple[Any, _Origin]] = field(default_factory=dict)
    numbers: dict[int, tuple[Any, _Origin]] = field(default_factory=dict)

    def of(self, things: Any) -> _Origin:
        """The origin of the labels among these things."""
        return self._found(things, self.labels)

    def of_labels_alone(self, things: Any) -> _Origin:
        """The origin of these things if every tensor among them comes from labels alone, else nothing."""
        if any(id(one) not in self.labels and id(one) not in self.numbers for one in _tensors_in(things)):
            return _Origin()
        return self._found(things, self.labels) | self._found(things, self.numbers)

    def _found(self, things: Any, known: Mapping[int, tuple[Any, _Origin]]) -> _Origin:
        found = _Origin()
        for thing in things:
            if id(thing) in known:
                found |= known[id(thing)][1]
            elif isinstance(thing, (list, tuple)) and len(thing) < 32:
                found |= self._found(thing, known)
        return found


def _tensors_in(things: Any) -> Iterator[Tensor]:
    for thing in things:
        if isinstance(thing, Tensor):
            yield thing
        elif isinstance(thing, (list, tuple)) and len(thing) < 32:
            yield from _tensors_in(thing)


class Listening(TorchFunctionMode):
    """Intercepts calls of PyTorch's loss functions while it is entered, records them, and computes their results.

    Labels are tracked from the batch to the loss, through the operations in between.

    Args:
        batch: The batch whose labels to track.
        answer: Computes the loss for a call. It may call PyTorch's own function, which is not intercepted again.
        made: Labels that are not in the batch, but were made of it before. Their path is `MADE`.

    """

    def __init__(self, batch: Any, answer: Callable[[Call], Tensor], made: Sequence[Any] = ()) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._answer = answer
        self._origins = _Origins()
        for thing in made:
            self._origins.labels[id(thing)] = (thing, _Origin(frozenset([MADE])))
        for path, leaf in leaves(batch):
            if isinstance(leaf, (Tensor, list, tuple)) or type(leaf).__module__ == "numpy":
                has_floats = isinstance(leaf, Tensor) and leaf.is_floating_point()
                self._origins.labels[id(leaf)] = (leaf, _Origin(frozenset([path]), has_floats=has_floats))

    def origins_of(self, thing: Any) -> frozenset[Path]:
        """The paths in the batch from which something comes, if it counts as labels."""
        return self._origins.of([thing]).paths

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pass loss calls to ``answer``; run every other function and track the labels through it."""
        kwargs = kwargs or {}
        if func in CLASSES or func in BINARY or func is F.mse_loss:
            options = signature(func).bind(*args, **kwargs).arguments
            input, target = options.pop("input"), options.pop("target")
            origin = self._origins.of([target])
            call = Call(func, input, target, options, origin.paths, origin.changes, *_place())
            self.calls.append(call)
            return self._answer(call)
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        sources = _sources(name, args, kwargs)
        of_labels = self._origins.of(sources)
        if origin := of_labels or self._origins.of_labels_alone(sources):
            if name not in KEEPS and not (name in ("__getitem__", "__setitem__") and _is_slice(args[1])):
                origin |= _Origin(changes=frozenset([name]))
            for made in result if isinstance(result, (list, tuple)) else [result]:
                if isinstance(made, Tensor):
                    self._note(made, name, origin, sources)
            if of_labels and name in ("__setitem__", "copy_"):
                self._origins.labels[id(args[0])] = (args[0], origin)
        return result

    def _note(self, made: Tensor, name: str, origin: _Origin, sources: tuple[Any, ...]) -> None:
        if not made.is_floating_point():
            self._origins.labels[id(made)] = (made, origin)
        elif name in MOVES and (moved := self._origins.of(one for one in sources if not _is_mask(one))):
            # what a mask selects of other numbers is not labels
            self._origins.labels[id(made)] = (made, _Origin(moved.paths, origin.changes, moved.has_floats))
        elif not origin.has_floats and self._origins.of_labels_alone(sources):
            self._origins.numbers[id(made)] = (made, origin)


def _sources(name: str, args: Any, kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a function from which its result comes, rather than its shape or dtype alone."""
    if name.endswith("_like") or name.startswith("new_"):
        return ()
    return tuple(args[:1]) if name in LIKE else (*args, *kwargs.values())


def _is_slice(index: Any) -> bool:
    """Whether an index takes labels by their place alone, as ``labels[..., 1:]`` does."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or part is ... or isinstance(part, (int, slice)) for part in parts)


def _is_mask(thing: Any) -> bool:
    parts = thing if isinstance(thing, tuple) else (thing,)
    return any(isinstance(part, Tensor) and part.dtype == torch.bool for part in parts)


@contextlib.contextmanager
def modules_called(on_call: Callable[[nn.Module], Any]) -> Iterator[None]:
    """Calls ``on_call`` with every module whose ``forward()`` is called."""
    handle = register_module_forward_pre_hook(lambda module, _: on_call(module) and None)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def on_trial(model: nn.Module) -> Iterator[_Held]:
    """Undoes the side effects of the code inside it: restores random states, weights, buffers, metrics and other attributes.

    Inside, gradients and compilation are off. Gives what is restored.
    """
    held, writes = _Held(model), _Writes(model)
    state, numpy_state = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.compiler.set_stance("force_eager"), torch.random.fork_rng(devices), torch.no_grad(), writes:
            yield held
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
        with torch.no_grad():
            held.put_back()
            writes.put_back()


def total(loss: Any) -> Tensor | None:
    """The number to which Composer reduces the result of a model's ``loss()``; None if it does not consist of tensors."""
    if isinstance(loss, dict):
        loss = loss["total"] if "total" in loss else tuple(loss.values())
    losses = loss if isinstance(loss, (list, tuple)) else [loss]
    if not losses or not all(isinstance(loss, Tensor) for loss in losses):
        return None
    return torch.stack([loss.detach().double().mean().cpu() for loss in losses]).sum()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory, after which the Trainer may retry with a smaller microbatch."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error).lower()


class _Held:
    """A snapshot of the attributes of all modules of a model, without their weights."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = [(module, self._fields(module)) for module in _modules(model)]

    @staticmethod
    def _fields(module: nn.Module) -> dict[str, tuple[Any, Any]]:
        fields = {f"_buffers.{name}": (value, _kept(value)) for name, value in module._buffers.items()}
        if _is_of_user(module):
            fields |= {
                name: (value, _kept(value)) for name, value in vars(module).items() if name not in _OF_ALL_MODULES
            }
        return fields

    def left(self) -> list[tuple[Any, str, Any]]:
        """The attributes that were set since, or gather other things now, each with its module or counter and value."""
        return [
            (owner, name, with_other_containers(value))
            for module, fields in self.modules
            if _is_of_user(module)
            for owner, before in [(module, fields), *_counters(fields)]
            for name, value in vars(owner).items()
            if name not in _OF_ALL_MODULES and _is_other(value, *before.get(name, (_MISSING, None)))
        ]

    def put_back(self) -> None:
        for module, fields in self.modules:
            own = vars(module)
            if _is_of_user(module):
                for name in [name for name in own if name not in _OF_ALL_MODULES and name not in fields]:
                    del own[name]
            for name, (value, kept) in fields.items():
                _put_back(value, kept)
                if name.startswith("_buffers."):
                    module._buffers[name.removeprefix("_buffers.")] = value
                else:
                    own[name] = value


class _Writes(TorchFunctionMode):
    """Keeps the weights that are changed in place, such as an average of others, as they were before."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.parameters = {id(weight): weight for weight in model.parameters()}
        self.weights: dict[int, list[Tensor]] = {}  # by the storage that they are in
        for weight in model.parameters():
            if storage := storage_of(weight):
                self.weights.setdefault(storage, []).append(weight.detach())
        self.kept: dict[int, list[Tensor]] = {}
        self.data: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Copy a weight before the first function that changes it, and keep the ``data`` that is replaced by other."""
        kwargs = kwargs or {}
        if func == _SET_DATA and id(args[0]) in self.parameters and not is_lazy(args[0]):
            self.data.setdefault(id(args[0]), args[0].data)
        in_place = args and out_of_place(getattr(func, "__name__", "")) is not None
        for written in (args[0] if in_place else None, kwargs.get("out")):
            for one in written if isinstance(written, (list, tuple)) else [written]:
                storage = storage_of(one)
                if storage in self.weights and storage not in self.kept:
                    self.kept[storage] = [weight.clone() for weight in self.weights[storage]]
        return func(*args, **kwargs)

    def put_back(self) -> None:
        for key, data in self.data.items():
            self.parameters[key].data = data
        for storage, kept in self.kept.items():
            for weight, before in zip(self.weights[storage], kept, strict=True):
                weight.copy_(before)


_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]


def storage_of(tensor: Any) -> int:
    """Where the memory of a tensor begins, also if it is a view; 0 if it has none of its own."""
    try:
        return int(tensor.untyped_storage().data_ptr())
    except Exception:  # sharded, sparse and fake tensors
        return 0


def _address(tensor: Any) -> int:
    """Where the values of a tensor begin; 0 if it has none of its own."""
    try:
        return int(tensor.data_ptr())
    except Exception:  # sharded and fake tensors
        return 0


_OF_ALL_MODULES = frozenset(vars(nn.Module()))
_MISSING = object()


def _is_of_user(module: nn.Module) -> bool:
    """Whether it may change more than its buffers, as none of torch's own modules does."""
    return type(module).__module__.partition(".")[0] != "torch"


def _modules(model: nn.Module) -> Iterator[nn.Module]:
    """All modules of a model, including those in plain lists and dicts, such as metrics."""
    seen: set[int] = set()
    queue: list[Any] = [model]
    while queue:
        thing = queue.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, nn.Module):
            yield thing
            queue += [
                *thing._modules.values(),
                *(v for v in vars(thing).values() if isinstance(v, (list, tuple, dict))),
            ]
        elif isinstance(thing, (list, tuple, dict)) and len(thing) < 1000:
            queue += thing.values() if isinstance(thing, dict) else thing


_GENERATORS: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], None]]] = {
    torch.Generator: (lambda one: one.get_state(), lambda one, state: one.set_state(state)),
    np.random.Generator: (
        lambda one: one.bit_generator.state,
        lambda one, state: setattr(one.bit_generator, "state", state),
    ),
    random.Random: (lambda one: one.getstate(), lambda one, state: one.setstate(state)),
}
"""How the state of a generator of random numbers is read and written."""
_PLAIN = (bool, int, float, str, list, deque, type(None), torch.device, torch.dtype)
_CHANGING = (Tensor, np.ndarray, np.generic, *_GENERATORS)
"""With the plain ones, the types of the attributes of a counter."""


def _kept(value: Any, depth: int = 0) -> Any:
    if isinstance(value, Tensor):
        is_dense = value.layout == torch.strided and not value.is_meta and not value.is_nested
        return (value.detach(), value.detach().clone()) if is_dense and not isinstance(value, nn.Parameter) else None
    for kind, (read, _) in _GENERATORS.items():
        if isinstance(value, kind):
            return read(value)
    if isinstance(value, np.ndarray):
        return value.copy() if value.flags.writeable else None
    if _is_counter(value):
        value = vars(value)
    if isinstance(value, CONTAINERS) and depth < 3 and len(value) < 1000:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [(key, item, _kept(item, depth + 1)) for key, item in items]
    return None


def _is_other(value: Any, before: Any, kept: Any) -> bool:
    """Whether a value is not the one before, or gathers other things than were kept."""
    if value is not before or not isinstance(value, CONTAINERS) or kept is None:
        return value is not before
    now = list(value.values() if isinstance(value, dict) else value)
    return len(now) != len(kept) or any(_is_other(one, *item[1:]) for one, item in zip(now, kept, strict=True))


def with_other_containers(value: Any, depth: int = 0) -> Any:
    """A copy of nested containers that holds the same things, as deep as they are kept."""
    if not isinstance(value, CONTAINERS) or depth == 3 or len(value) >= 1000:
        return value
    other = copy.copy(value)
    if not isinstance(other, set):
        for key, item in list(other.items() if isinstance(other, dict) else enumerate(other)):
            copied = with_other_containers(item, depth + 1)
            if copied is not item:
                other[key] = copied
    return other


def _is_counter(value: Any) -> bool:
    """Whether it is a small object of plain numbers, tensors and generators, such as one that averages losses."""
    fields = getattr(value, "__dict__", None)
    if not isinstance(fields, dict) or isinstance(value, (type, nn.Module, Tensor)) or not fields:
        return False
    return all(type(field) in _PLAIN or isinstance(field, _CHANGING) for field in fields.values())


def _counters(fields: Mapping[Any, tuple[Any, Any]]) -> Iterator[tuple[Any, dict[Any, tuple[Any, Any]]]]:
    """The counters among kept fields, as deep as they are kept, each with its own."""
    for value, kept in fields.values():
        if isinstance(kept, list):
            items = {key: (item, item_kept) for key, item, item_kept in kept}
            if not isinstance(value, CONTAINERS):
                yield value, items
            yield from _counters(items)


def _put_back(value: Any, kept: Any) -> None:
    for kind, (_, write) in _GENERATORS.items():
        if isinstance(value, kind):
            return write(value, kept)
    if isinstance(value, Tensor) and kept is not None:
        data, numbers = kept
        if value.shape != data.shape or value.stride() != data.stride() or _address(value) != _address(data):
            value.data = data
        # Compared by value, because native batch norm updates buffers without a version bump.
        if not torch.equal(data, numbers):
            data.copy_(numbers)
    elif isinstance(value, np.ndarray) and kept is not None:
        value[...] = kept
    elif kept is not None:
        value = value if isinstance(value, CONTAINERS) else vars(value)
        for _, item, item_kept in kept:
            _put_back(item, item_kept)
        if isinstance(value, dict):
            if list(value) != [key for key, _, _ in kept] or any(value[key] is not item for key, item, _ in kept):
                value.clear()
                value.update((key, item) for key, item, _ in kept)
        elif isinstance(value, set):
            value.clear()
            value.update(item for _, item, _ in kept)
        else:
            value.clear()
            value.extend(item for _, item, _ in kept)


_LIBRARIES = tuple(os.path.dirname(str(package.__file__)) + os.sep for package in (torch, composer, composer_ls))
_CHECKPOINT = torch.utils.checkpoint.__file__


def _place() -> tuple[str, bool]:
    """File and line of the innermost frame outside libraries, and whether the call is inside an activation checkpoint.

    The search stops at the frame in this package that called the model.
    """
    frame, place, is_checkpointed = sys._getframe(2), "", False
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_LIBRARIES[-1] + "composition") and frame.f_code.co_name != "__torch_function__":
            break
        if not place and not file.startswith(_LIBRARIES):
            place = f"{file}:{frame.f_lineno}"
        is_checkpointed |= file == _CHECKPOINT
        frame = frame.f_back  # type: ignore[assignment]
    return place, is_checkpointed
