"""What an assignment demands of a network, computed from the network itself: any `nn.Module`, not only this project's.

Where torch.fx cannot trace a network, the order in which its modules are called stands for the graph; what it does outside
of modules is then not seen, and the receptive field is known by gradient only.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from config import InputError
from limits.receptive_field import receptive_field
from limits.tracing import ELEMENTWISE, Op, Trace, pair, reach_back, trace_model

BLOCKS = ("C1", "C2", "C3", "C4", "O")
LAYERS_PER_BLOCK = 3
MAX_PARAMETERS = 200_000  # exclusive
MIN_RECEPTIVE_FIELD = 44  # pixels, exclusive


@dataclass(frozen=True)
class Constraint:
    """One demand, and how a network stands to it."""

    name: str
    value: str
    limit: str
    passed: bool


def check(model: nn.Module, image_size: tuple[int, int] = (32, 32), num_channels: int = 3) -> list[Constraint]:
    """Every constraint on a network that takes (N, num_channels, *image_size) float32 images and returns (N, classes).

    `model` is left as it is, and so is the random state. Raises InputError where it fails on such an image.
    """
    try:
        trace = trace_model(model, image_size, num_channels)
    except Exception as error:
        raise InputError(
            f"the network fails on a {num_channels}x{image_size[0]}x{image_size[1]} image: {_one_line(error)}"
        ) from error
    return [
        _parameters(model),
        _blocks(trace),
        _global_average_pooling(trace),
        _depthwise_separable(trace),
        _dilated(trace),
        _receptive_field(model, image_size, num_channels),
    ]


def format_table(constraints: list[Constraint]) -> str:
    """The constraints as aligned plain text: name, value, limit, pass or FAIL."""
    rows = [
        ("constraint", "value", "limit", ""),
        *((c.name, c.value, c.limit, "pass" if c.passed else "FAIL") for c in constraints),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _parameters(model: nn.Module) -> Constraint:
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    value = f"{trainable:,}" + (f" (and {frozen:,} not trained)" if frozen else "")
    return Constraint("parameters", value, f"< {MAX_PARAMETERS:,}", trainable < MAX_PARAMETERS)


def _blocks(trace: Trace) -> Constraint:
    order = list(dict.fromkeys(block for op in trace.ops if (block := _block(op))))
    layers = _layers(trace)
    counts = [sum(_block(layer) == block for layer in layers) for block in BLOCKS[:-1]]
    outside = sum(_block(layer) is None for layer in layers)
    missing = [block for block in BLOCKS if block not in order]
    problems = ["no " + " ".join(missing)] if missing else []
    if not problems and order != list(BLOCKS):
        problems.append("in the order " + " ".join(order))
    if outside:
        problems.append(f"{outside} outside the blocks")
    value = ", ".join([" ".join(map(str, counts)) + ("" if trace.is_graph else " by order of calls"), *problems])
    passed = not problems and all(count == LAYERS_PER_BLOCK for count in counts)
    return Constraint(" ".join(BLOCKS), value, f"{LAYERS_PER_BLOCK} layers each, then O", passed)


def _block(op: Op) -> str | None:
    """The block that an operation belongs to: the outermost module on its path with the name of one."""
    return next((name for name in op.path.split(".") if name in BLOCKS), None)


def _layers(trace: Trace) -> list[Op]:
    """The convolutions that count as layers.

    Not the 1x1 half of a depthwise-separable pair in one block, nor a 1x1 shortcut projection, nor a 1x1 convolution of a
    pooled vector, which is a linear layer (the gate of squeeze-and-excitation).
    """
    halves = {pointwise for depthwise, pointwise in _separable_pairs(trace) if _block(depthwise) == _block(pointwise)}
    layers = [op for op in trace.ops if op.is_conv and op not in halves and not (op.is_pointwise and not op.inputs[0].is_map)]
    for layer in list(layers):
        if _is_shortcut(layer, layers):
            layers.remove(layer)
    return layers


def _separable_pairs(trace: Trace) -> list[tuple[Op, Op]]:
    """Each depthwise convolution with the 1x1 convolution that follows it, with nothing but elementwise between them."""
    pairs: dict[Op, Op] = {}  # by the pointwise one
    for depthwise in (op for op in trace.ops if op.is_depthwise):
        for pointwise in _reach_forward(depthwise, lambda op: op.name in ELEMENTWISE):
            if pointwise.is_pointwise:
                pairs[pointwise] = depthwise
                break
    return [(depthwise, pointwise) for pointwise, depthwise in pairs.items()]


def _is_shortcut(conv: Op, layers: list[Op]) -> bool:
    """Whether a 1x1 convolution is alone on its way from a fork to a sum, and the other way between them has a layer."""
    if not conv.is_pointwise:
        return False
    before = reach_back(conv.inputs, lambda op: not op.is_conv)
    after = _reach_forward(conv, lambda op: not op.is_conv and op.name not in ("add", "iadd"))
    for total in (op for op in after if op.name in ("add", "iadd")):
        others = [source for source in total.inputs if source is not conv and source not in after]
        between = reach_back(others, lambda op: op is not conv and op not in before)
        if between & before and any(op in layers for op in between - before):
            return True
    return False


def _reach_forward(start: Op, go_on: Callable[[Op], bool]) -> list[Op]:
    """What uses `start`'s result, nearest first, not looking beyond an operation for which `go_on` is false."""
    found = list(dict.fromkeys(start.users))
    for op in found:
        if go_on(op):
            found.extend(user for user in dict.fromkeys(op.users) if user not in found)
    return found


def _global_average_pooling(trace: Trace) -> Constraint:
    value = ", ".join(f"{op.name} in {op.path or 'forward'}" for op in trace.heads) or "none"
    passed = bool(trace.heads) and all(op.global_pooling == "average" and _block(op) == "O" for op in trace.heads)
    return Constraint("GAP", value, "global average in O", passed)


def _depthwise_separable(trace: Trace) -> Constraint:
    count = len(_separable_pairs(trace))
    return Constraint("depthwise separable", f"{count} depthwise + 1x1", ">= 1", count > 0)


def _dilated(trace: Trace) -> Constraint:
    convs = [op.options for op in trace.ops if op.is_conv]
    dilations = [
        max(pair(conv["dilation"]))
        for conv in convs
        if any(
            kernel > 1 and dilation > 1 for kernel, dilation in zip(pair(conv["kernel_size"]), pair(conv["dilation"]), strict=True)
        )
    ]
    value = f"{len(dilations)} dilated" + (f" by {max(dilations)}" if dilations else "")
    return Constraint("dilated", value, ">= 1", bool(dilations))


def _receptive_field(model: nn.Module, image_size: tuple[int, int], num_channels: int) -> Constraint:
    seen = receptive_field(model, image_size, num_channels)
    if seen.arithmetic is None:
        value = f"by gradient only: {_pixels(seen.gradient)}"
    elif seen.arithmetic == seen.gradient:
        value = _pixels(seen.arithmetic)
    else:
        value = f"{_pixels(seen.arithmetic)} by arithmetic, {_pixels(seen.gradient)} by gradient"
    smaller = seen.gradient if seen.arithmetic is None else min(seen.arithmetic, seen.gradient)
    return Constraint("receptive field", value, f"> {MIN_RECEPTIVE_FIELD} px", smaller > MIN_RECEPTIVE_FIELD)


def _pixels(extent: float) -> str:
    return "whole image" if math.isinf(extent) else f"{extent:.0f} px"


def load_class(spec: str) -> type[nn.Module]:
    """The class that `path/to/file.py:Class` or `package.module:Class` names. Runs the file's top level.

    Raises InputError where there is no such file, module or class, it cannot be imported, or is not an nn.Module.
    """
    location, _, name = spec.rpartition(":")
    if not location or not name:
        raise InputError(f"'{spec}' names no class: write path/to/file.py:Class or package.module:Class")
    path = Path(location)
    is_file = path.suffix == ".py" or path.exists()
    if is_file and not path.is_file():
        raise InputError(f"there is no file '{location}'")
    try:
        with _importing_from(path.resolve().parent if is_file else Path.cwd()):
            module = _import_file(path) if is_file else importlib.import_module(location)
    except (Exception, SystemExit) as error:
        raise InputError(f"cannot import '{location}': {_one_line(error)}") from error
    found = getattr(module, name, None)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        classes = [
            key
            for key, value in vars(module).items()
            if inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__ == module.__name__
        ]
        problem = f"'{name}' in '{location}' is not an nn.Module" if found else f"there is no '{name}' in '{location}'"
        raise InputError(f"{problem}; its networks: {', '.join(classes) or 'none'}")
    return found


def load_network(spec: str, num_channels: int = 3, num_classes: int = 10) -> nn.Module:
    """A network of the class that `spec` names (see `load_class`).

    Built with num_channels=.., num_classes=.., or the two by position, or no arguments, whichever the class takes. Raises
    InputError where none of them gives a network from (2, num_channels, 32, 32) images to (2, num_classes) logits.
    """
    network = load_class(spec)
    name, shape = network.__name__, (2, num_channels, 32, 32)
    problem = f"'{name}' takes neither (num_channels, num_classes) nor no arguments"
    for args, kwargs in (
        ((), {"num_channels": num_channels, "num_classes": num_classes}),
        ((num_channels, num_classes), {}),
        ((), {}),
    ):
        try:
            inspect.signature(network).bind(*args, **kwargs)
        except TypeError:
            continue
        try:
            model = network(*args, **kwargs)
        except Exception as error:
            problem = f"'{name}' cannot be built: {_one_line(error)}"
            continue
        training = model.training
        try:
            with torch.no_grad():
                logits = model.eval()(torch.zeros(shape))
        except Exception as error:
            problem = f"'{name}' fails on images of shape {shape}: {_one_line(error)}"
            continue
        if isinstance(logits, Tensor) and logits.shape == (2, num_classes):
            return model.train(training)
        result = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        problem = f"'{name}' makes {result} of images of shape {shape}, not logits of shape (2, {num_classes})"
    raise InputError(problem)


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Imports look into `folder` first, also for names like `model` and `results` that this project has modules of."""
    ours = Path(__file__).resolve().parent.parent
    shadowed = {path.stem for path in folder.iterdir() if folder != ours and (path.suffix == ".py" or path.is_dir())}
    shadowed &= {path.stem for path in ours.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in shadowed}
    for name in hidden:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    arguments, sys.argv = sys.argv, sys.argv[:1]  # a file that parses its arguments gets none of ours
    try:
        yield
    finally:
        sys.argv = arguments
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] in shadowed]:
            del sys.modules[name]
        sys.modules.update(hidden)


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"checked_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look the module up there
    spec.loader.exec_module(module)
    return module


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
