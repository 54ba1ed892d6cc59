"""A network from a file, a notebook or a module that anybody wrote."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from config import InputError
from limits.source import definitions_for, module_tree, relative_level
from utils import uncompiled


def load_class(spec: str) -> Callable[..., nn.Module] | nn.Module:
    """The class that `path/to/file.py:Class`, `notebook.ipynb:Class` or `package.module:Class` names.

    A function that returns a network, or a network itself, will do too. Runs the file's top level, with no command-line
    arguments; of a notebook, and of a file that fails so, it runs what the class needs alone.

    Raises InputError where there is no such file, module or class, it cannot be imported, or is no network.
    """
    location, _, name = spec.rpartition(":")
    if not location or not name:
        raise InputError(f"class missing in '{spec}': write FILE.py:CLASS or PACKAGE.MODULE:CLASS")
    path = Path(location)
    try:
        exists, is_file = path.exists(), path.is_file()
    except (OSError, ValueError) as error:
        raise InputError(f"there is no file '{location}': {error}") from error
    if exists and not is_file and not path.is_dir():
        raise InputError(f"'{location}' is not a regular file")
    if not is_file and (exists or path.suffix in (".py", ".ipynb")):
        raise InputError(f"there is no file '{location}'")
    if is_file and path.suffix not in (".py", ".ipynb"):
        raise InputError(f"'{location}' is neither a Python file (.py) nor a notebook (.ipynb)")
    try:
        with _importing_from(path.resolve().parent if is_file else Path.cwd()), _no_arguments(location):
            module = _run_file(path.resolve(), name) if is_file else importlib.import_module(location)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"cannot import '{location}': {_one_line(error)}") from error
    found: Any = getattr(module, name, None)
    is_network = issubclass(found, nn.Module) if inspect.isclass(found) else isinstance(found, nn.Module) or callable(found)
    if not is_network:
        classes = [
            key
            for key, value in vars(module).items()
            if inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__ == module.__name__
        ]
        problem = f"there is no '{name}' in '{location}'" if found is None else f"'{name}' in '{location}' is not an nn.Module"
        others = f"its networks: {', '.join(classes)}" if classes else "the file defines no nn.Module"
        raise InputError(f"{problem}; {others}")
    return found


def load_network(spec: str, num_channels: int = 3, num_classes: int = 10, image_size: tuple[int, int] = (32, 32)) -> nn.Module:
    """A network of the class that `spec` names (see `load_class`).

    Built with num_channels=.., num_classes=.., or the two by position, or num_classes=.., or no arguments, whichever the class
    takes. Raises InputError where none of them gives a network from (2, num_channels, *image_size) images to (2, num_classes)
    logits.
    """
    return build_network(load_class(spec), spec, num_channels, num_classes, image_size)


def build_network(
    found: Callable[..., nn.Module] | nn.Module,
    spec: str,
    num_channels: int,
    num_classes: int,
    image_size: tuple[int, int],
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The network of `load_network`, of what `load_class` found; `options` are more arguments that the class takes."""
    location, _, name = spec.rpartition(":")
    shape = (2, num_channels, *image_size)
    with _no_arguments(location), uncompiled():
        if isinstance(found, nn.Module):
            model, problem = _fitting(name, lambda: found, shape, num_classes)
            if model is not None:
                return model
            raise InputError(problem)
        problem = f"'{name}' takes neither (num_channels, num_classes) nor no arguments"
        if options:
            problem = f"'{name}' does not take num_channels, num_classes, {', '.join(options)}"
        named = {"num_channels": num_channels, "num_classes": num_classes, **(options or {})}
        others: list[tuple[tuple, dict]] = [((num_channels, num_classes), {}), ((), {"num_classes": num_classes}), ((), {})]
        for args, kwargs in [((), named), *([] if options else others)]:
            try:
                call = inspect.signature(found).bind(*args, **kwargs)
            except (TypeError, ValueError):
                continue
            model, problem = _fitting(name, functools.partial(found, *call.args, **call.kwargs), shape, num_classes)
            if model is not None:
                return model
    raise InputError(problem)


def _fitting(
    name: str, build: Callable[[], nn.Module], shape: tuple[int, int, int, int], num_classes: int
) -> tuple[nn.Module | None, str]:
    """The network, or else what is wrong with it."""
    try:
        model = build()
    except (Exception, SystemExit) as error:
        return None, f"'{name}' cannot be built: {_one_line(error)}"
    if not isinstance(model, nn.Module):
        return None, f"'{name}' makes a {type(model).__name__}, not an nn.Module"
    training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(shape))
    except (Exception, SystemExit) as error:
        return None, f"'{name}' fails on images of shape {shape}: {_one_line(error)}"
    if isinstance(logits, Tensor) and logits.shape == (2, num_classes):
        return model.train(training), ""
    result = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    return None, f"'{name}' makes {result} of images of shape {shape}, not logits of shape (2, {num_classes})"


@contextmanager
def _no_arguments(script: str) -> Iterator[None]:
    """A script that parses the command line sees no arguments, rather than those of this program."""
    arguments, sys.argv = sys.argv, [script]
    try:
        yield
    finally:
        sys.argv = arguments


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


def _run_file(path: Path, name: str) -> ModuleType:
    """Run a file or notebook as a module: all of it, or only what `name` needs where it is a notebook or all of it fails."""
    tree = module_tree(path)
    package = _make_packages(path, relative_level(tree))
    module_name = f"{package}.{path.stem}" if package else f"checked_{path.stem}"
    if path.suffix == ".ipynb":
        return _run(compile(definitions_for(name, tree, path.name), path, "exec"), module_name, path)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            module = _run(compile(tree, path, "exec"), module_name, path)
    except (Exception, SystemExit) as error:
        why = _one_line(error)
        if isinstance(error, SystemExit) and said.getvalue().strip():  # argparse says why in the last line that it writes
            why = f"SystemExit: {said.getvalue().strip().splitlines()[-1]}"
        try:
            module = _run(compile(definitions_for(name, tree, path.name), path, "exec"), module_name, path)
        except (Exception, SystemExit):
            hint = " (put what is not for importers below `if __name__ == '__main__':`)" if isinstance(error, SystemExit) else ""
            raise InputError(f"cannot import '{path.name}': {why}{hint}") from error
        print(f"note: {path.name} cannot be run whole ({why}): only what {name} needs was run", file=sys.stderr)
    else:
        sys.stderr.write(said.getvalue())
    return module


def _run(code: CodeType, name: str, path: Path) -> ModuleType:
    module = ModuleType(name)
    module.__file__ = str(path)
    module.__package__ = name.rpartition(".")[0]
    sys.modules[name] = module  # dataclasses and pickle look the module up there
    exec(code, vars(module))
    return module


def _make_packages(path: Path, level: int) -> str:
    """Make packages of the folders above a file that relative imports of that level need; returns the name of the innermost."""
    folders = list(reversed(path.parents[:level]))
    for depth, folder in enumerate(folders):
        name = ".".join(["checked_package", *(part.name for part in folders[1 : depth + 1])])
        start = folder / "__init__.py"
        spec = importlib.util.spec_from_file_location(name, start, submodule_search_locations=[str(folder)])
        assert spec is not None  # there always is one for a name that ends in .py
        if not start.is_file():
            spec.loader = None
        for old in [old for old in sys.modules if old == name or old.startswith(name + ".")]:
            del sys.modules[old]
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        if spec.loader:
            spec.loader.exec_module(module)
    return ".".join(["checked_package", *(folder.name for folder in folders[1:])]) if folders else ""


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
