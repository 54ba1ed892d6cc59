"""What an assignment demands of a network, computed from the network itself: any `nn.Module`, not only this project's.

The network is run once on an image of noise, and what it does is recorded (recording.py). What the record does not show is not held
against the network: that demand is then unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn
from torch.nn.parameter import is_lazy

from config import InputError
from limits.blocks import BLOCKS, Blocks, find_blocks, layers, separable_pairs
from limits.operations import Op, pair
from limits.receptive_field import receptive_field_of
from limits.tracing import Trace, reach_back, trace_model

LAYERS_PER_BLOCK = 3
MAX_PARAMETERS = 200_000  # exclusive
MIN_RECEPTIVE_FIELD = 44  # pixels, exclusive
# What takes height and width away, beside global pooling, in a way that is known not to be an average over all of it.
OTHER_HEADS = frozenset(
    str.split(
        "adaptive_avg_pool2d adaptive_max_pool2d amax avg_pool2d cat conv2d flatten getitem linear max max_pool2d mean reshape "
        "select squeeze sum view"
    )
)


@dataclass(frozen=True)
class Constraint:
    """One demand, and how a network stands to it."""

    name: str
    value: str
    limit: str
    passed: bool | None
    """None where it cannot be known; `value` then says why."""


def check(
    model: nn.Module, image_size: tuple[int, int] = (32, 32), num_channels: int = 3, blocks: Sequence[str] = ()
) -> list[Constraint]:
    """Every constraint on a network that takes (N, num_channels, *image_size) float32 images and returns (N, classes).

    `blocks` are the dotted paths of its four blocks, and of the output block where that is one module; without them they are
    found. `model` is left as it is, and so is the random state. Raises InputError where it fails on such an image, or where it has
    no such blocks.
    """
    trace = _trace(model, image_size, num_channels, 1)
    reads = trace.recorder.reads
    found = _check(trace, model, blocks)
    if not reads or not trace.ops:
        return found
    other = _check(_trace(model, image_size, num_channels, -1), model, blocks)  # does it go the same way with another image?
    why = f"because the network decides by the values of its images ({reads[0]})"
    return [
        one if one.passed == two.passed else replace(one, value=f"unknown, {why}", passed=None)
        for one, two in zip(found, other, strict=True)
    ]


def format_table(constraints: list[Constraint]) -> str:
    """The constraints as aligned plain text: name, value, limit, pass, FAIL or unknown."""
    rows = [
        ("constraint", "value", "limit", ""),
        *((c.name, c.value, c.limit, {True: "pass", False: "FAIL", None: "unknown"}[c.passed]) for c in constraints),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _trace(model: nn.Module, image_size: tuple[int, int], num_channels: int, sign: int) -> Trace:
    try:
        return trace_model(model, image_size, num_channels, sign)
    except Exception as error:
        size = f"{num_channels}x{image_size[0]}x{image_size[1]}"
        raise InputError(f"the network fails on a {size} image: {_one_line(error)}") from error


def _check(trace: Trace, model: nn.Module, paths: Sequence[str]) -> list[Constraint]:
    blocks = find_blocks(trace, paths)
    found = [
        _parameters(trace.model if any(map(is_lazy, model.parameters())) else model),
        _blocks(trace, blocks),
        _global_average_pooling(trace, blocks),
        _depthwise_separable(trace),
        _dilated(trace),
        _receptive_field(trace),
    ]
    if trace.ops:
        return found
    reads = trace.recorder.reads
    why = "its result does not come from the image by operations of torch" + (f" ({reads[0]})" if reads else "")
    return [found[0], *(replace(one, value=f"unknown, because {why}", passed=None) for one in found[1:])]


def _parameters(model: nn.Module) -> Constraint:
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    value = f"{trainable:,}" + (f" (and {frozen:,} not trained)" if frozen else "")
    return Constraint("parameters", value, f"< {MAX_PARAMETERS:,}", trainable < MAX_PARAMETERS)


def _blocks(trace: Trace, blocks: Blocks) -> Constraint:
    counted = [blocks.of.get(layer) for layer in layers(trace, blocks)]
    opaque = [op for op in trace.ops if op.is_opaque and blocks.of.get(op) != "O"]
    unseen = {blocks.of.get(op) for op in opaque}
    order = list(dict.fromkeys(blocks.of[op] for op in trace.ops if op in blocks.of))
    missing = [block for block in BLOCKS if block not in order]
    problems = ["no " + " ".join(missing)] if missing else []
    if not problems and order != list(BLOCKS):
        problems.append("in the order " + " ".join(order))
    outside = counted.count(None)
    if outside:
        problems.append(f"{outside} outside the blocks")
    counts = [("?" if block in unseen else str(counted.count(block))) for block in BLOCKS[:-1]]
    value = ", ".join([" ".join(counts) + blocks.said, *problems])
    passed: bool | None = not problems and set(counts) <= {str(LAYERS_PER_BLOCK), "?"}
    # An opaque module outside of the blocks may hold the missing ones; one in a block holds that block's layers alone.
    if opaque and (passed or None in unseen):
        passed, value = None, f"unknown, because {_unseen(opaque)}"
    return Constraint(" ".join(BLOCKS), value, f"{LAYERS_PER_BLOCK} layers each, then O", passed)


def _global_average_pooling(trace: Trace, blocks: Blocks) -> Constraint:
    value = ", ".join(f"{op.name} in {op.path or 'forward'}" for op in trace.heads) or "none"
    passed: bool | None = bool(trace.heads) and all(
        op.global_pooling == "average" and blocks.of.get(op) not in BLOCKS[:-1] for op in trace.heads
    )
    strange = [op for op in trace.heads if not op.global_pooling and op.name not in OTHER_HEADS and not op.is_map]
    opaque = [op for op in trace.ops if op.is_opaque and (op in trace.heads or not trace.heads)]
    if opaque:
        passed, value = None, f"unknown, because {_unseen(opaque)}"
    elif strange and all(op in strange or op.global_pooling == "average" for op in trace.heads):
        passed, value = None, f"unknown, because it cannot be told whether {value} is an average"
    return Constraint("GAP", value, "global average after C4", passed)


def _depthwise_separable(trace: Trace) -> Constraint:
    count = len(separable_pairs(trace))
    return _at_least_one(trace, "depthwise separable", f"{count} depthwise + 1x1", count)


def _dilated(trace: Trace) -> Constraint:
    convs = [op.options for op in trace.ops if op.is_conv]
    dilations = [
        max(pair(conv["dilation"]))
        for conv in convs
        if any(
            kernel > 1 and dilation > 1 for kernel, dilation in zip(pair(conv["kernel_size"]), pair(conv["dilation"]), strict=True)
        )
    ]
    value = f"{len(dilations)} dilated" + (f" by {max(dilations)}" if dilations else "")
    return _at_least_one(trace, "dilated", value, len(dilations))


def _at_least_one(trace: Trace, name: str, value: str, count: int) -> Constraint:
    opaque = [op for op in trace.ops if op.is_opaque]
    if opaque and not count:
        return Constraint(name, f"unknown, because {_unseen(opaque)}", ">= 1", None)
    return Constraint(name, value, ">= 1", count > 0)


def _receptive_field(trace: Trace) -> Constraint:
    limit = f"> {MIN_RECEPTIVE_FIELD} px"
    if not trace.ops:
        return Constraint("receptive field", "unknown", limit, None)
    seen = receptive_field_of(trace)
    opaque = [op for op in reach_back(trace.heads) if op.is_opaque]  # behind a head that is one there may be further maps
    gradient = ("at least " if seen.at_least else "") + _pixels(seen.gradient)
    if seen.arithmetic is None:
        value, smaller = f"by gradient only: {gradient}", seen.gradient
    elif seen.arithmetic == seen.gradient:
        value, smaller = _pixels(seen.arithmetic), seen.arithmetic
    else:
        value = f"{_pixels(seen.arithmetic)} by arithmetic, {gradient} by gradient"
        smaller = seen.arithmetic if seen.at_least else min(seen.arithmetic, seen.gradient)
    passed: bool | None = smaller > MIN_RECEPTIVE_FIELD
    if not passed and (opaque or (seen.at_least and seen.arithmetic is None)):
        why = _unseen(opaque) if opaque else "the network takes no larger images"
        passed, value = None, f"unknown, because {why}"
    return Constraint("receptive field", value, limit, passed)


def _unseen(opaque: Sequence[Op]) -> str:
    places = list(dict.fromkeys(f"{op.name} in {op.path or 'forward'}" for op in opaque))
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return f"{places[0]}{more} cannot be looked into"


def _pixels(extent: float) -> str:
    return "whole image" if math.isinf(extent) else f"{extent:.0f} px"


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
