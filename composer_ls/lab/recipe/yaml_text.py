"""YAML for recipes: numbers as in YAML 1.2, and duplicate keys are errors."""

from __future__ import annotations

import re
from typing import Any

import yaml

from composer_ls.errors import RecipeError

__all__ = ["dump_yaml", "parse_yaml"]

LONGEST = 1_000_000
"""The largest number of characters."""
MOST_VALUES = 100_000
"""The largest number of values, counting an alias as what it stands for."""
DEEPEST = 100
"""The largest number of levels."""

# For each kind of plain value: its tag, pattern and possible first characters, as in YAML 1.2's core schema. Dates and
# 1:30 stay text, 010 is ten, and octal numbers are written 0o10. true and false are as in YAML 1.1, without yes, no, on
# and off.
KINDS = (
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN"),
)


RESOLVERS: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
for _tag, _pattern, _starts in KINDS:
    for _start in [*_starts, ""] if _tag.endswith("null") else _starts:
        RESOLVERS.setdefault(_start, []).append((_tag, re.compile(f"(?:{_pattern})$")))


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = RESOLVERS

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping. A duplicate key is an error."""
        first: dict[Any, Any] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                key = self.construct_object(key_node)
                if key in first:
                    line = f", first on line {first[key] + 1}" if first[key] != key_node.start_mark.line else ""
                    problem = f"the key {key} occurs twice{line}"
                    raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
                first[key] = key_node.start_mark.line
        return super().construct_mapping(node, deep)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text[2:] if base != 10 else text, base)


def _number(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would read as something else."""

    yaml_implicit_resolvers = {
        start: [*yaml.SafeDumper.yaml_implicit_resolvers.get(start, []), *RESOLVERS.get(start, [])]
        for start in {*yaml.SafeDumper.yaml_implicit_resolvers, *RESOLVERS}
    }


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML that contains plain values only: mappings, lists, text, numbers, true, false and null.

    Args:
        text: The YAML.
        where: Its source, for messages: a file or an override.

    Raises:
        RecipeError: The YAML is invalid, too long or nested too deeply, or a mapping has a duplicate key; the message
            gives line and column.

    Example:
        >>> from composer_ls.lab.recipe.yaml_text import parse_yaml
        >>> parse_yaml("[010, 1e-1, 2024-01-01, 1:30, no]", "here")
        [10, 0.1, '2024-01-01', '1:30', 'no']

    References:
        https://yaml.org/spec/1.2.2/#103-core-schema

    """
    if len(text) > LONGEST:
        raise RecipeError(
            f"{where} has {len(text):,} characters, but a recipe has at most {LONGEST:,}: give data in files of its own"
        )
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _refuse_bombs(node, where)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise RecipeError(f"{where} is nested too deeply for a recipe: at most {DEEPEST} levels") from None
    except (yaml.YAMLError, ValueError) as error:  # Python reads no integer of thousands of digits
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(f"{where}{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from error


def _refuse_bombs(root: yaml.Node, where: str) -> None:
    """Refuse deep nesting, an alias inside itself, and aliases that stand for very many values.

    Raises:
        RecipeError: There is one.

    """
    sizes: dict[int, int] = {}  # the number of values that each node stands for; 0 while it is being counted
    waiting: list[tuple[yaml.Node, bool]] = [(root, False)]
    depth = 0
    while waiting:
        node, done = waiting.pop()
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        if done:
            depth -= 1
            sizes[id(node)] = 1 + sum(sizes[id(part)] for part in parts)
            if sizes[id(node)] > MOST_VALUES:
                line = node.start_mark.line + 1
                raise RecipeError(
                    f"{where}, line {line}: it stands for more than {MOST_VALUES:,} values: use fewer aliases"
                )
        elif id(node) not in sizes:
            sizes[id(node)] = 0
            depth += 1
            if depth > DEEPEST:
                raise RecipeError(
                    f"{where}, line {node.start_mark.line + 1}: nested too deeply for a recipe: at most {DEEPEST} levels"
                )
            waiting.append((node, True))
            waiting += [(part, False) for part in parts]
        elif sizes[id(node)] == 0:
            raise RecipeError(
                f"{where}, line {node.start_mark.line + 1}: an alias stands for something that contains it"
            )


def dump_yaml(content: Any) -> str:
    """YAML that :func:`parse_yaml` and YAML 1.1 parsers both read back unchanged. Keys keep their order."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
