"""The sums of the convolution by hand and of its gradients, on plain tensors; conv2d.py derives them and puts them together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice, product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]

_CACHE_BYTES = 2**24  # of the last-level cache, for the windows of a part of a batch


class Geometry(NamedTuple):
    """Which pixels of the input each pixel of the output sees."""

    size: Pair  # of the input
    kernel: Pair
    stride: Pair
    padding: tuple[int, int, int, int]  # zeros on the left, on the right, above and below: the order of F.pad
    dilation: Pair
    groups: int

    @property
    def padded_size(self) -> Pair:
        left, right, top, bottom = self.padding
        return self.size[0] + top + bottom, self.size[1] + left + right

    @property
    def output_size(self) -> Pair:
        height, width = (
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, dilation in zip(self.padded_size, self.kernel, self.stride, self.dilation, strict=True)
        )
        return height, width


def _windows(padded: Tensor, geometry: Geometry) -> Tensor:
    """What each output pixel sees of `padded` (N, C, H, W): a view (N, H_out, W_out, kernel height, kernel width, C)."""
    along_n, along_c, *along = padded.stride()
    between_windows = [stride * step for stride, step in zip(geometry.stride, along, strict=True)]
    within_a_window = [dilation * step for dilation, step in zip(geometry.dilation, along, strict=True)]
    return padded.as_strided(
        (len(padded), *geometry.output_size, *geometry.kernel, padded.shape[1]),
        (along_n, *between_windows, *within_a_window, along_c),
    )


def _padded_windows(x: Tensor, geometry: Geometry) -> Tensor:
    # Channels last in memory, so that a copy of the windows moves runs of neighbours.
    x = x.contiguous(memory_format=torch.channels_last)
    return _windows(F.pad(x, geometry.padding) if any(geometry.padding) else x, geometry)


def _split(x: Tensor, dim: int, groups: int) -> Tensor:
    return x.unflatten(dim, (groups, x.shape[dim] // groups))


def _window_rows(x: Tensor, geometry: Geometry) -> Tensor:
    """(N, C, H, W) -> the windows as rows: (groups, N * H_out * W_out, kernel height * kernel width * C / groups)."""
    windows = _split(_padded_windows(x, geometry), 5, geometry.groups)
    return windows.permute(5, 0, 1, 2, 3, 4, 6).flatten(4).flatten(1, 3)


def _pixel_rows(y: Tensor, groups: int) -> Tensor:
    """(N, C, H, W) -> (groups, N * H * W, C / groups)."""
    return _split(y.permute(0, 2, 3, 1), 3, groups).permute(3, 0, 1, 2, 4).flatten(1, 3)


def _from_pixel_rows(rows: Tensor, size: Pair) -> Tensor:
    """(groups, N * H * W, C / groups) -> (N, H, W, C)."""
    groups, pixels, _ = rows.shape
    return rows.unflatten(1, (pixels // math.prod(size), *size)).permute(1, 2, 3, 0, 4).flatten(3)


def _taps(windows: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Each position in the kernel and the pixels (N, H_out, W_out, C) there, a view."""
    for i, j in product(range(windows.shape[3]), range(windows.shape[4])):
        yield i, j, windows[:, :, :, i, j]


def _depthwise_filters(weight: Tensor, width: int) -> Tensor:
    """(C, 1, kernel height, kernel width) -> (kernel height, kernel width, `width`, C), to multiply whole rows of pixels with."""
    filters = weight[:, 0].permute(1, 2, 0)[:, :, None].to(_wide(weight.dtype))
    return filters.expand(-1, -1, width, -1).contiguous()  # a copy for each pixel of a row: longer runs without a broadcast


def _is_depthwise(channels: int, weight_shape: Sequence[int], groups: int) -> bool:
    return groups == channels == weight_shape[0] > 1


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to add up many numbers of `dtype` in."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def in_parts(geometry: Geometry, channels: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors in parts of so many images that their windows, if copied, fit into the cache."""
    window_bytes = tensors[0].element_size() * channels * math.prod((*geometry.output_size, *geometry.kernel))
    images = max(1, _CACHE_BYTES // max(1, window_bytes))
    return zip(*(tensor.split(images) for tensor in tensors), strict=True)


def joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _in_the_format_of(result: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`result`, channels last in memory where a or b is and contiguous otherwise, as torch's convolutions return it."""
    last = any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in (a, b))
    return result.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def correlate(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """y of the derivation in conv2d.py."""
    groups = geometry.groups
    if _is_depthwise(x.shape[1], weight.shape, groups):  # a product with one column a group is slow
        windows = _padded_windows(x.to(_wide(x.dtype)), geometry)
        filters = _depthwise_filters(weight, geometry.output_size[1])
        y = windows[:, :, :, 0, 0] * filters[0, 0]
        for i, j, pixels in islice(_taps(windows), 1, None):
            y.addcmul_(pixels, filters[i, j])
        y = y.to(x.dtype)
    else:
        columns = _split(weight, 0, groups).permute(0, 3, 4, 2, 1).flatten(1, 3)
        y = _from_pixel_rows(_window_rows(x, geometry) @ columns, geometry.output_size)
    return _in_the_format_of(y.permute(0, 3, 1, 2), x, weight)


def gradient_of_input(grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """dL/dx of the derivation in conv2d.py: what each tap of the kernel gives is added to the pixels the tap has seen."""
    groups, (height, width) = geometry.groups, geometry.padded_size
    channels = weight.shape[1] * groups
    if geometry.stride == (1, 1) and grad.dtype != _wide(grad.dtype):  # the taps' sums would have to be widened and narrowed again
        return _correlate_turned(grad, weight, geometry)
    result = grad.new_zeros(len(grad), height, width, channels, dtype=_wide(grad.dtype)).permute(0, 3, 1, 2)
    windows = _windows(result, geometry)
    if _is_depthwise(channels, weight.shape, groups):
        grad_pixels = grad.to(result.dtype).permute(0, 2, 3, 1).contiguous()
        filters = _depthwise_filters(weight, geometry.output_size[1])
        for i, j, pixels in _taps(windows):
            pixels.addcmul_(grad_pixels, filters[i, j])
    else:
        rows, filters = _pixel_rows(grad, groups), _split(weight, 0, groups)
        for i, j, pixels in _taps(windows):
            pixels += _from_pixel_rows(rows @ filters[..., i, j], geometry.output_size)
    left, _, top, _ = geometry.padding
    result = result[:, :, top : top + geometry.size[0], left : left + geometry.size[1]]
    return _in_the_format_of(result.to(grad.dtype), grad, weight)


def _correlate_turned(grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """dL/dx for stride 1 as one convolution: the kernel turned by 180 degrees, its input and output channels exchanged."""
    turned = _split(weight, 0, geometry.groups).transpose(1, 2).flatten(0, 1).flip(2, 3)
    left, right, top, bottom = geometry.padding  # beyond the kernel's reach it becomes negative, and pixels are cut off
    height, width = (d * (k - 1) for d, k in zip(geometry.dilation, geometry.kernel, strict=True))
    around = (width - left, width - right, height - top, height - bottom)
    result = correlate(grad, turned, geometry._replace(size=geometry.output_size, padding=around))
    return _in_the_format_of(result, grad, weight)


def gradient_of_weight(grad: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    """dL/dw of the derivation in conv2d.py."""
    groups, kernel = geometry.groups, geometry.kernel
    if _is_depthwise(x.shape[1], grad.shape[1:], groups):
        windows = _padded_windows(x.to(_wide(x.dtype)), geometry)
        grad_pixels = grad.to(windows.dtype).permute(0, 2, 3, 1).contiguous()
        products = torch.empty_like(grad_pixels)  # one for all: memory that is new every time costs more than the products
        taps = [torch.mul(pixels, grad_pixels, out=products).sum((0, 1, 2)) for _, _, pixels in _taps(windows)]
        return torch.stack(taps, 1).view(x.shape[1], 1, *kernel).to(grad.dtype)
    result = _pixel_rows(grad, groups).mT @ _window_rows(x, geometry)  # the other way round bf16 takes six times as long
    return result.unflatten(2, (*kernel, x.shape[1] // groups)).permute(0, 1, 4, 2, 3).flatten(0, 1)
