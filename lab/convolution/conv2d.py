"""Convolution by hand: windows by strides and one matrix product, with a backward pass of its own.

`conv2d` and `Conv2d` are torch's in signature, defaults, values, gradients of any order and errors. `./run.sh lab conv2d`
shows the difference on the homework's case and the cost on the shapes of the presets' networks; `--conv by-hand` trains with it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from lab.convolution.sums import Geometry, Pair, correlate, gradient_of_input, gradient_of_weight, in_parts, joined
from model import Net


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
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        y = joined([correlate(part, weight, geometry) for (part,) in in_parts(geometry, x.shape[1], x)])
        return y if bias is None else y.add_(bias[:, None, None])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias, _ = ctx.needs_input_grad
        return (
            _InputGradient.apply(grad, weight, ctx.geometry) if by_x else None,
            _WeightGradient.apply(grad, x, ctx.geometry) if by_weight else None,
            grad.sum((0, 2, 3)) if by_bias else None,
            None,
        )


class _InputGradient(Function):
    """dL/dx of (dL/dy, w); the derivation is in `_Convolution`."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(grad, weight)
        ctx.geometry = geometry
        channels = weight.shape[1] * geometry.groups
        return joined([gradient_of_input(part, weight, geometry) for (part,) in in_parts(geometry, channels, grad)])

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        grad, weight = ctx.saved_tensors
        return (
            _Convolution.apply(v, weight, None, ctx.geometry) if ctx.needs_input_grad[0] else None,
            _WeightGradient.apply(grad, v, ctx.geometry) if ctx.needs_input_grad[1] else None,
            None,
        )


class _WeightGradient(Function):
    """dL/dw of (dL/dy, x); the derivation is in `_Convolution`."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(grad, x)
        ctx.geometry = geometry
        parts = [gradient_of_weight(g, image, geometry) for g, image in in_parts(geometry, x.shape[1], grad, x)]
        return torch.stack(parts).sum(0)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        grad, x = ctx.saved_tensors
        return (
            _Convolution.apply(x, v, None, ctx.geometry) if ctx.needs_input_grad[0] else None,
            _InputGradient.apply(grad, v, ctx.geometry) if ctx.needs_input_grad[1] else None,
            None,
        )


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


def _autocast(tensor: Tensor, device: str) -> Tensor:
    """`tensor` in the dtype of autocast on that device, if it is one that autocast changes."""
    changes = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(torch.get_autocast_dtype(device)) if changes else tensor


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
        input, weight = _autocast(input, input.device.type), _autocast(weight, input.device.type)
        bias = None if bias is None else _autocast(bias, input.device.type)
    if padding == "same":
        _demand(stride == (1, 1), "padding='same' needs stride 1")
        zeros = _same_padding(weight.shape[2:], dilation)
    elif padding == "valid":
        zeros = (0, 0, 0, 0)
    elif isinstance(padding, str):
        raise RuntimeError(f"padding must be numbers, 'same' or 'valid', not '{padding}'")
    else:
        vertical, horizontal = padding
        zeros = (horizontal, horizontal, vertical, vertical)
    (height, width), (kernel_height, kernel_width) = input.shape[2:], weight.shape[2:]
    geometry = Geometry((height, width), (kernel_height, kernel_width), stride, zeros, dilation, groups)
    _demand_that_it_fits(input, weight, bias, geometry)
    return _Convolution.apply(input, weight, bias, geometry)


def _demand_that_it_fits(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> None:
    """RuntimeError unless shapes, dtypes and geometry are of one convolution."""
    groups, count = geometry.groups, len(weight)
    _demand(groups > 0, f"groups must be at least 1, not {groups}")
    _demand(min(geometry.stride) > 0, f"stride must be at least 1, not {geometry.stride}")
    _demand(min(geometry.dilation) > 0, f"dilation must be at least 1, not {geometry.dilation}")
    _demand(min(geometry.padding) >= 0, f"padding must be at least 0, not {geometry.padding}")
    _demand(min(geometry.kernel) > 0, f"the kernel must be at least 1x1, not {geometry.kernel}")
    _demand(min(geometry.size) > 0, f"the input must be at least 1x1, not {geometry.size}")
    _demand(count >= groups and count % groups == 0, f"weight has {count} output channels, no multiple of groups={groups}")
    _demand(
        input.shape[1] == weight.shape[1] * groups,
        f"input has {input.shape[1]} channels, weight and groups={groups} want {weight.shape[1] * groups}",
    )
    _demand(bias is None or bias.shape == (count,), f"bias must be of the shape ({count},), as weight has {count} output channels")
    _demand(all(t is None or t.dtype == input.dtype for t in (weight, bias)), "input, weight and bias must be of one dtype")
    _demand(
        min(geometry.output_size) > 0,
        f"the kernel {geometry.kernel} with dilation {geometry.dilation} is larger than the padded input {geometry.padded_size}",
    )


def _both(value: int | Sequence[int]) -> tuple[int, ...]:
    """One number for height and width, or the numbers that there are."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)


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
        kernel_size, stride, dilation = map(_both, (kernel_size, stride, dilation))
        if not isinstance(padding, str):
            padding = _both(padding)
        elif padding not in ("same", "valid"):
            raise ValueError(f"padding must be numbers, 'same' or 'valid', not '{padding}'")
        if groups <= 0 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups must be a positive divisor of in_channels={in_channels} and out_channels={out_channels}, not {groups}"
            )
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
        padding: Sequence[int] | str = self.padding
        if self.padding_mode != "zeros" and padding != "valid":
            around: Sequence[int]
            if isinstance(padding, str):
                around = _same_padding(self.kernel_size, self.dilation)
            else:
                around = [pixels for pixels in reversed(padding) for _ in range(2)]
            input, padding = F.pad(input, around, self.padding_mode), (0, 0)
        return conv2d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}, "
            f"padding_mode={self.padding_mode}"
        )


class ByHand(TorchFunctionMode):
    """While it is active, whatever calls torch's conv2d gets ours: ``with ByHand(): logits = network(images)``.

    So any network is computed by hand, its modules and their weights untouched. Backward needs no such mode.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (conv2d if func is F.conv2d else func)(*args, **(kwargs or {}))


class ByHandNet(Net):
    """`Net` with its convolutions by `conv2d`: weights and checkpoints of one fit the other.

    Not touched are the residual 1x1 layers, which `Net` itself computes as a matrix product.
    """

    def forward(self, x: Tensor) -> Tensor:
        with ByHand():
            return super().forward(x)


def demonstrate() -> float:
    """The largest difference to torch's convolution in the homework's case: input (1, 3, 10, 12), weight (2, 3, 4, 5), fp32."""
    generator = torch.Generator().manual_seed(0)
    inp, w = torch.randn(1, 3, 10, 12, generator=generator), torch.randn(2, 3, 4, 5, generator=generator)
    out = conv2d(inp, w)
    return (F.conv2d(inp, w) - out).abs().max().item()
