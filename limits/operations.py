"""The operations of a forward pass: their names, their arguments by name, and what can be said of one by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

# Positional arguments of the functions whose arguments matter here; the modules that stand for them call theirs alike.
SIGNATURES = {
    name: signature.split()
    for name, signature in {
        "conv2d": "input weight bias stride padding dilation groups",
        "max_pool2d": "input kernel_size stride padding dilation",
        "avg_pool2d": "input kernel_size stride padding",
        "adaptive_max_pool2d": "input output_size",
        "adaptive_avg_pool2d": "input output_size",
        "interpolate": "input size scale_factor mode align_corners",
        "pixel_shuffle": "input upscale_factor",
        "pixel_unshuffle": "input downscale_factor",
        "pad": "input padding",
        "cat": "tensors dim",
        "chunk": "input chunks dim",
        "split": "input size dim",
        "mean": "input dim",
        "sum": "input dim",
        "max": "input dim",
        "amax": "input dim",
        "softmax": "input dim",
        "log_softmax": "input dim",
        "getitem": "input index",
        "group_norm": "input num_groups",
        "linear": "input weight bias",
        "matmul": "input other",
        "rmatmul": "other input",
        "mm": "input other",
        "mv": "input other",
        "bmm": "input other",
        "addmm": "added input other",
        "baddbmm": "added input other",
    }.items()
}
MODULES: dict[type[nn.Module], str] = {
    nn.Conv2d: "conv2d",
    nn.MaxPool2d: "max_pool2d",
    nn.AvgPool2d: "avg_pool2d",
    nn.AdaptiveMaxPool2d: "adaptive_max_pool2d",
    nn.AdaptiveAvgPool2d: "adaptive_avg_pool2d",
    nn.Upsample: "interpolate",
    nn.PixelShuffle: "pixel_shuffle",
    nn.PixelUnshuffle: "pixel_unshuffle",
    nn.ZeroPad2d: "pad",
    nn.ReflectionPad2d: "pad",
    nn.ReplicationPad2d: "pad",
}
ELEMENTWISE_MODULES: dict[type[nn.Module], str] = {
    nn.modules.batchnorm._BatchNorm: "batch_norm",
    nn.modules.instancenorm._InstanceNorm: "instance_norm",
    nn.GroupNorm: "group_norm",
    nn.LayerNorm: "layer_norm",
    nn.LocalResponseNorm: "local_response_norm",
    nn.modules.dropout._DropoutNd: "dropout",
    nn.Identity: "elementwise",
}
MATRIX_PRODUCTS = frozenset(("linear", "matmul", "rmatmul", "mm", "mv", "bmm", "addmm", "baddbmm"))
# Activations, what stops a gradient though it keeps the pixels, and what counts as elementwise by convention though it looks at
# neighbours (normalisation).
TRANSPARENT = frozenset(
    str.split(
        "alpha_dropout batch_norm ceil celu clamp clamp_max clamp_min clip data detach dropout dropout2d elu feature_alpha_dropout "
        "floor gelu group_norm hardshrink hardsigmoid hardswish hardtanh instance_norm layer_norm leaky_relu local_response_norm "
        "logsigmoid mish prelu relu relu6 requires_grad rms_norm round rrelu selu sigmoid sign silu softplus softshrink softsign "
        "tanh tanhshrink threshold"
    )
)
SUMS = frozenset(("add", "iadd", "radd"))
QUOTIENTS = frozenset(("div", "divide", "mul", "multiply", "true_divide", "truediv"))
ELEMENTWISE = (
    TRANSPARENT
    | SUMS
    | QUOTIENTS
    | frozenset(
        str.split(
            "elementwise abs addcmul bfloat16 clone contiguous copy cpu double exp float half isub lerp log log1p maximum "
            "max min minimum neg negative nan_to_num pow rdiv reciprocal rpow rsqrt rsub sin cos sqrt square sub subtract to type "
            "where"
        )
    )
)
POOLS = frozenset(("max_pool2d", "avg_pool2d"))
ADAPTIVE_POOLS = frozenset(("adaptive_max_pool2d", "adaptive_avg_pool2d"))
SYNONYMS = {"concat": "cat", "concatenate": "cat"}
OPAQUE = frozenset(("TorchScript", "compiled code"))


@dataclass(eq=False)
class Op:
    """One operation of the forward pass whose result is a tensor that depends on the image."""

    name: str
    """The function's (`conv2d`, `add`), also where a module called it, or a method, or its in-place form; or one of OPAQUE."""
    path: str
    """Dotted path of the module whose `forward` it is in; the module's own where it is one of torch's."""
    shape: tuple[int, ...]
    """Of the result for a batch of one; of the first where there are several."""
    options: dict[str, Any]
    """Arguments by name, with the values that they had; tensors are left out."""
    inputs: list[Op]
    step: int = 0
    """Its place among the recorded steps."""
    users: list[Op] = field(default_factory=list)

    @property
    def is_map(self) -> bool:
        """Whether the result still has height and width, whatever they are laid out as."""
        return len(self.shape) > 2 and math.prod(self.shape[2:]) > 1

    @property
    def is_opaque(self) -> bool:
        """Whether what it computes cannot be looked into."""
        return self.name in OPAQUE

    @property
    def is_conv(self) -> bool:
        return self.name == "conv2d"

    @property
    def is_depthwise(self) -> bool:
        return self.is_conv and self.options["groups"] == self.options["in_channels"] > 1

    @property
    def is_pointwise(self) -> bool:
        return self.is_conv and pair(self.options["kernel_size"]) == (1, 1) and not self.is_depthwise

    @property
    def global_pooling(self) -> str | None:
        """`average` or `max` where all of height and width is pooled into one value, else None."""
        if not self.inputs:
            return None
        shape = self.inputs[0].shape
        if self.name in ("mean", "amax", "max", "sum"):
            dims = self.options.get("dim")
            dims = [dims] if isinstance(dims, int) else dims
            is_global = (
                isinstance(dims, (tuple, list))
                and len(shape) > 2
                and {dim % len(shape) for dim in dims} == set(range(2, len(shape)))
            )
        elif self.name in POOLS:
            is_global = self.shape[2:] == (1, 1) and pair(self.options["kernel_size"]) == shape[2:]
        else:
            is_global = self.name in (*ADAPTIVE_POOLS, "adaptive_avg_pool1d") and len(shape) > 2 and not self.is_map
        if not is_global or (self.name == "sum" and not any(user.name in QUOTIENTS for user in self.users)):
            return None
        return "average" if self.name in ("mean", "sum", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "avg_pool2d") else "max"


def pair(value: Any) -> tuple[int, int]:
    """(height, width) of an argument that may be given as one number for both."""
    return (value[0], value[-1]) if isinstance(value, (tuple, list)) else (value, value)


def describe_module(module: nn.Module) -> tuple[str, dict[str, Any]]:
    """Name and options of one of torch's modules that counts as one operation."""
    name = next(name for kind, name in {**MODULES, **ELEMENTWISE_MODULES}.items() if isinstance(module, kind))
    return name, {key: value for key, value in vars(module).items() if not key.startswith("_")}


def function_name(function: Any) -> str:
    """The plain name of a function of torch: `add` for `Tensor.add_`, `data` for that attribute, `relu` for aten.relu.default."""
    name = getattr(function, "__name__", "")
    name = (function.__self__.__name__ if name == "__get__" else name).partition(".")[0].strip("_")
    return SYNONYMS.get(name, name)


def describe_call(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name."""
    options = dict(zip(SIGNATURES.get(name, ["input"]), args, strict=False)) | kwargs
    if name == "conv2d":
        options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | options
        options |= {"kernel_size": tuple(options["weight"].shape[2:]), "in_channels": options["input"].shape[1]}
    elif name in MATRIX_PRODUCTS:
        options["inner"] = options["input"].shape[-1]
    elif name == "pad":
        options.setdefault("padding", options.get("pad"))
    if "axis" in options:
        options["dim"] = options["axis"]
    return {key: value for key, value in options.items() if key != "tensors" and not isinstance(value, Tensor)}
