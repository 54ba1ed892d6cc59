"""The convolution blocks and the output block of a network, and the layers in them.

An assignment names the blocks, as C1, C2, C3, C4 and O. In a network without these names they are found by name (`layer1` to
`layer4`) or by structure (as many modules side by side that hold most of the convolutions); what comes after the last of them is
then the output block.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from config import InputError
from limits.operations import ELEMENTWISE, SUMS, Op
from limits.tracing import Trace, reach_back

BLOCKS = ("C1", "C2", "C3", "C4", "O")
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight"}


@dataclass(frozen=True)
class Blocks:
    """Which block each operation is in."""

    wanted: tuple[str, ...]
    """The names of the blocks, the output block's last."""
    names: tuple[str, ...]
    """What the network calls them, in the order of `wanted`; the last may be several modules, or be missing."""
    of: dict[Op, str]
    """One of `wanted`; operations outside of all are not in it."""

    @property
    def said(self) -> str:
        """`` as layer1 layer2 layer3 layer4 fc`` where the names are not those that are wanted."""
        return "" if self.names == self.wanted else " as " + " ".join(self.names)


def find_blocks(trace: Trace, paths: Sequence[str] = (), wanted: tuple[str, ...] = BLOCKS) -> Blocks:
    """The blocks of a network: the modules with the dotted `paths`, with or without the output block, or else those that are found.

    Raises InputError where the network has no such modules.
    """
    if paths:
        _demand(trace, paths, wanted)
        return _by_paths(trace, tuple(paths), wanted)
    of = {op: name for op in trace.ops if (name := next((part for part in op.path.split(".") if part in wanted), None))}
    named = set(of.values())
    if len(wanted) > 2 and (not named - {wanted[-1]} or named == set(wanted[:-1])):
        count = len(wanted) - 1
        found = _numbered(trace, count) or _side_by_side(trace, count)
        if found:
            return _by_paths(trace, found, wanted)
    return Blocks(wanted, wanted, of)


def _demand(trace: Trace, paths: Sequence[str], wanted: tuple[str, ...]) -> None:
    if not wanted:
        raise InputError("the assignment demands no blocks: leave out --blocks")
    modules = [name for name, _ in trace.model.named_modules() if name]
    unknown = [path for path in paths if path not in modules]
    if unknown:
        shown = [name for name in modules if name.count(".") < 2]
        raise InputError(f"the network has no module '{unknown[0]}': it has {', '.join(shown[:40]) or 'none'}")
    most = len(wanted)
    if len(paths) not in (most - 1, most) or len(set(paths)) < len(paths):
        few, many = (NUMBERS.get(number, str(number)) for number in (most - 1, most))
        raise InputError(f"the blocks must be {few} different modules, or {many} with the output block, not {', '.join(paths)}")


def _by_paths(trace: Trace, paths: tuple[str, ...], wanted: tuple[str, ...]) -> Blocks:
    of = {}
    for op in trace.ops:
        for name, path in zip(wanted, paths, strict=False):
            if op.path == path or op.path.startswith(path + "."):
                of[op] = name
                break
    if len(paths) == len(wanted):
        return Blocks(wanted, paths, of)
    last = max((place for place, op in enumerate(trace.ops) if of.get(op) == wanted[-2]), default=len(trace.ops))
    rest = [op for op in trace.ops[last + 1 :] if op not in of]
    of |= dict.fromkeys(rest, wanted[-1])
    depth = paths[0].count(".") + 1 if len({path.rpartition(".")[0] for path in paths}) == 1 else 1
    after = dict.fromkeys(".".join(op.path.split(".")[:depth]) for op in rest)
    return Blocks(wanted, (*paths, *([name for name in after if name] or ["forward"] * bool(rest))), of)


def _holders(trace: Trace) -> dict[str, list[tuple[str, int]]]:
    """By the path of each module that holds convolutions in several children: these in the order of calls, with how many each."""
    counts: dict[str, dict[str, int]] = {}
    for op in trace.ops:
        if op.is_conv:
            parts = op.path.split(".")
            for depth, child in enumerate(parts):
                children = counts.setdefault(".".join(parts[:depth]), {})
                children[child] = children.get(child, 0) + 1
    return {path: list(children.items()) for path, children in counts.items() if len(children) > 1}


def _numbered(trace: Trace, wanted: int) -> tuple[str, ...] | None:
    """As many modules as are wanted side by side called NAME1, NAME2, ... (or from 0) that hold most of the convolutions."""
    total = sum(op.is_conv for op in trace.ops)
    for holder, children in _holders(trace).items():
        groups: dict[tuple[str, str], dict[int, tuple[str, int]]] = {}
        for child, count in children:
            parts = re.fullmatch(r"(.*?\D)(\d+)(\D*)", child)
            if parts:
                groups.setdefault((parts[1], parts[3]), {})[int(parts[2])] = child, count
        for group in groups.values():
            numbers = sorted(group)
            is_row = len(group) == wanted and numbers[-1] - numbers[0] == wanted - 1 and numbers[0] in (0, 1)
            if is_row and sum(count for _, count in group.values()) * 2 > total:
                return tuple(f"{holder}.{group[number][0]}".lstrip(".") for number in numbers)
    return None


def _side_by_side(trace: Trace, wanted: int) -> tuple[str, ...] | None:
    """As many modules side by side with several convolutions each, most of all; one more may hold the head's."""
    total = sum(op.is_conv for op in trace.ops)
    heads = [op.path for op in trace.heads]
    for holder, children in _holders(trace).items():
        paths = [f"{holder}.{child}".lstrip(".") for child, _ in children]
        counts = [count for _, count in children[:wanted]]
        has_output = len(paths) == wanted + 1 and all(head == paths[-1] or head.startswith(paths[-1] + ".") for head in heads)
        if (len(paths) == wanted or has_output) and min(counts) > 1 and sum(counts) * 2 > total:
            return tuple(paths)
    return None


def layers(trace: Trace, blocks: Blocks) -> list[Op]:
    """The convolutions that count as layers; one that is applied several times counts each time.

    Not the 1x1 half of a depthwise-separable pair in one block, nor a 1x1 shortcut projection, nor a 1x1 convolution of a
    pooled vector, which is a linear layer (the gate of squeeze-and-excitation).
    """
    halves = {second for first, second in separable_pairs(trace) if blocks.of.get(first) == blocks.of.get(second)}
    found = [op for op in trace.ops if op.is_conv and op not in halves and not (op.is_pointwise and not op.inputs[0].is_map)]
    for layer in list(found):
        if _is_shortcut(layer, found):
            found.remove(layer)
    return found


def separable_pairs(trace: Trace) -> list[tuple[Op, Op]]:
    """Each depthwise convolution with the 1x1 convolution that follows it, with nothing but elementwise between them."""
    pairs: dict[Op, Op] = {}  # by the pointwise one
    for depthwise in (op for op in trace.ops if op.is_depthwise):
        for pointwise in _reach_forward(depthwise, lambda op: op.name in ELEMENTWISE):
            if pointwise.is_pointwise:
                pairs[pointwise] = depthwise
                break
    return [(depthwise, pointwise) for pointwise, depthwise in pairs.items()]


def _is_shortcut(conv: Op, found: list[Op]) -> bool:
    """Whether a 1x1 convolution is alone on its way from a fork to a sum, and the other way between them has a layer."""
    if not conv.is_pointwise:
        return False
    before = reach_back(conv.inputs, lambda op: not op.is_conv)
    after = _reach_forward(conv, lambda op: not op.is_conv and op.name not in SUMS)
    for total in (op for op in after if op.name in SUMS):
        others = [source for source in total.inputs if source is not conv and source not in after]
        between = reach_back(others, lambda op: op is not conv and op not in before)
        if between & before and any(op in found for op in between - before):
            return True
    return False


def _reach_forward(start: Op, go_on: Callable[[Op], bool]) -> list[Op]:
    """What uses `start`'s result, nearest first, not looking beyond an operation for which `go_on` is false."""
    found = list(dict.fromkeys(start.users))
    for op in found:
        if go_on(op):
            found.extend(user for user in dict.fromkeys(op.users) if user not in found)
    return found
