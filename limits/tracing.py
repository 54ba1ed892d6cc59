"""The operations of a network's forward pass as a graph: what `constraints.py` and `receptive_field.py` look at.

By torch.fx where it can trace the network, else as the chain of its modules in the order in which they are called.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

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
        "getitem": "input index",
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
ELEMENTWISE_MODULES = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    nn.modules.dropout._DropoutNd,
    nn.Identity,
)
# Activations, and what counts as elementwise by convention though it looks at neighbours (normalisation).
TRANSPARENT = frozenset(
    str.split(
        "alpha_dropout batch_norm celu clamp clamp_max clamp_min dropout dropout2d elu feature_alpha_dropout gelu "
        "group_norm hardsigmoid hardswish hardtanh instance_norm layer_norm leaky_relu local_response_norm logsigmoid mish "
        "prelu relu relu6 rrelu selu sigmoid silu softplus softsign tanh tanhshrink threshold"
    )
)
ACTIVATION_MODULES = frozenset(name.replace("_", "") for name in TRANSPARENT)
ELEMENTWISE = TRANSPARENT | frozenset(
    str.split(
        "elementwise abs add bfloat16 clone contiguous div exp float half iadd imul isub itruediv lerp log log1p max "
        "maximum min minimum mul multiply neg pow rsqrt sqrt square sub to truediv type where"
    )
)
POOLS = frozenset(("max_pool2d", "avg_pool2d"))
ADAPTIVE_POOLS = frozenset(("adaptive_max_pool2d", "adaptive_avg_pool2d"))


@dataclass(eq=False)
class Op:
    """One operation of the forward pass whose result is a tensor that depends on the image."""

    name: str
    """That of the function (`conv2d`, `add`): also where a module called it, or a method, or its in-place form."""
    path: str
    """Dotted path of the module whose `forward` it is in; the module's own where it is one of torch's."""
    shape: tuple[int, ...]
    """Of the result for a batch of one; of the first where there are several."""
    options: dict[str, Any]
    """Arguments by name, with the values that they had."""
    inputs: list[Op]
    node: fx.Node | None = None
    users: list[Op] = field(default_factory=list)

    @property
    def is_map(self) -> bool:
        """Whether the result still has height and width, whatever they are laid out as."""
        return len(self.shape) > 2 and math.prod(self.shape[2:]) > 1

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
        kind = "average" if self.name in ("mean", "adaptive_avg_pool2d", "avg_pool2d") else "max"
        shape = self.inputs[0].shape
        if self.name in ("mean", "amax", "max"):
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
            is_global = self.name in ADAPTIVE_POOLS and self.shape[2:] == (1, 1)
        return kind if is_global else None


@dataclass(frozen=True)
class Trace:
    """The forward pass of a network for one image size."""

    model: nn.Module
    """A copy in eval mode, on the CPU, in float32; an fx.GraphModule where there is a graph."""
    is_graph: bool
    """False where torch.fx could not trace it and `ops` is the chain of the modules that were called."""
    ops: list[Op]
    """In order of execution, the images first; only those that the output depends on."""
    heads: list[Op]
    """Those after which no height and width are left, next to the output: global pooling, or what stands for it."""


def pair(value: Any) -> tuple[int, int]:
    """(height, width) of an argument that may be given as one number for both."""
    return (value[0], value[-1]) if isinstance(value, (tuple, list)) else (value, value)


def reach_back(start: Sequence[Op], go_on: Callable[[Op], bool] = lambda op: True) -> set[Op]:
    """`start` and all that it depends on, not looking behind an operation for which `go_on` is false."""
    seen, stack = set(start), list(start)
    while stack:
        op = stack.pop()
        new = [source for source in op.inputs if source not in seen] if go_on(op) else []
        seen.update(new)
        stack.extend(new)
    return seen


def trace_model(model: nn.Module, image_size: tuple[int, int], num_channels: int) -> Trace:
    """The forward pass of `model` on one (1, num_channels, *image_size) float32 image. `model` is left as it is.

    Raises whatever `model` raises on such an image.
    """
    image = torch.zeros(1, num_channels, *image_size)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            traced = copy.deepcopy(model).cpu().float().eval()
            traced = fx.GraphModule(traced, _Tracer().trace(traced))
            ops, output = _record_graph(traced, image)
        except Exception:  # tracing runs anybody's code on symbols: it may raise anything
            traced = copy.deepcopy(model).cpu().float().eval()
            ops, output = _record_calls(traced, image)
    live = reach_back([output])
    ops = [op for op in ops if op in live]
    for op in ops:
        for source in op.inputs:
            source.users.append(op)
    return Trace(traced, isinstance(traced, fx.GraphModule), ops, _heads(output))


def last_feature_map(trace: Trace) -> Op:
    """The last (N, C, H, W) result before global pooling (of several heads: the last one's)."""
    ends = [op for head in trace.heads for op in ([head] if head.is_map else head.inputs)]
    before = reach_back(ends)
    return [op for op in trace.ops if op in before and len(op.shape) == 4][-1]


def _heads(output: Op) -> list[Op]:
    def is_head(op: Op) -> bool:
        return bool(op.global_pooling) or op.is_map or any(source.is_map for source in op.inputs)

    return [op for op in reach_back([output], lambda op: not is_head(op)) if is_head(op)]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A subclass counts by its attributes: it may compute a dilated convolution by other means in its own forward.
        return isinstance(m, (*MODULES, *ELEMENTWISE_MODULES)) or super().is_leaf_module(m, module_qualified_name)


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps an Op for each node that the image reaches."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.ops: dict[fx.Node, Op] = {}

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        result = super().run_node(n)
        inputs = [self.ops[source] for source in n.all_input_nodes if source in self.ops]
        if inputs or (n.op == "placeholder" and not self.ops):
            if n.op == "call_module":
                path, (name, options) = n.target, _describe_module(self.fetch_attr(n.target))
            else:
                path, (name, options) = list(n.meta.get("nn_module_stack") or [""])[-1], _describe_call(n, args, kwargs)
            first = result[0] if isinstance(result, (tuple, list)) and result else result
            if isinstance(first, Tensor):
                self.ops[n] = Op(name, path, tuple(first.shape), options, inputs, n)
        return result


def _record_graph(module: fx.GraphModule, image: Tensor) -> tuple[list[Op], Op]:
    recorder = _Recorder(module)
    recorder.run(image)
    (output,) = next(reversed(module.graph.nodes)).args
    return list(recorder.ops.values()), recorder.ops[output]


def _record_calls(model: nn.Module, image: Tensor) -> tuple[list[Op], Op]:
    ops = [Op("images", "", tuple(image.shape), {}, [])]

    def record(path: str, module: nn.Module, args: Any, result: Any) -> None:
        if isinstance(result, Tensor):
            name, options = _describe_module(module)
            ops.append(Op(name, path, tuple(result.shape), options, [ops[-1]]))

    leaves = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, tuple(MODULES)) or not list(module.children())
    ]
    hooks = [module.register_forward_hook(partial(record, path)) for path, module in leaves]
    try:
        model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return ops, ops[-1]


def _describe_module(module: nn.Module) -> tuple[str, dict[str, Any]]:
    if isinstance(module, ELEMENTWISE_MODULES) or type(module).__name__.lower() in ACTIVATION_MODULES:
        return "elementwise", {}
    name = next((name for kind, name in MODULES.items() if isinstance(module, kind)), type(module).__name__)
    return name, {key: value for key, value in vars(module).items() if not key.startswith("_")}


def _describe_call(node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    name = (node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")).rstrip("_")
    name = {"concat": "cat", "concatenate": "cat"}.get(name, name)
    options = dict(zip(SIGNATURES.get(name, ["input"]), args, strict=False)) | kwargs
    if name == "conv2d":
        options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | options
        options |= {"kernel_size": tuple(options["weight"].shape[2:]), "in_channels": options["input"].shape[1]}
    elif name == "pad":
        options.setdefault("padding", options.get("pad"))
    return name, options
