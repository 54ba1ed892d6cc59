"""A recording of a forward pass on a real image: each operation in order, to look at and to repeat on an image of another size.

The network runs with real values, so that it may ask for sizes, compare, count and decide as it likes. The sizes that it takes
from tensors remember where they come from: a repetition with a larger image reshapes by the larger image's sizes. What was decided
stays decided.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import map_aggregate
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from limits.operations import ELEMENTWISE, ELEMENTWISE_MODULES, MODULES, Op, describe_call, describe_module, function_name
from utils import uncompiled

# What makes a number of a tensor's values, by which a network may decide or that it may go on with outside of torch.
READS = frozenset(
    ("bool", "item", "float", "int", "index", "complex", "tolist", "numpy", "array", "equal", "allclose", "is_nonzero")
)
SIZES = frozenset(("shape", "size", "numel", "nelement"))


@dataclass(frozen=True)
class _Result:
    """What a step gave: its `part`-th tensor or number."""

    step: int
    part: int


class _Size(int):
    """A size that knows how to be found again: `formula` is a _Result, or a function and its two operands."""

    formula: Any

    def at(self, values: Sequence[list[Any]]) -> int:
        """The size when the steps have given `values`."""
        if isinstance(self.formula, _Result):
            return values[self.formula.step][self.formula.part]
        function, *operands = self.formula
        return function(*(operand.at(values) if isinstance(operand, _Size) else operand for operand in operands))


def _size(value: int, formula: Any) -> _Size:
    size = _Size(value)
    size.formula = formula
    return size


def _arithmetic(function: Callable[[int, int], int], swapped: bool) -> Callable[[_Size, Any], Any]:
    def method(self: _Size, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        first, second = (other, self) if swapped else (self, other)
        return _size(function(int(first), int(second)), (function, first, second))

    return method


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    for _prefix in ("", "r"):
        setattr(_Size, f"__{_prefix}{_name}__", _arithmetic(getattr(operator, _name), bool(_prefix)))


@dataclass(frozen=True)
class _Step:
    """One call: tensors that earlier steps gave stand in the arguments as _Result."""

    function: Callable[..., Any]
    args: Any
    kwargs: Any
    in_place: bool


class Recorder:
    """Records what `model` does while it runs in `run`."""

    def __init__(self, model: nn.Module) -> None:
        self.ops: list[Op] = []
        """What depends on the image, in order of execution, the images first."""
        self.reads: list[str] = []
        """Where the network took values of tensors that depend on the image, as `item in C1`."""
        self._model = model
        self._steps: list[_Step] = []
        self._results: dict[int, _Result] = {}  # by the id of the tensor
        self._op_of: dict[int, Op] = {}  # likewise: the operation that wrote it last
        self._kept: list[Any] = []  # so that no id is given twice
        self._path = ""
        self._turns: dict[tuple[str, ...], int] = {}
        self._quiet = 0  # above 0 inside of what counts as one operation

    def run(self, image: Tensor) -> Op | None:
        """Run the model on `image`, without gradients.

        Returns the operation that gives its result, None where that does not depend on the image.
        Raises whatever the model raises, TypeError where it returns no tensor.
        """
        self._add("images", "", lambda image: image, (image,), {}, image)
        with torch.no_grad(), uncompiled(), self._wrapped(), _Functions(self), _Dispatched(self):
            output = self._model(image)
        if not isinstance(output, Tensor):
            output = next(iter(_flat(output, Tensor)), None)
        if output is None:
            raise TypeError("it returns no tensor")
        result = self._op_of.get(id(output))
        self._kept.clear()
        return result

    def repeat(self, image: Tensor, until: Op) -> Tensor:
        """The result of `until` for another image. Raises RuntimeError where the steps do not work with an image of that size."""
        values: list[list[Any]] = [[image]]
        problem: Exception | None = None
        for step in self._steps[1 : until.step + 1]:

            def find(value: Any) -> Any:
                if isinstance(value, _Result):
                    return values[value.step][value.part]
                return value.at(values) if isinstance(value, _Size) else value

            try:
                args, kwargs = map_aggregate(step.args, find), map_aggregate(step.kwargs, find)
                result = step.function(*args, **kwargs)
                values.append(_flat(args[0] if step.in_place else result, (Tensor, int)))
            except Exception as error:  # perhaps in what the result does not depend on: then it does not matter
                problem = error
                values.append([])
        if not values[-1]:
            raise RuntimeError(f"the network does not take such images: {problem}") from problem
        return values[-1][0]

    @contextmanager
    def _wrapped(self) -> Iterator[None]:
        """Every module says when it runs, also where its `forward` is called by name."""
        names: dict[nn.Module, list[str]] = {}
        for name, module in self._model.named_modules(remove_duplicate=False):
            names.setdefault(module, []).append(name)
        with ExitStack() as stack:
            for module, paths in names.items():
                if not isinstance(module, torch.jit.ScriptModule):
                    own = vars(module).get("forward")
                    module.forward = partial(self._call, module, module.forward, paths)
                    stack.callback(partial(_restore, module, own))
            # TorchScript takes no hooks of its own.
            for hook in (
                register_module_forward_pre_hook(self._enter_script),
                register_module_forward_hook(partial(self._leave_script, names), with_kwargs=True),
            ):
                stack.callback(hook.remove)
            yield

    def _call(self, module: nn.Module, forward: Callable[..., Any], paths: list[str], /, *args: Any, **kwargs: Any) -> Any:
        is_one = isinstance(module, (*MODULES, *ELEMENTWISE_MODULES))
        outer, self._path = self._path, self._name(paths)
        self._quiet += is_one
        try:
            result = forward(*args, **kwargs)
        finally:
            path, self._path = self._path, outer
            self._quiet -= is_one
        if is_one and not self._quiet:
            # A subclass counts by its attributes: it may compute a dilated convolution by other means in its own forward.
            name, options = describe_module(module)
            self._add(name, path, forward, args, kwargs, result, options)
        return result

    def _enter_script(self, module: nn.Module, args: Any) -> None:
        self._quiet += isinstance(module, torch.jit.ScriptModule)

    def _leave_script(self, names: dict[nn.Module, list[str]], module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            self._quiet -= 1
            if not self._quiet:
                self._add("TorchScript", self._name(names[module]), module, args, kwargs, result, {})

    def _name(self, paths: list[str]) -> str:
        """Which of the names of a shared module it is called by: one below the module that calls it, the next at each call."""
        below = tuple(path for path in paths if self._path and path.startswith(self._path + ".")) or tuple(paths)
        turn = self._turns[below] = self._turns.get(below, -1) + 1
        return below[min(turn, len(below) - 1)]

    def called(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Call a function of torch and record it."""
        if self._quiet:
            return function(*args, **kwargs)
        self._quiet += 1
        try:
            result = function(*args, **kwargs)
        finally:
            self._quiet -= 1
        name = function_name(function)
        if name in SIZES:
            return self._sizes(function, args, kwargs, result)
        raw = getattr(function, "__name__", "")
        in_place = bool(args) and (raw == "__setitem__" or (raw.endswith("_") and not raw.endswith("__")))
        written = args[0] if in_place else result
        if _flat(written, Tensor):
            self._add(name, self._path, function, args, kwargs, written, in_place=in_place)
        elif name in READS and any(id(tensor) in self._op_of for tensor in _flat(args, Tensor)):
            self.reads.append(f"{name} in {self._path or 'forward'}")
        return result

    def dispatched(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Call an operation that reached torch's core; record it if nothing that is seen from Python called it."""
        result = function(*args, **kwargs)
        if not self._quiet and _flat(result, Tensor):
            name = function_name(function.overloadpacket)
            self._add(name if name in ELEMENTWISE else "compiled code", self._path, function, args, kwargs, result)
        return result

    def _sizes(self, function: Any, args: Any, kwargs: Any, result: Any) -> Any:
        step = self._keep(function, args, kwargs, False)
        sizes = [_size(size, _Result(step, part)) for part, size in enumerate(_flat(result, int))]
        return torch.Size(sizes) if isinstance(result, torch.Size) else sizes[0]

    def _keep(self, function: Any, args: Any, kwargs: Any, in_place: bool) -> int:
        def refer(value: Any) -> Any:
            return self._results.get(id(value), value) if isinstance(value, Tensor) else value

        self._steps.append(_Step(function, map_aggregate(tuple(args), refer), map_aggregate(dict(kwargs), refer), in_place))
        return len(self._steps) - 1

    def _add(
        self,
        name: str,
        path: str,
        function: Any,
        args: Any,
        kwargs: Any,
        result: Any,
        options: dict[str, Any] | None = None,
        in_place: bool = False,
    ) -> None:
        tensors = _flat(result, Tensor)
        inputs = dict.fromkeys(self._op_of[id(tensor)] for tensor in _flat((args, kwargs), Tensor) if id(tensor) in self._op_of)
        step = self._keep(function, args, kwargs, in_place)
        self._kept.append((args, kwargs, tensors))
        for part, tensor in enumerate(tensors):
            # What is written in place stays the tensor that it was; so is another name for the same (an activation in place).
            if not in_place:
                self._results[id(tensor)] = _Result(step, part)
        if inputs or not self.ops:
            options = describe_call(name, args, kwargs) if options is None else options
            op = Op(name, path, tuple(map(int, tensors[0].shape)), options, list(inputs), step)
            self.ops.append(op)
            for tensor in tensors:
                self._op_of[id(tensor)] = op
                if in_place and tensor._base is not None:
                    self._op_of[id(tensor._base)] = op


class _Functions(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.recorder.called(func, args, kwargs or {})


class _Dispatched(TorchDispatchMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.recorder.dispatched(func, args, kwargs or {})


def _restore(module: nn.Module, forward: Any) -> None:
    del module.forward
    if forward is not None:
        module.forward = forward


def _flat(value: Any, kinds: Any) -> list[Any]:
    """All of `kinds` in nested tuples, lists and dictionaries."""
    if isinstance(value, kinds):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [found for part in value for found in _flat(part, kinds)] if isinstance(value, (tuple, list)) else []
