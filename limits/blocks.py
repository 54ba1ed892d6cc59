"""The four convolution blocks and the output block of a network, and the layers in them.

Blocks named C1, C2, C3, C4 and O are those. In a network without these names they are found by name (`layer1` to `layer4`) or by
structure (four modules side by side that hold most of the convolutions); what comes after the fourth is then the output block.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from config import InputError
from limits.operations import ELEMENTWISE, SUMS, Op
from limits.tracing import Trace, reach_back

BLOCKS = ("C1", "C2", "C3", "C4", "O")


@dataclass(frozen=True)
class Blocks:
    """Which block each operation is in."""

    names: tuple[str, ...]
    """What the network calls them, in the order of BLOCKS; the fifth may be several modules, or be missing."""
    of: dict[Op, str]
    """One of BLOCKS; operations outside of all are not in it."""

    @property
    def said(self) -> str:
        """`` as layer1 layer2 layer3 layer4 fc`` where the names are not BLOCKS."""
        return "" if self.names == BLOCKS else " as " + " ".join(self.names)


def find_blocks(trace: Trace, paths: Sequence[str] = ()) -> Blocks:
    """The blocks of a network: the modules with the dotted `paths`, four or five, or else those that are found.

    Raises InputError where the network has no such modules.
    """
    if paths:
        _demand(trace, paths)
        return _by_paths(trace, tuple(paths))
    of = {op: name for op in trace.ops if (name := next((part for part in op.path.split(".") if part in BLOCKS), None))}
    named = set(of.values())
    if not named - {"O"} or named == set(BLOCKS[:-1]):
        found = _numbered(trace) or _side_by_side(trace)
        if found:
            return _by_paths(trace, found)
    return Blocks(BLOCKS, of)


def _demand(trace: Trace, paths: Sequence[str]) -> None:
    modules = [name for name, _ in trace.model.named_modules() if name]
    unknown = [path for path in paths if path not in modules]
    if unknown:
        shown = [name for name in modules if name.count(".") < 2]
        raise InputError(f"the network has no module '{unknown[0]}': it has {', '.join(shown[:40]) or 'none'}")
    if len(paths) not in (4, 5) or len(set(paths)) < len(paths):
        raise InputError(f"the blocks are four different modules, or five with the output block: {', '.join(paths)} is not that")


def _by_paths(trace: Trace, paths: tuple[str, ...]) -> Blocks:
    of = {}
    for op in trace.ops:
        for name, path in zip(BLOCKS, paths, strict=False):
            if op.path == path or op.path.startswith(path + "."):
                of[op] = name
                break
    if len(paths) == len(BLOCKS):
        return Blocks(paths, of)
    last = max((place for place, op in enumerate(trace.ops) if of.get(op) == BLOCKS[3]), default=len(trace.ops))
    rest = [op for op in trace.ops[last + 1 :] if op not in of]
    of |= dict.fromkeys(rest, BLOCKS[4])
    depth = paths[0].count(".") + 1 if len({path.rpartition(".")[0] for path in paths}) == 1 else 1
    after = dict.fromkeys(".".join(op.path.split(".")[:depth]) for op in rest)
    return Blocks((*paths, *([name for name in after if name] or ["forward"] * bool(rest))), of)


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


def _numbered(trace: Trace) -> tuple[str, ...] | None:
    """Four modules side by side called NAME1, NAME2, NAME3, NAME4 (or from 0) that hold most of the convolutions."""
    total = sum(op.is_conv for op in trace.ops)
    for holder, children in _holders(trace).items():
        groups: dict[tuple[str, str], dict[int, tuple[str, int]]] = {}
        for child, count in children:
            parts = re.fullmatch(r"(.*?\D)(\d+)(\D*)", child)
            if parts:
                groups.setdefault((parts[1], parts[3]), {})[int(parts[2])] = child, count
        for group in groups.values():
            numbers = sorted(group)
            is_four = len(group) == 4 and numbers[-1] - numbers[0] == 3 and numbers[0] in (0, 1)
            if is_four and sum(count for _, count in group.values()) * 2 > total:
                return tuple(f"{holder}.{group[number][0]}".lstrip(".") for number in numbers)
    return None


def _side_by_side(trace: Trace) -> tuple[str, ...] | None:
    """Four modules side by side with several convolutions each, most of all; a fifth may hold the head's."""
    total = sum(op.is_conv for op in trace.ops)
    heads = [op.path for op in trace.heads]
    for holder, children in _holders(trace).items():
        paths = [f"{holder}.{child}".lstrip(".") for child, _ in children]
        counts = [count for _, count in children[:4]]
        has_output = len(paths) == 5 and all(head == paths[4] or head.startswith(paths[4] + ".") for head in heads)
        if (len(paths) == 4 or has_output) and min(counts) > 1 and sum(counts) * 2 > total:
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
