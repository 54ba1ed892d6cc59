"""The receptive field of a network's last feature map, by arithmetic over its graph and by gradient.

Arithmetic: one unit of the map is followed back through every operation to the interval of rows (columns) that it can
see; where branches meet, the interval spans both. This is Araujo, Norris & Sim, "Computing Receptive Fields of
Convolutional Neural Networks" (Distill, 2019), for any graph. Normalisation counts as elementwise, as is usual.

Gradient: the pixels where the derivative of that unit is not zero, in a copy of the network that hides none of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from limits.operations import ADAPTIVE_POOLS, ELEMENTWISE, POOLS, SIGNATURES, TRANSPARENT, Op, function_name, pair
from limits.tracing import Trace, last_feature_map, reach_back, trace_model

SOFTMAXES = frozenset(("softmax", "log_softmax"))
CHANNEL_OPS = SOFTMAXES | frozenset(("cat", "chunk", "split", "mean", "amax", "sum"))
GRADIENT_SIZES = (64, 128, 256, 512)  # pixels; a unit that sees all of the last is taken to see the whole image


@dataclass(frozen=True)
class ReceptiveField:
    """Pixels on a side that a unit of the last feature map sees: the smaller of height and width, math.inf for all."""

    arithmetic: float | None
    """None where the network has an operation whose reach is not known."""
    gradient: float
    at_least: bool = False
    """Whether `gradient` is but a lower bound: no image was large enough for it, or there is code that cannot be looked into."""


def receptive_field(model: nn.Module, image_size: tuple[int, int] = (32, 32), num_channels: int = 3) -> ReceptiveField:
    """The receptive field of one central unit of the last feature map before global pooling, over all paths.

    `model` takes (N, num_channels, *image_size) float32 images and is left as it is, and so is the random state.
    """
    return receptive_field_of(trace_model(model, image_size, num_channels))


def receptive_field_of(trace: Trace) -> ReceptiveField:
    """The same from a trace that is not empty. The parameters of its model are changed."""
    unit = last_feature_map(trace)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _randomise(trace.model)
        gradient, at_least = _by_gradient(partial(trace.recorder.repeat, until=unit), trace.ops[0].shape)
    return ReceptiveField(_by_arithmetic(trace, unit), gradient, at_least or any(op.is_opaque for op in reach_back([unit])))


@dataclass(frozen=True)
class LayerField:
    """The receptive field after one convolution or pooling."""

    path: str
    """Dotted path of its module."""
    operation: str
    """As `3x3 convolution, dilation 2`."""
    size: tuple[int, int]
    """Height and width of its result."""
    pixels: float | None
    """On a side, over all paths to it; math.inf for all, None where an operation's reach is not known."""


def layer_fields(model: nn.Module, image_size: tuple[int, int] = (32, 32), num_channels: int = 3) -> list[LayerField]:
    """The receptive field layer by layer, by arithmetic, in the order of execution, up to the last feature map.

    `model` is left as it is. Raises whatever it raises on such an image.
    """
    trace = trace_model(model, image_size, num_channels)
    if not trace.heads:
        return []
    before = reach_back([last_feature_map(trace)])
    ops = [op for op in trace.ops if op in before and (op.is_conv or op.name in POOLS) and len(op.shape) == 4]
    return [LayerField(op.path, _describe(op), (op.shape[2], op.shape[3]), _by_arithmetic(trace, op)) for op in ops]


def _describe(op: Op) -> str:
    kernel = pair(op.options["kernel_size"])
    words = [f"{kernel[0]}x{kernel[1]} "]
    if op.is_conv:
        words[0] += ("depthwise " if op.is_depthwise else "") + "convolution"
    else:
        words[0] += "max-pooling" if op.name == "max_pool2d" else "average pooling"
    for name, usual in (("stride", 1 if op.is_conv else op.options["kernel_size"]), ("dilation", 1)):
        value = pair(op.options.get(name) or usual)
        if value != pair(usual):
            words.append(f"{name} {value[0] if value[0] == value[1] else f'{value[0]}x{value[1]}'}")
    return ", ".join(words)


class _UnknownReach(Exception):
    pass


def _by_arithmetic(trace: Trace, unit: Op) -> float | None:
    try:
        return min(extent(trace, unit, axis) for axis in (0, 1))
    except _UnknownReach:
        return None


def extent(trace: Trace, unit: Op, axis: int) -> float:
    """Rows (axis 0) or columns (axis 1) of the image that the central unit sees, on an image without borders."""
    centre = unit.shape[2 + axis] // 2
    seen: dict[Op, tuple[float, float]] = {unit: (centre, centre)}
    for op in reversed(trace.ops):
        if op not in seen:
            continue
        for source in op.inputs:
            low, high = _reach(op, source, axis, *seen[op])
            known = seen.get(source, (low, high))
            seen[source] = (min(low, known[0]), max(high, known[1]))
    low, high = seen[trace.ops[0]]
    return high - low + 1


def _reach(op: Op, source: Op, axis: int, low: float, high: float) -> tuple[float, float]:
    """The positions of `source` that positions `low`..`high` of `op` are computed from, along one axis."""
    options = op.options
    whole = (-math.inf, math.inf)
    if len(source.shape) != 4 or len(op.shape) != 4:
        # Between maps and vectors (the gate of squeeze-and-excitation): a vector has seen all of a map.
        if source.is_map and op.is_map:
            raise _UnknownReach(op.name)
        return whole if source.is_map or math.isinf(low) else (0, 0)
    size_in, size_out = source.shape[2 + axis], op.shape[2 + axis]
    if math.isinf(low):
        return whole
    if op.name == "conv2d" or op.name in POOLS:
        kernel = pair(options["kernel_size"])[axis]
        stride = pair(options.get("stride") or kernel)[axis]
        dilation = pair(options.get("dilation", 1))[axis]
        padding = options.get("padding", 0)
        if isinstance(padding, str):
            padding = dilation * (kernel - 1) // 2 if padding == "same" else 0
        start = low * stride - pair(padding)[axis]
        return start, (high - low) * stride + start + dilation * (kernel - 1)
    if op.name in ADAPTIVE_POOLS:
        return whole if size_out == 1 else (low * size_in // size_out, -(-(high + 1) * size_in // size_out) - 1)
    if op.global_pooling:
        return whole
    if op.name == "pixel_unshuffle":
        factor = options["downscale_factor"]
        return low * factor, high * factor + factor - 1
    if op.name == "pixel_shuffle":
        return low // options["upscale_factor"], high // options["upscale_factor"]
    if op.name == "interpolate":
        return _resampled(options, Fraction(size_in, size_out), low, high)
    if op.name == "pad":
        before = [*options["padding"], 0, 0][2 - 2 * axis]  # given as left, right, top, bottom, ...
        return low - before, high - before
    if op.name == "getitem":
        return _sliced(options["index"], axis, low, high)
    across_channels = options.get("dim") in (1, -3, [1], (1,)) and op.name in CHANNEL_OPS
    if across_channels or op.name in ELEMENTWISE:
        if size_in == 1 < size_out:
            return 0, 0  # broadcast
        if size_in == size_out:
            return low, high
    raise _UnknownReach(op.name)


def _resampled(options: dict[str, Any], ratio: Fraction, low: float, high: float) -> tuple[float, float]:
    mode = options.get("mode") or "nearest"
    if mode == "nearest":
        return math.floor(low * ratio), math.floor(high * ratio)
    if mode == "bilinear" and not options.get("align_corners"):
        half = Fraction(1, 2)
        return math.floor((low + half) * ratio - half), math.ceil((high + half) * ratio - half)
    raise _UnknownReach(mode)


def _sliced(index: Any, axis: int, low: float, high: float) -> tuple[float, float]:
    index = index if isinstance(index, tuple) else (index,)
    if isinstance(index[0], int) or not all(isinstance(part, slice) for part in index):
        if len(index) == 1 and isinstance(index[0], int):
            return low, high  # one of the tensors that chunk or split gave
        raise _UnknownReach("getitem")
    part = index[2 + axis] if len(index) > 2 + axis else slice(None)
    start, step = part.start or 0, part.step or 1
    if start < 0 or step < 0:
        raise _UnknownReach("getitem")
    return low * step + start, high * step + start


class _Transparent(TorchFunctionMode):
    """Lets every gradient through: activations become the identity, and a maximum the mean of the same pixels."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function_name(func)
        options = dict(zip(SIGNATURES.get(name, ["input"]), args, strict=False)) | (kwargs or {})
        if name in TRANSPARENT or name in SOFTMAXES:  # (these saturate)
            return options["input"]
        if not options.get("return_indices"):
            if name == "adaptive_max_pool2d":
                return F.adaptive_avg_pool2d(options["input"], options["output_size"])
            if name == "max_pool2d" and pair(options.get("dilation", 1)) == (1, 1):
                return F.avg_pool2d(
                    options["input"],
                    options["kernel_size"],
                    options.get("stride") or None,
                    options.get("padding", 0),
                    options.get("ceil_mode", False),
                )
        return func(*args, **(kwargs or {}))


def _randomise(model: nn.Module) -> None:
    """Gives `model` positive parameters: gradients neither vanish (residual layers that start at zero) nor cancel."""
    for parameter in model.parameters():
        parameter.requires_grad_(False).uniform_(0.5, 1.5)
        if parameter.dim() > 1:  # keep the scale from layer to layer
            parameter.div_(parameter[0].numel() / math.sqrt(math.prod(parameter.shape[2:])))


def _by_gradient(feature_map: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> tuple[float, bool]:
    """Pixels on a side with a gradient, in the first image that has room around them, and whether there was none with room."""
    extent = 0
    num_channels, *image_size = shape[1:]
    for size in (tuple(image_size), *((size, size) for size in GRADIENT_SIZES if size > max(image_size))):
        images = torch.rand(1, num_channels, *size, requires_grad=True)
        try:
            with _Transparent():
                features = feature_map(images.clone())
        except RuntimeError:  # the network is for one image size
            return extent, True
        unit = features[:, :, features.shape[2] // 2, features.shape[3] // 2].sum()
        (gradient,) = torch.autograd.grad(unit, images) if unit.requires_grad else (torch.zeros_like(images),)
        seen = gradient[0].ne(0).any(0).nonzero()
        if not len(seen):
            return 0, False
        low, high = seen.amin(0), seen.amax(0)
        extent = int((high - low).min()) + 1
        if low.min() > 0 and all(end < length - 1 for end, length in zip(high.tolist(), size, strict=True)):
            return extent, False
    return math.inf, False
