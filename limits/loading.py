"""A network from a file, a notebook or a module that anybody wrote."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from config import InputError


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
    try:
        yield
    finally:
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
