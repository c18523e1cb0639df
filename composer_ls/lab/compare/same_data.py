"""Finds out which runs were trained and tested on the same data, from the contents of their folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from composer_ls.lab.compare.measured_runs import LeftOut, Run

__all__ = ["data_differences", "on_the_same_data"]

Runs = Mapping[float, Mapping[int, Run]]
"""Runs by smoothing and seed."""


def data_differences(run: Run, other: Run, part: str = "test", *, others: bool = True) -> list[str]:
    """How the data of two runs differs, in words. Empty if it is the same as far as is known.

    The comparison covers classes, the shape and preprocessing of images, numbers of examples and the labels of one part. Images
    are not kept, so they are not compared.

    Args:
        run: A finished run.
        other: The run to compare with.
        part: ``test``, or ``validation`` if both have one.
        others: Whether the numbers of examples of the other parts matter, and how images were prepared.

    """
    found = []
    mine, theirs = run.result.get("classes"), other.result.get("classes")
    if mine != theirs and None not in (mine, theirs):
        found.append(_classes(list(mine), list(theirs)))  # type: ignore[arg-type]
    for key, name in (("image_shape", "images of shape"), ("preprocessing", "preprocessing")) if others else ():
        one, another = run.result.get(key), other.result.get(key)
        if one != another and None not in (one, another):
            found.append(f"{name} {one} instead of {another}")
    sizes, other_sizes = dict(run.result.get("examples") or {}), dict(other.result.get("examples") or {})
    labels, other_labels = run.parts[part].labels, other.parts[part].labels
    for name in sizes if others else ():
        if name in other_sizes and sizes[name] != other_sizes[name] and (name != part or labels is None):
            found.append(f"{sizes[name]:,} {name} examples instead of {other_sizes[name]:,}")
    if labels is not None and other_labels is not None:
        if len(labels) != len(other_labels):
            found.append(f"{len(labels):,} {part} labels instead of {len(other_labels):,}")
        elif labels.shape != other_labels.shape:
            found.append(f"{part} labels of another kind")
        elif wrong := int((labels != other_labels).reshape(len(labels), -1).any(1).sum()):
            found.append(f"{wrong:,} of {len(labels):,} {part} labels differ")
    return found


def _classes(mine: list[str], theirs: list[str]) -> str:
    if len(mine) != len(theirs):
        return f"{len(mine)} classes instead of {len(theirs)}"
    other = next((a, b) for a, b in zip(mine, theirs, strict=True) if a != b)
    return f"other classes, such as {other[0]} instead of {other[1]}"


def on_the_same_data(runs: Runs) -> tuple[dict[float, dict[int, Run]], list[LeftOut]]:
    """The runs of a setting that can be compared, and those left out because they used other data.

    If there are several test sets, the one with the most pairs of runs with and without smoothing is kept. Ties are
    decided by the number of runs, then by the newest run.
    """
    groups: list[list[tuple[float, int, Run]]] = []
    for one in _each(runs):
        group = next((group for group in groups if not data_differences(one[2], group[0][2])), None)
        groups.append([one]) if group is None else group.append(one)
    kept = max(groups, key=_rank)
    left_out = [
        _left_out(run, kept[0][2], data_differences(run, kept[0][2]))
        for group in groups
        if group is not kept
        for _, _, run in group
    ]
    first_of_seed: dict[int, Run] = {}
    same: dict[float, dict[int, Run]] = {}
    for smoothing, seed, run in kept:
        first = first_of_seed.setdefault(seed, run)
        differing = data_differences(run, first, "validation") if _both_held_out(run, first) else []
        if differing:
            left_out.append(_left_out(run, first, differing))
        else:
            same.setdefault(smoothing, {})[seed] = run
    return same, left_out


def _both_held_out(run: Run, other: Run) -> bool:
    return "validation" in run.parts and "validation" in other.parts


def _each(runs: Runs) -> Iterator[tuple[float, int, Run]]:
    for smoothing, seeds in sorted(runs.items()):
        for seed, run in seeds.items():
            yield smoothing, seed, run


def _rank(group: list[tuple[float, int, Run]]) -> tuple[int, int, str]:
    plain = {seed for smoothing, seed, _ in group if smoothing == 0}
    pairs = sum(smoothing != 0 and seed in plain for smoothing, seed, _ in group)
    return pairs, len(group), max(str(run.result.get("finished", "")) for _, _, run in group)


def _left_out(run: Run, reference: Run, differing: list[str]) -> LeftOut:
    return LeftOut(
        run.folder,
        f"its data differs from that of {reference.folder}: {', '.join(differing)}. Pairs need the same data: run again with "
        f"--overwrite",
    )
