"""Calls a function of the user's that a recipe names, and says what is wrong with it in the user's terms."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from composer_ls.errors import RecipeError

__all__ = ["call_target"]


def call_target(key: str, target: str, arguments: Mapping[str, Any], offered: Mapping[str, Any] | None = None) -> Any:
    """What a function returns, imported from the installed packages or the current folder.

    Args:
        key: The recipe's key, for messages.
        target: The module and the function in it, as ``my_package.nets:make``.
        arguments: The recipe's arguments.
        offered: Arguments that the function is given if its signature names them and the recipe does not.

    Raises:
        RecipeError: There is no such module or function, it does not take these arguments, or it raises an error. The
            message then has the traceback, without what is not the user's.

    Example:
        >>> from composer_ls.lab.tasks.target import call_target
        >>> call_target("model.target", "fractions:Fraction", {"numerator": 1}, {"denominator": 2, "classes": 10})
        Fraction(1, 2)

    """
    function = _imported(key, target)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions of C have none
        signature = None
    if signature is not None:
        named = {
            name for name, one in signature.parameters.items() if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
        }
        arguments = {name: value for name, value in (offered or {}).items() if name in named} | dict(arguments)
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise RecipeError(
                f"{key}={target} cannot be called with the arguments {', '.join(arguments) or 'that it is given: none'} "
                f"({error}): it is {function.__name__}{signature}; the recipe's {key.partition('.')[0]}.arguments are passed by "
                f"name"
            ) from error
        for name, one in signature.parameters.items():
            if isinstance(one.default, bool) and isinstance(arguments.get(name), str):
                section = key.partition(".")[0]
                raise RecipeError(
                    f"{section}.arguments.{name} is {arguments[name]!r}, but must be true or false, as its default {one.default} is"
                )
    try:
        return function(**arguments)
    except Exception as error:
        raise RecipeError(_with_traceback(f"{key}={target} failed", error)) from error


def _imported(key: str, target: str) -> Callable[..., Any]:
    module_name, _, names = target.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing != module_name and not module_name.startswith(f"{missing}."):  # the module itself imports it
            raise RecipeError(_with_traceback(f"{key}={target} cannot be imported", error)) from error
        raise RecipeError(
            f"{key}={target}: there is no module {missing}, neither among the installed packages nor in the current folder "
            f"{here}: install it, or run composer-ls where it is"
        ) from error
    except Exception as error:
        raise RecipeError(_with_traceback(f"{key}={target} cannot be imported", error)) from error
    for name in names.split("."):
        if not hasattr(found, name):
            known = [one for one in vars(found) if not one.startswith("_")]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            where = getattr(found, "__file__", None) or module_name
            raise RecipeError(
                f"{key}={target}: there is no {name} in {where}: {hint}it has {', '.join(known) or 'nothing'}"
            )
        found = getattr(found, name)
    if not callable(found):
        raise RecipeError(
            f"{key}={target} is {type(found).__name__}, but must be a function, or a class, that composer-ls can call"
        )
    return found


def _with_traceback(happened: str, error: Exception) -> str:
    trace = "".join(traceback.format_exception(type(error), error, _theirs(error.__traceback__)))
    return f"{happened}: {type(error).__name__}: {error}\n\n{trace.rstrip()}"


def _theirs(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback after our frames and those of the import system."""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file != __file__ and not file.startswith("<frozen") and Path(file).parent.name != "importlib":
            break
        trace = trace.tb_next
    return trace
