"""Makes the project's modules importable for this package alone, under names that clash with nobody's.

`images.data` becomes `convsprint.project.images.data`: this module is a package whose folder is the project's root. In the files
of the project, and in this package's other ones, `import images.data` finds that one, because they run with an `__import__` of
their own. Everybody else's imports are as ever.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
__path__ = [str(ROOT)]
FILES = ("config", "model", "training", "transform", "utils")
FOLDERS = ("commands", "images", "lab", "learning", "limits", "results")

missing = [name for name in (*(f"{file}.py" for file in FILES), *FOLDERS) if not (ROOT / name).exists()]
if missing:
    raise ImportError(f"convsprint needs the files of its repository, and {missing[0]} is not in {ROOT}: pip install -e REPOSITORY")


def _import(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """`__import__` for the files of the project: their own modules under this package's name, others as ever."""
    top = name.partition(".")[0]
    if level or top not in (*FILES, *FOLDERS):
        return builtins.__import__(name, globals, locals, fromlist or (), level)
    module = importlib.import_module(f"{__name__}.{name}")
    if not fromlist:
        return importlib.import_module(f"{__name__}.{top}")
    for each in fromlist:  # `from results import report` names a module or something in one
        if hasattr(module, "__path__") and not hasattr(module, each) and importlib.util.find_spec(f"{module.__name__}.{each}"):
            importlib.import_module(f"{module.__name__}.{each}")
    return module


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _import}
        super().exec_module(module)


class _Finder:
    """Finds the project's modules below this one, and this package's that import them."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(f"{__name__}.") and name not in ("convsprint.network", "convsprint.fitting"):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


sys.meta_path.insert(0, _Finder())
