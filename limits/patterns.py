"""The layers of a network in their order, as an assignment writes them: `C1 C2 c3 P1 C4 C5 GAP c6`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limits.blocks import Blocks
    from limits.tracing import Trace

SYMBOLS = {
    "C": "a convolution of more than one pixel",
    "c": "a 1x1 convolution; behind GAP also a linear layer, which is one",
    "P": "max-pooling",
    "GAP": "global average pooling",
}


def parse_layers(text: str) -> list[str]:
    """The symbols in `C1C2c3P1 GAP c4`, without their numbers. Raises ValueError where it is none of SYMBOLS."""
    found = re.findall(r"(GAP|[CcP])\d*", text)
    rest = re.sub(r"(GAP|[CcP])\d*|[\s,]", "", text)
    if rest:
        raise ValueError(f"layers: '{rest[:20]}' is none of {', '.join(SYMBOLS)} with a number, as in C1 C2 c3 P1 GAP c4")
    if found.count("GAP") > 1:
        raise ValueError("layers: GAP stands there twice")
    return found


def layers_of(trace: Trace, blocks: Blocks) -> list[str]:
    """The symbols of a network's layers, in the order of execution.

    A depthwise-separable pair is one layer, and a 1x1 shortcut projection none.
    """
    from limits.blocks import layers  # which imports torch

    counted = set(layers(trace, blocks))
    found = []
    for op in trace.ops:
        if op in counted:
            found.append("c" if op.is_pointwise and not op.is_depthwise else "C")
        elif op.global_pooling == "average" and op in trace.heads:
            found.append("GAP")
        elif op.name in ("max_pool2d", "adaptive_max_pool2d") and not op.global_pooling:
            found.append("P")
        elif "GAP" in found and (op.name == "linear" or op.is_pointwise):
            found.append("c")
    return found


def numbered(symbols: Sequence[str]) -> str:
    """`C1 C2 c3 P1 GAP c4` of these symbols: convolutions are numbered throughout, and so is pooling."""
    convolutions, pools, words = 0, 0, []
    for symbol in symbols:
        convolutions += symbol in "Cc"
        pools += symbol == "P"
        words.append(symbol + {"P": str(pools), "GAP": ""}.get(symbol, str(convolutions)))
    return " ".join(words)
