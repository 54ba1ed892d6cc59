"""The operations of a network's forward pass as a graph: what `constraints.py` and `receptive_field.py` look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from limits.copying import copy_of
from limits.operations import Op
from limits.recording import Recorder


@dataclass(frozen=True)
class Trace:
    """The forward pass of a network for one image."""

    model: nn.Module
    """A copy in eval mode, on the CPU, in float32."""
    recorder: Recorder
    ops: list[Op]
    """In order of execution, the images first; only those that the output depends on: none where it does not on the image."""
    heads: list[Op]
    """Those after which no height and width are left, next to the output: global pooling, or what stands for it."""


def reach_back(start: Sequence[Op], go_on: Callable[[Op], bool] = lambda op: True) -> set[Op]:
    """`start` and all that it depends on, not looking behind an operation for which `go_on` is false."""
    seen, stack = set(start), list(start)
    while stack:
        op = stack.pop()
        new = [source for source in op.inputs if source not in seen] if go_on(op) else []
        seen.update(new)
        stack.extend(new)
    return seen


def trace_model(model: nn.Module, image_size: tuple[int, int], num_channels: int, sign: int = 1) -> Trace:
    """The forward pass of `model` on one (1, num_channels, *image_size) float32 image of noise. `model` is left as it is.

    `sign` is 1, or -1 for the negative of the same image. Raises whatever `model` raises on such an image.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):  # (the copy of TorchScript is a computed value with gradients)
        torch.manual_seed(0)
        image = sign * torch.randn(1, num_channels, *image_size)
        traced = copy_of(model).cpu().float().eval()
        recorder = Recorder(traced)
        output = recorder.run(image)
    live = reach_back([output] if output else [])
    ops = [op for op in recorder.ops if op in live]
    for op in ops:
        for source in op.inputs:
            source.users.append(op)
    return Trace(traced, recorder, ops, _heads(output) if output else [])


def last_feature_map(trace: Trace) -> Op:
    """The last (N, C, H, W) result before global pooling (of several heads: the last one's)."""
    ends = [op for head in trace.heads for op in ([head] if head.is_map else head.inputs)]
    before = reach_back(ends)
    return [op for op in trace.ops if op in before and len(op.shape) == 4][-1]


def _heads(output: Op) -> list[Op]:
    def is_head(op: Op) -> bool:
        return bool(op.global_pooling) or op.is_map or any(source.is_map for source in op.inputs)

    return [op for op in reach_back([output], lambda op: not is_head(op)) if is_head(op)]
