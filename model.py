"""The network: four blocks of three convolution layers (C1..C4), global average pooling and a linear layer (O).

`Net` is the network of every preset, `Model` the course's interface to it. Stands alone: needs torch and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 4  # channels that GroupNorm normalises together
BLOCKS = ("C1", "C2", "C3", "C4", "O")
NORM_MOMENTUM = 0.3  # of the running statistics of BatchNorm; short trainings need a large one
TINY = 16  # pixels of a map, at most, on which DilatedConv2d is a matrix product


class DilatedDepthwiseConv2d(nn.Conv2d):  # torchinfo counts the mult-adds of what has Conv in its name
    """A dilated depthwise convolution, computed as an undilated one on the phases of its input (space-to-batch).

    Equal to ``nn.Conv2d(channels, channels, kernel_size, padding=dilation * (kernel_size // 2), dilation=dilation,
    groups=channels, bias=False)`` in values and gradients: pixels that a dilated kernel combines lie `dilation` apart, so the
    dilation**2 interleaved sub-images are independent and each sees an ordinary convolution (Yu & Koltun 2016 for
    dilation; the space-to-batch form as in DeepLab, Chen et al. 2017). CPU backends have fast kernels for the
    ordinary form only: the backward pass of the dilated one is about 20 times slower.

    Shape: (N, channels, H, W) -> (N, channels, H, W), any float dtype.
    """

    def __init__(self, channels: int, kernel_size: int, dilation: int) -> None:
        super().__init__(
            channels, channels, kernel_size, padding=dilation * (kernel_size // 2), dilation=dilation, groups=channels, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        d = self.dilation[0]
        n, c, h, w = x.shape
        # Zeros below and on the right make the size divisible; they stand where the convolution's own padding would.
        x = F.pad(x, (0, -w % d, 0, -h % d))
        rows, columns = x.shape[2] // d, x.shape[3] // d
        phases = x.permute(0, 2, 3, 1).reshape(n, rows, d, columns, d, c).permute(2, 4, 0, 5, 1, 3)
        phases = phases.reshape(d * d * n, c, rows, columns).contiguous(memory_format=torch.channels_last)
        phases = F.conv2d(phases, self.weight, padding=self.kernel_size[0] // 2, groups=c)
        x = phases.view(d, d, n, c, rows, columns).permute(2, 4, 0, 5, 1, 3).reshape(n, rows * d, columns * d, c)
        return x.permute(0, 3, 1, 2)[:, :, :h, :w]


class DilatedConv2d(nn.Conv2d):
    """A dilated convolution, which trains on tiny maps as one matrix product over the pixels that each output sees (im2col).

    There the backward pass of the fp32 kernel on CPUs takes three times as long as that of an undilated one (docs/sprint.md).

    Shape: (N, in_channels, H, W) -> (N, out_channels, H, W), any float dtype; odd square kernels, no bias, stride 1.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int) -> None:
        padding = dilation * (kernel_size // 2)
        super().__init__(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # which compiles no table of pixels
            return self._conv_forward(x, self.weight, self.bias)
        n, _, h, w = x.shape
        if not self.training or h * w > TINY or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return self._conv_forward(x, self.weight, self.bias)
        pixels = F.pad(x.permute(0, 2, 3, 1).flatten(1, 2), (0, 0, 1, 0))  # pixel 0 is the border
        seen = pixels.index_select(1, _pixels_seen(h, w, self.kernel_size[0], self.dilation[0]))
        y = F.linear(seen.view(n * h * w, -1), self.weight.permute(0, 2, 3, 1).flatten(1))
        return y.view(n, h, w, -1).permute(0, 3, 1, 2)


@lru_cache(maxsize=8)
def _pixels_seen(height: int, width: int, kernel_size: int, dilation: int) -> Tensor:
    """For each pixel of the output, then each tap of the kernel, the number of the input's pixel from 1, or 0 for the border."""
    numbers = torch.arange(1.0, height * width + 1).view(1, 1, height, width)
    return F.unfold(numbers, kernel_size, dilation, padding=dilation * (kernel_size // 2))[0].T.flatten().long()


class ResidualPointwiseConv2d(nn.Conv2d):
    """A residual 1x1 convolution without BatchNorm: relu(x + scale * conv(x)), the identity at first (its weights are zero).

    Convolution and sum are one matrix product over all pixels, with I + scale * weight: no copy of the input, and no second
    gradient to add to it. `scale` keeps Adam's first steps small, which is what BatchNorm would else be needed for (SkipInit,
    De & Smith 2020, has the like as a learned factor).

    Shape: (N, channels, H, W) -> (N, channels, H, W), not below zero. The input must not be either, or it is cut off.
    """

    def __init__(self, channels: int, scale: float = 0.1) -> None:
        super().__init__(channels, channels, 1, bias=False)
        self.scale = scale
        nn.init.zeros_(self.weight)

    def matrix(self) -> Tensor:
        """I + scale * weight, (channels, channels): what the pixels are multiplied by before the ReLU."""
        identity = torch.eye(self.in_channels, dtype=self.weight.dtype, device=self.weight.device)
        return identity + self.scale * self.weight.view_as(identity)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = F.linear(x.permute(0, 2, 3, 1).reshape(-1, c), self.matrix())
        return F.relu(y, inplace=True).view(n, h, w, c).permute(0, 3, 1, 2)


def normalisation(name: str, channels: int, momentum: float) -> nn.BatchNorm2d | nn.GroupNorm:
    """BatchNorm (`batch`), GroupNorm of GROUP channels each (`group`), or of all of them, which is LayerNorm (`layer`)."""
    if name == "batch":
        return nn.BatchNorm2d(channels, momentum=momentum)
    if name not in ("group", "layer"):
        raise ValueError(f"unknown normalisation '{name}': choose batch, group or layer")
    return nn.GroupNorm(max(1, channels // GROUP) if name == "group" else 1, channels)


class Layer(nn.Module):
    """One convolution layer: convolution, max-pooling where `pool` is above 1, normalisation, the input again where the shape
    allows it, and the activation: relu or silu.

    Max-pooling comes before BatchNorm, as in Jordan 2024: BatchNorm and ReLU then have a quarter of the pixels to do, which
    makes a training step of the presets up to a fifth shorter.

    `kind` says what convolves:

    - ``dense``: 3x3 over all channels;
    - ``dense_dilated``: the same with dilation 2;
    - ``pointwise``: 1x1 over all channels;
    - ``separable``: 3x3 within each channel, then 1x1 over all (Chollet 2017; Howard et al. 2017);
    - ``separable_dilated``: the same with dilation 2.

    `stride` is that of the 3x3 convolution. `norm` is ``batch``, ``group`` (GroupNorm, Wu & He 2018, of GROUP channels each) or
    ``layer`` (Ba et al. 2016: over all channels and pixels of an image).

    A layer that keeps its shape is residual and starts as the identity (the weight of its normalisation is zero, Goyal et al.
    2017): the network begins as the shallow one, which is quick to train, and grows into the deep one. With `dirac`, the first
    filters of a layer that does not keep its shape start as the identity too: they pass on the input's channels (Zagoruyko &
    Komodakis 2017, "DiracNets"; Jordan 2024).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kind: str,
        pool: int = 1,
        norm_momentum: float = NORM_MOMENTUM,
        activation: str = "relu",
        dirac: bool = False,
        stride: int = 1,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        if stride > 1 and kind not in ("dense", "separable"):
            raise ValueError(f"a layer of kind '{kind}' has no stride: choose dense or separable")
        if kind == "separable":
            self.depthwise: nn.Module = nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False)
        elif kind == "separable_dilated":
            self.depthwise = DilatedDepthwiseConv2d(in_channels, 3, dilation=2)
        elif kind in ("dense", "dense_dilated", "pointwise"):
            self.depthwise = nn.Identity()
        else:
            raise ValueError(
                f"unknown kind of layer '{kind}': choose from dense, dense_dilated, pointwise, separable, separable_dilated"
            )
        self.conv: nn.Conv2d
        if kind == "dense_dilated":
            self.conv = DilatedConv2d(in_channels, out_channels, 3, dilation=2)
        elif kind == "dense":
            self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        else:
            self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.pool = nn.MaxPool2d(pool) if pool > 1 else nn.Identity()
        self.norm = normalisation(norm, out_channels, norm_momentum)
        if activation not in ("relu", "silu"):
            raise ValueError(f"unknown activation '{activation}': choose relu or silu")
        self.activation = activation
        self.residual = in_channels == out_channels and pool == stride == 1
        if self.residual:
            nn.init.zeros_(self.norm.weight)
        elif dirac:
            nn.init.dirac_(self.conv.weight.data[:in_channels])

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """`shortcut` is what a residual layer adds in place of its input."""
        y = self.norm(self.pool(self.conv(self.depthwise(x))))
        if self.residual:
            y = y + (x if shortcut is None else shortcut)
        # TorchScript takes a condition, not a function out of a dictionary. SiLU is x * sigmoid(x) (Hendrycks & Gimpel 2016).
        return F.silu(y) if self.activation == "silu" else F.relu(y, inplace=True)


class Bottleneck(nn.Module):
    """Three layers as one: 1x1 to a quarter of the output's channels, 3x3 there with the max-pooling, 1x1 to the output (He et
    al. 2016). At many channels it has an eighth of the weights and mult-adds of a dense 3x3 layer.

    One that keeps its shape is residual and starts as the identity, as a `Layer` does. `make` is that class with
    what all layers of a network share.
    """

    def __init__(self, in_channels: int, out_channels: int, pool: int, stride: int, make: Callable[..., Layer]) -> None:
        super().__init__()
        inner = out_channels // 4
        self.reduce = make(in_channels, inner, "pointwise")
        self.conv = make(inner, inner, "dense", pool, stride=stride)
        self.expand = make(inner, out_channels, "pointwise")
        self.expand.residual = in_channels == out_channels and pool == stride == 1  # the shortcut is the input of all three
        if self.expand.residual:
            nn.init.zeros_(self.expand.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.conv(self.reduce(x)), x)


class MaxPoolReLU(nn.MaxPool2d):
    """Max-pooling, then ReLU: equal to ReLU before it, with fewer pixels to do."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.max_pool2d(x, self.kernel_size), inplace=True)


class WhiteningConv2d(nn.Conv2d):
    """A strided convolution whose filters are not trained but set once from images, followed by ReLU unless `relu` is false.

    The filters project each patch on the leading eigenvectors of the patches' covariance, scaled to unit variance, each with
    both signs, so that nothing is lost in the ReLU and no BatchNorm is needed (Page 2018, "How to train your ResNet";
    Jordan 2024, "94% on CIFAR-10 in 3.29 seconds"). Until `whiten` is called they are random.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int = 0, relu: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.weight.requires_grad_(False)
        self.relu = relu

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Set the filters from `images` (N, C, H, W), float, normalised as the network's input will be. Where all of them are of
        one colour, the filters stay random."""
        size = self.weight[0].numel()
        patches = F.unfold(images.float(), self.kernel_size, stride=self.stride)  # (N, size, patches of an image)
        mean = patches.mean((0, 2))
        covariance = (patches @ patches.mT).mean(0) / patches.shape[2] - mean.outer(mean)
        eigenvalues, eigenvectors = torch.linalg.eigh(covariance)  # in ascending order
        if eigenvalues.mean() < 1e-6:
            return
        count = min(self.out_channels // 2, size)
        # The floor keeps directions in which real images hardly vary (flat borders) from being blown up.
        scaled = eigenvectors / (eigenvalues + 1e-3 * eigenvalues.mean()).sqrt()
        filters = scaled.T.flip(0)[:count].view(count, *self.weight.shape[1:])
        self.weight[: 2 * count].copy_(torch.cat([filters, -filters]))

    def forward(self, x: Tensor) -> Tensor:
        x = self._conv_forward(x, self.weight, self.bias)
        return F.relu(x, inplace=True) if self.relu else x


class MeanMaxPool2d(nn.Module):
    """Mean and maximum of each channel over all pixels: (N, channels, H, W) -> (N, 2 * channels, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)], 1)


class Net(nn.Module):
    """Four blocks C1..C4 of three convolution layers each and an output block O: global average pooling, linear.

    Args:
        num_channels: channels of the images.
        num_classes: number of logits.
        widths: output channels of the four blocks.
        pools: side of the max-pooling in the first layer of each block, 1 for none.
        strides: stride of the first layers of C2, C3 and C4 (dense or separable); that of C1 is `stem_stride`.
        kinds: what the three layers of each block are (see `Layer`, and `Bottleneck` for ``bottleneck``); the first,
            `whitening`, stands for the stem.
        stem_kernel, stem_stride, stem_padding: pixels on a side of the stem's patches, the distance between two patches, and
            the zeros added on every side of the image.
        norm: of the layers: ``batch``, ``group`` or ``layer`` (see `Layer`).
        norm_momentum: of the running statistics of BatchNorm; short trainings need a large one.
        logit_scale: factor on the logits. Above 1 it lets few steps of a small learning rate reach confident predictions; below 1
            it holds back a last layer of many inputs.
        activation, dirac: of the layers (see `Layer`).
        max_features: the last layer sees the maximum of each channel beside its mean.

    Shape: (N, num_channels, H, W) with H, W >= 28 -> raw logits (N, num_classes), any N >= 1.
    """

    def __init__(
        self,
        num_channels: int,
        num_classes: int,
        widths: Sequence[int] = (32, 64, 96, 96),
        pools: Sequence[int] = (2, 2, 1, 1),
        strides: Sequence[int] = (1, 1, 1),
        kinds: Sequence[Sequence[str]] = (
            ("whitening", "pointwise", "pointwise"),
            ("dense", "pointwise", "pointwise"),
            ("dense_dilated", "pointwise", "pointwise"),
            ("separable", "pointwise", "pointwise"),
        ),
        stem_kernel: int = 4,
        stem_stride: int = 2,
        stem_padding: int = 0,
        norm: str = "batch",
        norm_momentum: float = NORM_MOMENTUM,
        logit_scale: float = 4.0,
        activation: str = "relu",
        dirac: bool = False,
        max_features: bool = False,
    ) -> None:
        super().__init__()

        make = partial(Layer, norm_momentum=norm_momentum, activation=activation, dirac=dirac, norm=norm)

        def layer(in_channels: int, out_channels: int, kind: str, pool: int = 1, stride: int = 1) -> nn.Module:
            if kind == "pointwise" and in_channels == out_channels and pool == stride == 1:
                return ResidualPointwiseConv2d(in_channels)
            if kind == "bottleneck":
                return Bottleneck(in_channels, out_channels, pool, stride, make)
            return make(in_channels, out_channels, kind, pool, stride=stride)

        def rest(i: int) -> list[nn.Module]:
            return [layer(widths[i], widths[i], kind) for kind in kinds[i][1:]]

        is_pooled = pools[0] > 1
        stem: list[nn.Module] = [
            WhiteningConv2d(num_channels, widths[0], stem_kernel, stem_stride, stem_padding, relu=not is_pooled)
        ]
        if is_pooled:
            stem.append(MaxPoolReLU(pools[0]))
        self.C1 = nn.Sequential(*stem, *rest(0))
        self.C2, self.C3, self.C4 = (
            nn.Sequential(layer(widths[i - 1], widths[i], kinds[i][0], pools[i], strides[i - 1]), *rest(i)) for i in (1, 2, 3)
        )
        pool, features = (MeanMaxPool2d(), 2 * widths[3]) if max_features else (nn.AdaptiveAvgPool2d(1), widths[3])
        self.O = nn.Sequential(pool, nn.Flatten(), nn.Linear(features, num_classes))
        self.logit_scale = logit_scale

    def whiten(self, images: Tensor) -> None:
        """Set the stem's filters from `images` (N, num_channels, H, W), float, normalised as the inputs will be."""
        cast(WhiteningConv2d, self.C1[0]).whiten(images)

    def forward(self, x: Tensor) -> Tensor:
        return self.logit_scale * self.O(self.C4(self.C3(self.C2(self.C1(x)))))


class Growing(nn.Module):
    """Two blocks: the first computes, and after `grow` the second in its place.

    Both exist from the start, and their names in the state stay the same, so that optimizers, averages of weights and saved states
    fit before and after. What does not compute has no gradient, and costs nothing.
    """

    def __init__(self, small: nn.Module, large: nn.Module) -> None:
        super().__init__()
        self.small, self.large, self.is_grown = small, large, False

    @property
    def active(self) -> nn.Module:
        return self.large if self.is_grown else self.small

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.active(x))

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.is_grown)

    def set_extra_state(self, state: Tensor) -> None:
        self.is_grown = bool(state)


class Model(Net):
    """The course's interface: a `Net` that also normalises its input and computes in bf16 by itself.

    The course's loop shows it whole epochs, so it is smaller than Net's defaults and looks at coarser patches. Where that does not
    suffice, `grow` exchanges its blocks for those of a larger network.

    The input may be of any scale and dtype (uint8 pixels as well as floats). What normalisation and whitening need to know of the
    images is taken from the first batch that is trained on and is not all of one colour; before that, inputs pass as they are. So a
    batch of noise that passes before the training, as summaries of a network do, changes nothing.

    In training mode BatchNorm's running statistics take a batch smaller than the largest so far, an epoch's last one, in proportion
    to its images.

    Shape: (N, num_channels, H, W), or (N, H, W, num_channels), with H, W >= 28 -> raw logits (N, num_classes), float32, any N >= 1.
    """

    mean: Tensor
    std: Tensor
    adapted: Tensor

    def __init__(self, num_channels: int, num_classes: int) -> None:
        super().__init__(
            num_channels,
            num_classes,
            widths=(24, 32, 48, 48),
            pools=(2, 1, 2, 1),
            stem_stride=3,
            kinds=(
                ("whitening", "pointwise", "pointwise"),
                ("dense_dilated", "pointwise", "pointwise"),
                ("separable", "pointwise", "pointwise"),
                ("pointwise", "pointwise", "pointwise"),
            ),
        )
        larger = Net(num_channels, num_classes)
        for name in BLOCKS:
            setattr(self, name, Growing(getattr(self, name), getattr(larger, name)))
        self.register_buffer("mean", torch.zeros(num_channels, 1, 1))
        self.register_buffer("std", torch.ones(num_channels, 1, 1))
        self.register_buffer("adapted", torch.tensor(False))
        self.most_images, self.share = 1, 1.0  # of a batch so far; of the statistics' momentum that the latest batch has
        self.to(memory_format=torch.channels_last)

    def grow(self) -> None:
        """Exchange the blocks for those of the larger network, which is untrained; the next training batch adapts it."""
        for name in BLOCKS:
            getattr(self, name).is_grown = True
        self.adapted.fill_(False)

    @property
    def first_layers(self) -> nn.Sequential:
        """Those of the block C1 that computes: the stem, max-pooling and residual layers."""
        return cast(nn.Sequential, cast(Growing, self.C1).active)

    def whiten(self, images: Tensor) -> None:
        cast(WhiteningConv2d, self.first_layers[0]).whiten(images)

    def _weigh(self, images: int) -> None:
        """Set the momentum of BatchNorm for a batch of so many images."""
        self.most_images = max(self.most_images, images)
        share = images / self.most_images
        if share != self.share:
            self.share = share
            for layer in self.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.momentum = 1 - (1 - NORM_MOMENTUM) ** share

    def adapt(self, images: Tensor) -> None:
        """Take the normalisation and the stem's filters from `images` (N, num_channels, H, W), unless they are all of one colour.

        Raises ValueError where they have numbers that are not finite.
        """
        images = images.float()
        mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3))
        if not (mean.isfinite() & std.isfinite()).all():
            raise ValueError("the images of the first batch have values that are NaN or infinite")
        is_flat = std <= 1e-5 * mean.abs()  # a channel of one value has but the deviation of rounding
        if is_flat.all():
            return
        self.mean.copy_(mean[:, None, None])
        self.std.copy_(std.masked_fill(is_flat, 1.0)[:, None, None])
        self.whiten((images - self.mean) / self.std)
        self.adapted.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        """Raw logits (N, num_classes), float32, of images (N, num_channels, H, W) or (N, H, W, num_channels), of any scale."""
        if x.shape[1] != len(self.mean):
            x = x.permute(0, 3, 1, 2)
        if self.training:
            self._weigh(len(x))
            residual = cast(ResidualPointwiseConv2d, self.first_layers[-1])
            if not (self.adapted and residual.weight.any()):  # which is zero until the first step
                self.adapt(x[:512])
        device = self.mean.device.type
        fast = device == "cpu" and _cpu_has_bf16()
        with torch.autocast(device, torch.bfloat16, enabled=fast):
            return super().forward(self.normalised(x, torch.bfloat16 if fast else torch.float32)).float()

    def normalised(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """(x - mean) / std of `x` (N, num_channels, H, W), any dtype, in `dtype`.

        bf16 holds uint8 pixels exactly, but not the floats of other scales, whose difference stays float32. The constants are
        as large as an image and lie in memory as it does: over broadcast ones the same arithmetic takes seven times longer.
        """
        if x.dtype.is_floating_point:
            dtype = torch.float32
        layout = torch.channels_last if x.stride(1) == 1 else torch.contiguous_format
        mean, std = (
            constant.to(dtype).expand(1, *x.shape[1:]).contiguous(memory_format=layout) for constant in (self.mean, self.std)
        )
        return x.to(dtype, copy=True).sub_(mean).div_(std)


def _cpu_has_bf16() -> bool:
    """Whether this processor computes in bf16 natively; where it only emulates it, fp32 is faster."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
