"""Convolution by hand: windows by strides and one matrix product, with a backward pass of its own.

`conv2d` and `Conv2d` are torch's in signature, defaults, values, gradients of any order and errors. `python main.py lab conv2d`
shows the difference on the homework's case and the cost on the shapes of the presets' networks.
"""
from __future__ import annotations

import math
import operator
import time
from collections.abc import Iterator, Sequence
from itertools import islice, product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

Pair = tuple[int, int]

_CACHE_BYTES = 2**24  # of the last-level cache, for the windows of a part of a batch


class _Geometry(NamedTuple):
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
        height, width = ((size - dilation * (kernel - 1) - 1) // stride + 1 for size, kernel, stride, dilation
                         in zip(self.padded_size, self.kernel, self.stride, self.dilation, strict=True))
        return height, width


def _windows(padded: Tensor, geometry: _Geometry) -> Tensor:
    """What each output pixel sees of `padded` (N, C, H, W): a view (N, H_out, W_out, kernel height, kernel width, C)."""
    along_n, along_c, *along = padded.stride()
    between_windows = [stride * step for stride, step in zip(geometry.stride, along, strict=True)]
    within_a_window = [dilation * step for dilation, step in zip(geometry.dilation, along, strict=True)]
    return padded.as_strided((len(padded), *geometry.output_size, *geometry.kernel, padded.shape[1]),
                             (along_n, *between_windows, *within_a_window, along_c))


def _padded_windows(x: Tensor, geometry: _Geometry) -> Tensor:
    # Channels last in memory, so that a copy of the windows moves runs of neighbours.
    x = x.contiguous(memory_format=torch.channels_last)
    return _windows(F.pad(x, geometry.padding) if any(geometry.padding) else x, geometry)


def _split(x: Tensor, dim: int, groups: int) -> Tensor:
    return x.unflatten(dim, (groups, x.shape[dim] // groups))


def _window_rows(x: Tensor, geometry: _Geometry) -> Tensor:
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


def _in_parts(geometry: _Geometry, channels: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors in parts of so many images that their windows, if copied, fit into the cache."""
    window_bytes = tensors[0].element_size() * channels * math.prod((*geometry.output_size, *geometry.kernel))
    images = max(1, _CACHE_BYTES // max(1, window_bytes))
    return zip(*(tensor.split(images) for tensor in tensors), strict=True)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _in_the_format_of(result: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`result`, channels last in memory where a or b is and contiguous otherwise, as torch's convolutions return it."""
    last = any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in (a, b))
    return result.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _correlate(x: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    """y of the derivation in `_Convolution`."""
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


def _gradient_of_input(grad: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    """dL/dx of the derivation in `_Convolution`: what each tap of the kernel gives is added to the pixels the tap has seen."""
    groups, (height, width) = geometry.groups, geometry.padded_size
    channels = weight.shape[1] * groups
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
    result = result[:, :, top:top + geometry.size[0], left:left + geometry.size[1]]
    return _in_the_format_of(result.to(grad.dtype), grad, weight)


def _gradient_of_weight(grad: Tensor, x: Tensor, geometry: _Geometry) -> Tensor:
    """dL/dw of the derivation in `_Convolution`."""
    groups, kernel = geometry.groups, geometry.kernel
    if _is_depthwise(x.shape[1], grad.shape[1:], groups):
        windows = _padded_windows(x.to(_wide(x.dtype)), geometry)
        grad_pixels = grad.to(windows.dtype).permute(0, 2, 3, 1).contiguous()
        products = torch.empty_like(grad_pixels)  # one for all: memory that is new every time costs more than the products
        taps = [torch.mul(pixels, grad_pixels, out=products).sum((0, 1, 2)) for _, _, pixels in _taps(windows)]
        return torch.stack(taps, 1).view(x.shape[1], 1, *kernel).to(grad.dtype)
    result = _window_rows(x, geometry).mT @ _pixel_rows(grad, groups)
    return result.unflatten(1, (*kernel, x.shape[1] // groups)).permute(0, 4, 3, 1, 2).flatten(0, 1)


class _Convolution(Function):
    """y = x * w + b with a backward pass that can be differentiated again.

    With x already padded with zeros, stride s, dilation d, output channel o and the input channels c of its group::

        y[n,o,p,q] = b[o] + sum over c,i,j of w[o,c,i,j] x[n, c, s p + d i, s q + d j]

    A loss L has the gradient G = dL/dy. By the chain rule dL/dx[n,c,u,v] = sum of G[n,o,p,q] dy[n,o,p,q]/dx[n,c,u,v]; the
    derivative is w[o,c,i,j] where u = s p + d i and v = s q + d j, and 0 elsewhere. Likewise for w, where it is the pixel of x
    that w[o,c,i,j] meets, and for b, where it is 1::

        dL/dx[n,c,u,v] = sum over o,i,j and all p,q with s p + d i = u, s q + d j = v of w[o,c,i,j] G[n,o,p,q]
        dL/dw[o,c,i,j] = sum over n,p,q of G[n,o,p,q] x[n, c, s p + d i, s q + d j]
        dL/db[o]       = sum over n,p,q of G[n,o,p,q]

    The gradient at the zeros of the padding is dropped: they are constants. So y, dL/dx and dL/dw are the derivatives by G, by
    x and by w of one trilinear form,

        T(x, w, G) = sum over n,o,p,q,c,i,j of w[o,c,i,j] x[n, c, s p + d i, s q + d j] G[n,o,p,q],

    and each of the three is bilinear in the two others. The derivative of any of them contracted with a V in its own place is
    therefore one of the other two with V put there: the backward of dL/dx(w, G) is y(V, w) for G and dL/dw(V, G) for w, the one
    of dL/dw(x, G) is y(x, V) for G and dL/dx(V, G) for x. The three are Functions that call each other in their backward, which
    makes them differentiable any number of times.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        y = _joined([_correlate(part, weight, geometry) for part, in _in_parts(geometry, x.shape[1], x)])
        return y if bias is None else y.add_(bias[:, None, None])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias, _ = ctx.needs_input_grad
        return (_InputGradient.apply(grad, weight, ctx.geometry) if by_x else None,
                _WeightGradient.apply(grad, x, ctx.geometry) if by_weight else None,
                grad.sum((0, 2, 3)) if by_bias else None,
                None)


class _InputGradient(Function):
    """dL/dx of (dL/dy, w); the derivation is in `_Convolution`."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(grad, weight)
        ctx.geometry = geometry
        channels = weight.shape[1] * geometry.groups
        return _joined([_gradient_of_input(part, weight, geometry) for part, in _in_parts(geometry, channels, grad)])

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        grad, weight = ctx.saved_tensors
        return (_Convolution.apply(v, weight, None, ctx.geometry) if ctx.needs_input_grad[0] else None,
                _WeightGradient.apply(grad, v, ctx.geometry) if ctx.needs_input_grad[1] else None,
                None)


class _WeightGradient(Function):
    """dL/dw of (dL/dy, x); the derivation is in `_Convolution`."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(grad, x)
        ctx.geometry = geometry
        parts = [_gradient_of_weight(*part, geometry) for part in _in_parts(geometry, x.shape[1], grad, x)]
        return torch.stack(parts).sum(0)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        grad, x = ctx.saved_tensors
        return (_Convolution.apply(x, v, None, ctx.geometry) if ctx.needs_input_grad[0] else None,
                _InputGradient.apply(grad, v, ctx.geometry) if ctx.needs_input_grad[1] else None,
                None)


def _pair(value: int | Sequence[int], name: str) -> Pair:
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    if any(isinstance(number, bool) for number in values):
        raise TypeError(f"{name} must be integers, not {value}")
    values = tuple(map(operator.index, values))
    if len(values) not in (1, 2):
        raise RuntimeError(f"{name} must be one integer or two, not {value}")
    return values[0], values[-1]


def _same_padding(kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, int, int, int]:
    """Zeros on the left, on the right, above and below that keep height and width; an odd one goes to the right or below."""
    (height, width) = (d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
    return width // 2, width - width // 2, height // 2, height - height // 2


def _demand(ok: bool, message: str) -> None:
    if not ok:
        raise RuntimeError(message)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d` (a cross-correlation) without it.

    Args:
        input: (N, C_in, H, W) or (C_in, H, W), any real dtype; N may be 0.
        weight: (C_out, C_in / groups, kernel height, kernel width), of the input's dtype.
        bias: (C_out,) or None.
        stride, dilation: pixels, one number or (vertical, horizontal), at least 1.
        padding: zeros on either side, one number or (vertical, horizontal), at least 0; 'valid' for none, 'same' for as many
            as keep height and width, with stride 1 only.
        groups: the channels are split into as many, each output channel sees the input channels of its own.

    Returns (N, C_out, H_out, W_out) or (C_out, H_out, W_out) with
    H_out = floor((H + padding above and below - dilation * (kernel - 1) - 1) / stride) + 1.

    Under autocast it computes in autocast's dtype. Raises TypeError and RuntimeError where torch's does.
    """
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if not isinstance(tensor, Tensor) and not (tensor is bias is None):
            raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
    if isinstance(groups, bool):
        raise TypeError("groups must be an integer, not a bool")
    groups, stride, dilation = operator.index(groups), _pair(stride, "stride"), _pair(dilation, "dilation")
    if not isinstance(padding, str):
        padding = _pair(padding, "padding")
    _demand(input.dim() in (3, 4), f"input must be (N, C, H, W) or (C, H, W), not {tuple(input.shape)}")
    _demand(weight.dim() == 4, f"weight must be (C_out, C_in / groups, kernel height, kernel width), not {tuple(weight.shape)}")
    if input.dim() == 3:
        return conv2d(input[None], weight, bias, stride, padding, dilation, groups)[0]
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        input, weight, bias = (t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t
                               for t in (input, weight, bias))
    if padding == "same":
        _demand(stride == (1, 1), "padding='same' needs stride 1")
        padding = _same_padding(weight.shape[2:], dilation)
    elif padding == "valid":
        padding = (0, 0, 0, 0)
    else:
        _demand(not isinstance(padding, str), f"padding must be numbers, 'same' or 'valid', not '{padding}'")
        padding = (padding[1], padding[1], padding[0], padding[0])
    geometry = _Geometry(tuple(input.shape[2:]), tuple(weight.shape[2:]), stride, padding, dilation, groups)
    _demand_that_it_fits(input, weight, bias, geometry)
    return _Convolution.apply(input, weight, bias, geometry)


def _demand_that_it_fits(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> None:
    """RuntimeError unless shapes, dtypes and geometry are of one convolution."""
    groups, count = geometry.groups, len(weight)
    _demand(groups > 0, f"groups must be at least 1, not {groups}")
    _demand(min(geometry.stride) > 0, f"stride must be at least 1, not {geometry.stride}")
    _demand(min(geometry.dilation) > 0, f"dilation must be at least 1, not {geometry.dilation}")
    _demand(min(geometry.padding) >= 0, f"padding must be at least 0, not {geometry.padding}")
    _demand(min(geometry.kernel) > 0, f"the kernel must be at least 1x1, not {geometry.kernel}")
    _demand(min(geometry.size) > 0, f"the input must be at least 1x1, not {geometry.size}")
    _demand(count >= groups and count % groups == 0, f"weight has {count} output channels, no multiple of groups={groups}")
    _demand(input.shape[1] == weight.shape[1] * groups,
            f"input has {input.shape[1]} channels, weight and groups={groups} want {weight.shape[1] * groups}")
    _demand(bias is None or bias.shape == (count,), f"bias must be of the shape ({count},), as weight has {count} output channels")
    _demand(all(t is None or t.dtype == input.dtype for t in (weight, bias)), "input, weight and bias must be of one dtype")
    _demand(min(geometry.output_size) > 0, f"the kernel {geometry.kernel} with dilation {geometry.dilation} is larger than the "
                                           f"padded input {geometry.padded_size}")


class Conv2d(nn.Module):
    """`torch.nn.Conv2d` on `conv2d`: the same arguments, attributes, initial weights for a seed, state dict and errors.

    Args:
        in_channels, out_channels: multiples of groups.
        kernel_size, stride, padding, dilation, groups: as of `conv2d`.
        bias: whether there is one.
        padding_mode: what stands in the padding: zeros, or the image mirrored at its edge pixels (reflect), its edge pixels
            (replicate) or the image from its other side (circular).
        device, dtype: of the parameters.

    Raises ValueError for a groups, padding or padding_mode that cannot be; in `forward` what `conv2d` and F.pad raise.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        kernel_size, stride, dilation = (tuple(value) if isinstance(value, Sequence) and not isinstance(value, str)
                                         else (value, value) for value in (kernel_size, stride, dilation))
        if not isinstance(padding, str):
            padding = tuple(padding) if isinstance(padding, Sequence) else (padding, padding)
        elif padding not in ("same", "valid"):
            raise ValueError(f"padding must be numbers, 'same' or 'valid', not '{padding}'")
        if groups <= 0 or in_channels % groups or out_channels % groups:
            raise ValueError(f"groups must be a positive divisor of in_channels={in_channels} and out_channels={out_channels}, "
                             f"not {groups}")
        if padding == "same" and any(step != 1 for step in stride):
            raise ValueError(f"padding='same' needs stride 1, not {stride}")
        if padding_mode not in ("zeros", "reflect", "replicate", "circular"):
            raise ValueError(f"padding_mode must be zeros, reflect, replicate or circular, not '{padding_mode}'")
        self.in_channels, self.out_channels, self.kernel_size, self.stride = in_channels, out_channels, kernel_size, stride
        self.padding, self.dilation, self.groups, self.padding_mode = padding, dilation, groups, padding_mode
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *kernel_size, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias uniformly from +-1 / sqrt(inputs of an output pixel), as torch does (He et al. 2015, a=sqrt(5))."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        fan_in = self.weight[0].numel() if len(self.weight) else 0
        if self.bias is not None and fan_in:
            nn.init.uniform_(self.bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, H, W) or (in_channels, H, W) -> the same with out_channels and the size `conv2d` states."""
        padding = self.padding
        if self.padding_mode != "zeros" and padding != "valid":
            around = (_same_padding(self.kernel_size, self.dilation) if padding == "same"
                      else [pixels for pixels in reversed(padding) for _ in range(2)])
            input, padding = F.pad(input, around, self.padding_mode), 0
        return conv2d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        return (f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
                f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}, "
                f"padding_mode={self.padding_mode}")


def demonstrate() -> float:
    """The largest difference to torch's convolution in the homework's case: input (1, 3, 10, 12), weight (2, 3, 4, 5), fp32."""
    generator = torch.Generator().manual_seed(0)
    inp, w = torch.randn(1, 3, 10, 12, generator=generator), torch.randn(2, 3, 4, 5, generator=generator)
    out = conv2d(inp, w)
    return (F.conv2d(inp, w) - out).abs().max().item()


class Cost(NamedTuple):
    """What forward and backward of one convolution of the presets' networks take, in milliseconds."""

    shape: str
    presets: str  # whose networks have it
    torch_ms: float
    own_ms: float

    @property
    def ratio(self) -> float:
        return self.own_ms / self.torch_ms


def _convolutions_of_the_presets() -> dict[tuple, list[str]]:
    """(in, out, kernel, stride, padding, dilation, groups, (H, W) of the input) -> presets, for 32x32 RGB images."""
    from config import PRESETS
    from model import Net

    found: dict[tuple, list[str]] = {}
    for name, preset in PRESETS.items():
        def note(module: nn.Conv2d, inputs: tuple[Tensor], name: str = name) -> None:
            key = (module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding, module.dilation,
                   module.groups, tuple(inputs[0].shape[2:]))
            if name not in found.setdefault(key, []):
                found[key].append(name)

        net = Net(3, 10, **preset.net)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(note)
        with torch.no_grad():
            net.eval()(torch.zeros(1, 3, 32, 32))
    return found


def costs(batch_size: int = 128, repeats: int = 5) -> list[Cost]:
    """The cost of each convolution in the presets' networks against torch's, fp32, channels last in memory, as in training.

    Forward and backward to weight and input, the stem's to the weight alone: images need no gradient. Each time is the least of
    `repeats`, torch's and ours in turn, after a run that is not counted.
    """
    def run(convolve: Any, x: Tensor, weight: Tensor, *arguments: Any) -> float:
        start = time.perf_counter()
        y = convolve(x, weight, None, *arguments)
        torch.autograd.grad(y, [t for t in (x, weight) if t.requires_grad], y.detach())
        return 1000 * (time.perf_counter() - start)

    rows = []
    for (c_in, c_out, kernel, stride, padding, dilation, groups, size), presets in _convolutions_of_the_presets().items():
        x, weight = (torch.randn(*shape).contiguous(memory_format=torch.channels_last).requires_grad_(needs_grad)
                     for shape, needs_grad in (((batch_size, c_in, *size), c_in != 3),
                                               ((c_out, c_in // groups, *kernel), True)))
        times = [[run(convolve, x, weight, stride, padding, dilation, groups) for convolve in (F.conv2d, conv2d)]
                 for _ in range(1 + repeats)]
        shape = f"{c_in}->{c_out} {kernel[0]}x{kernel[1]} at {size[0]}x{size[1]}"
        shape += "".join(f", {name} {value}" for name, value in (("stride", stride[0]), ("padding", padding[0]),
                                                                  ("dilation", dilation[0]), ("groups", groups)) if value > 1)
        rows.append(Cost(shape, ", ".join(presets), *map(min, zip(*times[1:], strict=True))))
    return rows


def show(repeats: int) -> None:
    """Print both, the costs by the least of `repeats` runs."""
    print(f"largest difference to F.conv2d, input 1x3x10x12, weight 2x3x4x5: {demonstrate():.1e}\n")
    print(f"{'forward and backward, batch of 128':<44}{'torch':>9}{'own':>9}{'own/torch':>11}")
    for row in costs(repeats=repeats):
        print(f"{row.shape:<44}{row.torch_ms:>6.2f} ms{row.own_ms:>6.2f} ms{row.ratio:>11.1f}")
