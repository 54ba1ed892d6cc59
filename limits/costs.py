"""What a network costs: its multiply-adds, the size of its numbers, and the time of one image on this machine."""

from __future__ import annotations

import math
import statistics
import time

import torch
from torch import nn

from limits.copying import copy_of
from limits.operations import MATRIX_PRODUCTS, Op, pair
from limits.tracing import Trace
from utils import uncompiled

KB = 1000  # bytes
LATENCY_RUNS, LATENCY_WARM_UP = 100, 10
LATENCY_SECONDS = 2.0  # after which no further run is begun
UNCOUNTED = frozenset(
    str.split(
        "bilinear conv1d conv3d conv_transpose1d conv_transpose2d conv_transpose3d conv_tbc dot einsum gru inner lstm "
        "multi_head_attention_forward outer scaled_dot_product_attention tensordot"
    )
)


def mult_adds(trace: Trace) -> tuple[int, list[Op]]:
    """Multiply-adds for one image, of convolutions and matrix products alone, and the operations that cannot be counted."""
    total = 0
    for op in trace.ops:
        if op.is_conv:
            inputs = op.options["in_channels"] // op.options["groups"]
            total += math.prod(op.shape) * inputs * math.prod(pair(op.options["kernel_size"]))
        elif op.name in MATRIX_PRODUCTS:
            total += math.prod(op.shape) * op.options["inner"]
    return total, [op for op in trace.ops if op.is_opaque or op.name in UNCOUNTED]


def size_kb(model: nn.Module, int8: bool = False) -> float:
    """Kilobytes (1,000 bytes) of parameters and buffers in float32; what modules share counts once.

    With `int8`, weights of two dimensions or more take one byte a number, and a float32 scale for each of their outputs.
    """
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()}
    total = 0
    for tensor in tensors.values():
        is_weight = isinstance(tensor, nn.Parameter) and tensor.ndim > 1
        total += tensor.numel() + 4 * len(tensor) if int8 and is_weight else 4 * tensor.numel()
    return total / KB


def latency_ms(model: nn.Module, num_channels: int, image_size: tuple[int, int]) -> float:
    """Milliseconds of a forward pass for one image in float32 on the CPU: the median of many, after a warm-up.

    `model` is left as it is. Raises whatever it raises on such an image.
    """
    copied = copy_of(model).cpu().float().eval()
    image = torch.zeros(1, num_channels, *image_size)
    times: list[float] = []
    with torch.inference_mode(), uncompiled():
        for _ in range(LATENCY_WARM_UP):
            copied(image)
        began = time.perf_counter()
        while len(times) < LATENCY_RUNS and (len(times) < LATENCY_WARM_UP or time.perf_counter() - began < LATENCY_SECONDS):
            started = time.perf_counter()
            copied(image)
            times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)
