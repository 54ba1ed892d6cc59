"""What an assignment demands of a network, computed from the network itself: any `nn.Module`, not only this project's.

The network is run once on an image of noise, and what it does is recorded (recording.py). What the record does not show is not held
against the network: that demand is then unknown.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn
from torch.nn.parameter import is_lazy

from config import InputError
from limits.assignments import Assignment, Demands, default
from limits.blocks import Blocks, find_blocks, layers
from limits.costs import latency_ms, mult_adds, size_kb
from limits.kinds import KINDS
from limits.operations import Op
from limits.patterns import layers_of, numbered, parse_layers
from limits.receptive_field import ReceptiveField, receptive_field_of
from limits.tracing import Trace, reach_back, trace_model
from utils import hardware, machine

# What takes height and width away, beside global pooling, in a way that is known not to be an average over all of it.
OTHER_HEADS = frozenset(
    str.split(
        "adaptive_avg_pool2d adaptive_max_pool2d amax avg_pool2d cat conv2d flatten getitem linear max max_pool2d mean reshape "
        "select squeeze sum view"
    )
)


@dataclass(frozen=True)
class Constraint:
    """One demand, and how a network or its training stands to it."""

    name: str
    value: str
    limit: str
    passed: bool | None
    """None where it cannot be known; `value` then says why."""
    is_bonus: bool = False
    """Whether it need not be met."""

    @property
    def verdict(self) -> str:
        """pass, FAIL or unknown; of a bonus: bonus, no bonus or unknown."""
        if self.passed is None:
            return "unknown"
        return ("no bonus", "bonus")[self.passed] if self.is_bonus else ("FAIL", "pass")[self.passed]


def check(
    model: nn.Module,
    image_size: tuple[int, int] = (32, 32),
    num_channels: int = 3,
    blocks: Sequence[str] = (),
    assignment: Assignment | None = None,
) -> list[Constraint]:
    """Every demand of an assignment on a network from (N, num_channels, *image_size) float32 images to (N, classes).

    `blocks` are the dotted paths of its blocks, and of the output block where that is one module; without them they are found.
    `assignment`: None for the default one. Its bonus comes last. `model` is left as it is, and so is the random state. Raises
    InputError where it fails on such an image, or where it has no such blocks.
    """
    assignment = default() if assignment is None else assignment
    trace = _trace(model, image_size, num_channels, 1)
    reads = trace.recorder.reads
    found = _check(_Network(trace, model, find_blocks(trace, blocks, assignment.blocks)), assignment)
    if reads and trace.ops:  # does it go the same way with another image?
        trace = _trace(model, image_size, num_channels, -1)
        other = _check(_Network(trace, model, find_blocks(trace, blocks, assignment.blocks)), assignment)
        why = f"because the network decides by the values of its images ({reads[0]})"
        found = [
            one if one.passed == two.passed else replace(one, value=f"unknown, {why}", passed=None)
            for one, two in zip(found, other, strict=True)
        ]
    if assignment.max_latency_ms or assignment.bonus.max_latency_ms:
        milliseconds = latency_ms(model, num_channels, image_size)
        for demands in (assignment, assignment.bonus):
            if limit := demands.max_latency_ms:
                value = f"{milliseconds:.3g} ms, median, on {machine({'hardware': hardware()})}"
                one = Constraint("latency of one image", value, f"< {limit:g} ms", milliseconds < limit)
                found.append(_as_bonus(one) if demands is assignment.bonus else one)
    return sorted(found, key=lambda constraint: constraint.is_bonus)


def exit_status(constraints: Sequence[Constraint]) -> int:
    """0 where all pass, 1 where any fails, 3 where none fails but not all are known; a bonus does not count."""
    verdicts = {constraint.passed for constraint in constraints if not constraint.is_bonus}
    return 1 if False in verdicts else 3 if None in verdicts else 0


def format_table(constraints: list[Constraint]) -> str:
    """The constraints as aligned plain text: name, value, limit, verdict."""
    rows = [("constraint", "value", "limit", ""), *((c.name, c.value, c.limit, c.verdict) for c in constraints)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def format_demands(name: str, constraints: list[Constraint]) -> str:
    """The constraints under the name of the assignment that demands them."""
    if not constraints:
        return f"the assignment {name} demands nothing"
    return f"what the assignment {name} demands\n{format_table(constraints)}"


@dataclass
class _Network:
    """What the demands are computed from."""

    trace: Trace
    model: nn.Module
    blocks: Blocks

    @cached_property
    def opaque(self) -> list[Op]:
        return [op for op in self.trace.ops if op.is_opaque]

    @cached_property
    def receptive_field(self) -> ReceptiveField:
        return receptive_field_of(self.trace)


def _trace(model: nn.Module, image_size: tuple[int, int], num_channels: int, sign: int) -> Trace:
    try:
        return trace_model(model, image_size, num_channels, sign)
    except Exception as error:
        size = f"{num_channels}x{image_size[0]}x{image_size[1]}"
        raise InputError(f"the network fails on a {size} image: {_one_line(error)}") from error


def _check(network: _Network, assignment: Assignment) -> list[Constraint]:
    model = network.trace.model if any(map(is_lazy, network.model.parameters())) else network.model
    reads = network.trace.recorder.reads
    why = "its result does not come from the image by operations of torch" + (f" ({reads[0]})" if reads else "")
    found: list[Constraint] = []
    for demands in (assignment, assignment.bonus):
        of_weights, of_trace = list(_of_weights(model, demands)), list(_of_trace(network, demands))
        if not network.trace.ops:
            of_trace = [replace(one, value=f"unknown, because {why}", passed=None) for one in of_trace]
        found += map(_as_bonus, of_weights + of_trace) if demands is assignment.bonus else of_weights + of_trace
    return found


def _as_bonus(constraint: Constraint) -> Constraint:
    return replace(constraint, name=f"bonus: {constraint.name}", is_bonus=True)


def _of_weights(model: nn.Module, demands: Demands) -> Iterator[Constraint]:
    """The demands that need no trace."""
    if limit := demands.max_parameters:
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
        value = f"{trainable:,}" + (f" (and {frozen:,} not trained)" if frozen else "")
        yield Constraint("parameters", value, f"< {limit:,}", trainable < limit)
    for name, kilobytes in (("float32", demands.max_size_kb.float32), ("int8", demands.max_size_kb.int8)):
        if kilobytes:
            size = size_kb(model, name == "int8")
            yield Constraint(f"size in {name}", f"{size:,.1f} kB", f"< {kilobytes:,g} kB", size < kilobytes)


def _of_trace(network: _Network, demands: Demands) -> Iterator[Constraint]:
    if demands.max_mult_adds:
        yield _mult_adds(network, demands.max_mult_adds)
    if isinstance(demands, Assignment) and demands.blocks:
        yield _blocks(network, demands.layers_per_block)
    if demands.layers:
        yield _layers(network, parse_layers(demands.layers))
    for kinds, least in Counter(demands.require).items():
        yield _global_average_pooling(network) if kinds == ("gap",) else _required(network, kinds, least)
    for kind in dict.fromkeys(demands.forbid):
        yield _forbidden(network, kind)
    if demands.min_receptive_field is not None:
        yield _receptive_field(network, demands.min_receptive_field)


def _mult_adds(network: _Network, limit: int) -> Constraint:
    count, uncounted = mult_adds(network.trace)
    passed: bool | None = count < limit
    value = f"{count:,}"
    if passed and uncounted:
        passed, value = None, f"unknown, because {uncounted[0].name} in {uncounted[0].path or 'forward'} cannot be counted"
    return Constraint("mult-adds", value, f"< {limit:,}", passed)


def _blocks(network: _Network, layers_per_block: int | None) -> Constraint:
    blocks = network.blocks
    *convolutional, output = blocks.wanted
    counted = [blocks.of.get(layer) for layer in layers(network.trace, blocks)]
    opaque = [op for op in network.opaque if blocks.of.get(op) != output]
    unseen = {blocks.of.get(op) for op in opaque}
    order = list(dict.fromkeys(blocks.of[op] for op in network.trace.ops if op in blocks.of))
    missing = [block for block in blocks.wanted if block not in order]
    problems = ["no " + " ".join(missing)] if missing else []
    if not problems and order != list(blocks.wanted):
        problems.append("in the order " + " ".join(order))
    outside = counted.count(None)
    if outside and layers_per_block:
        problems.append(f"{outside} outside the blocks")
    counts = [("?" if block in unseen else str(counted.count(block))) for block in convolutional]
    value = ", ".join([" ".join(counts) + blocks.said, *problems])
    passed: bool | None = not problems and (not layers_per_block or set(counts) <= {str(layers_per_block), "?"})
    # An opaque module outside of the blocks may hold the missing ones; one in a block holds that block's layers alone.
    if opaque and (passed or None in unseen):
        passed, value = None, f"unknown, because {_unseen(opaque)}"
    limit = (
        f"{layers_per_block} layer{'s' if layers_per_block > 1 else ''} each, then {output}"
        if layers_per_block
        else "in this order"
    )
    return Constraint(" ".join(blocks.wanted), value, limit, passed)


def _layers(network: _Network, wanted: list[str]) -> Constraint:
    found = layers_of(network.trace, network.blocks)
    passed: bool | None = found == wanted
    value = numbered(found)
    if network.opaque:
        passed, value = None, f"unknown, because {_unseen(network.opaque)}"
    return Constraint("layers", value, numbered(wanted), passed)


def _global_average_pooling(network: _Network) -> Constraint:
    trace, blocks = network.trace, network.blocks
    value = ", ".join(f"{op.name} in {op.path or 'forward'}" for op in trace.heads) or "none"
    passed: bool | None = bool(trace.heads) and all(
        op.global_pooling == "average" and blocks.of.get(op) not in blocks.wanted[:-1] for op in trace.heads
    )
    strange = [op for op in trace.heads if not op.global_pooling and op.name not in OTHER_HEADS and not op.is_map]
    opaque = [op for op in network.opaque if op in trace.heads or not trace.heads]
    if opaque:
        passed, value = None, f"unknown, because {_unseen(opaque)}"
    elif strange and all(op in strange or op.global_pooling == "average" for op in trace.heads):
        passed, value = None, f"unknown, because it cannot be told whether {value} is an average"
    return Constraint("GAP", value, "global average" + (f" after {blocks.wanted[-2]}" if blocks.wanted else ""), passed)


def _required(network: _Network, kinds: tuple[str, ...], least: int) -> Constraint:
    found = [KINDS[kind].count(network.trace, network.blocks) for kind in kinds]
    count, name = sum(number for number, _ in found), " or ".join(KINDS[kind].title for kind in kinds)
    value = (
        found[0][1]
        if len(kinds) == 1
        else ", ".join(f"{KINDS[kind].title} {number}" for kind, (number, _) in zip(kinds, found, strict=True))
    )
    if network.opaque and count < least:
        return Constraint(name, f"unknown, because {_unseen(network.opaque)}", f">= {least}", None)
    return Constraint(name, value, f">= {least}", count >= least)


def _forbidden(network: _Network, kind: str) -> Constraint:
    count, value = KINDS[kind].count(network.trace, network.blocks)
    if network.opaque and not count:
        return Constraint(f"no {KINDS[kind].title}", f"unknown, because {_unseen(network.opaque)}", "none", None)
    return Constraint(f"no {KINDS[kind].title}", value if count else "none", "none", not count)


def _receptive_field(network: _Network, least: int) -> Constraint:
    limit = f"> {least} px"
    if not network.trace.ops:
        return Constraint("receptive field", "unknown", limit, None)
    seen = network.receptive_field
    opaque = [op for op in reach_back(network.trace.heads) if op.is_opaque]  # behind a head that is one there may be further maps
    gradient = ("at least " if seen.at_least else "") + _pixels(seen.gradient)
    if seen.arithmetic is None:
        value, smaller = f"by gradient only: {gradient}", seen.gradient
    elif seen.arithmetic == seen.gradient:
        value, smaller = _pixels(seen.arithmetic), seen.arithmetic
    else:
        value = f"{_pixels(seen.arithmetic)} by arithmetic, {gradient} by gradient"
        smaller = seen.arithmetic if seen.at_least else min(seen.arithmetic, seen.gradient)
    passed: bool | None = smaller > least
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
