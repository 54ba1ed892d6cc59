"""The kinds of operation that an assignment may require or forbid, and how often a network has each.

Whoever reads an assignment needs their names, also a website: what counts imports torch where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limits.blocks import Blocks
    from limits.operations import Op
    from limits.tracing import Trace

Found = tuple[int, str]
"""How many there are, and what there is to say about them."""


@dataclass(frozen=True)
class Kind:
    """A kind of operation: its name in a table, and how to count it."""

    title: str
    count: Callable[[Trace, Blocks], Found]


def _named(*names: str) -> Callable[[Trace, Blocks], Found]:
    return lambda trace, blocks: _told(op for op in trace.ops if op.name in names)


def _told(ops: Iterable[Op]) -> Found:
    found = list(ops)
    places = list(dict.fromkeys(op.path or "forward" for op in found))
    return len(found), f"{len(found)}" + (f": {', '.join(places[:3])}{', ...' if len(places) > 3 else ''}" if found else "")


def _separable(trace: Trace, blocks: Blocks) -> Found:
    from limits.blocks import separable_pairs

    count = len(separable_pairs(trace))
    return count, f"{count} depthwise + 1x1"


def _pointwise(trace: Trace, blocks: Blocks) -> Found:
    from limits.blocks import layers

    return _told(op for op in layers(trace, blocks) if op.is_pointwise)


def _residual(trace: Trace, blocks: Blocks) -> Found:
    from limits.operations import SUMS

    return _told(op for op in trace.ops if op.name in SUMS and len(op.inputs) > 1)


def _dilated(trace: Trace, blocks: Blocks) -> Found:
    from limits.operations import pair

    dilations = [
        max(pair(op.options["dilation"]))
        for op in trace.ops
        if op.is_conv
        and any(
            kernel > 1 and dilation > 1
            for kernel, dilation in zip(pair(op.options["kernel_size"]), pair(op.options["dilation"]), strict=True)
        )
    ]
    return len(dilations), f"{len(dilations)} dilated" + (f" by {max(dilations)}" if dilations else "")


def _pooling(*names: str) -> Callable[[Trace, Blocks], Found]:
    """Pooling that leaves height and width; global pooling is a kind of its own."""
    return lambda trace, blocks: _told(op for op in trace.ops if op.name in names and not op.global_pooling)


def _layer_norm(is_wanted: bool) -> Callable[[Trace, Blocks], Found]:
    """GroupNorm of one group is LayerNorm over channels and pixels."""
    return lambda trace, blocks: _told(
        op
        for op in trace.ops
        if (op.name == "layer_norm" and is_wanted) or (op.name == "group_norm" and (op.options.get("num_groups") == 1) == is_wanted)
    )


KINDS: dict[str, Kind] = {
    "gap": Kind("GAP", lambda trace, blocks: _told(op for op in trace.ops if op.global_pooling == "average")),
    "separable": Kind("depthwise separable", _separable),
    "dilated": Kind("dilated", _dilated),
    "strided": Kind("strided convolution", lambda trace, blocks: _told(op for op in trace.ops if op.is_conv and is_strided(op))),
    "pointwise": Kind("1x1 convolution", _pointwise),
    "grouped": Kind(
        "grouped convolution", lambda trace, blocks: _told(op for op in trace.ops if op.is_conv and op.options["groups"] > 1)
    ),
    "max_pool": Kind("max-pooling", _pooling("max_pool2d", "adaptive_max_pool2d")),
    "average_pool": Kind("average pooling", _pooling("avg_pool2d", "adaptive_avg_pool2d")),
    "linear": Kind("linear layer", _named("linear")),
    "residual": Kind("sum of branches", _residual),
    "batch_norm": Kind("BatchNorm", _named("batch_norm")),
    "group_norm": Kind("GroupNorm", _layer_norm(False)),
    "layer_norm": Kind("LayerNorm", _layer_norm(True)),
    "instance_norm": Kind("InstanceNorm", _named("instance_norm")),
    "dropout": Kind("dropout", _named("dropout", "dropout2d", "alpha_dropout", "feature_alpha_dropout")),
}


def is_strided(op: Op) -> bool:
    """Whether a convolution gives fewer pixels than it takes because of its stride."""
    from limits.operations import pair

    return max(pair(op.options["stride"])) > 1
