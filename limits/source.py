"""Python source, of a file or the cells of a notebook, and the part of it that one name needs."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from config import InputError


def module_tree(path: Path) -> ast.Module:
    """The syntax tree of a Python file, or of the code cells of a notebook as one; cells that are not Python are left out.

    Raises InputError where a notebook is none, SyntaxError, OSError or ValueError where the file cannot be read.
    """
    if path.suffix != ".ipynb":
        return ast.parse(path.read_bytes(), str(path))
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"'{path.name}' is not a notebook of format 4: save it again with Jupyter") from error
    body: list[ast.stmt] = []
    for source in sources:
        lines = ["" if line.lstrip().startswith(("%", "!", "?")) else line for line in source.splitlines()]
        try:
            body += ast.parse("\n".join(lines)).body
        except SyntaxError:  # another language, or a line of the shell
            continue
    return ast.Module(body, [])


def relative_level(tree: ast.Module) -> int:
    """How many folders up the relative imports reach: 1 for `from .blocks import Block`, 0 where there are none."""
    return max((node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)), default=0)


def definitions_for(name: str, tree: ast.Module, file_name: str) -> ast.Module:
    """The statements of the top level that define `name`, and all that these use, in their order.

    Training loops, downloads and parsers of arguments, which a network does not use, are not among them. Raises InputError where
    nothing defines `name`.
    """
    statements = [statement for statement in tree.body if not _is_main_guard(statement)]
    defined = [_defines(statement) for statement in statements]
    if not any(name in names for names in defined):
        classes = [statement.name for statement in statements if isinstance(statement, ast.ClassDef)]
        raise InputError(f"there is no '{name}' in '{file_name}'; its classes: {', '.join(classes) or 'none'}")
    # Imports of everything, and where imports look, hold for all that follows.
    kept = {i for i, statement in enumerate(statements) if "*" in defined[i] or "sys.path" in ast.unparse(statement)}
    wanted = [name] + [used for i in kept for used in _uses(statements[i])]
    known = set(wanted)
    for used in wanted:
        for i, names in enumerate(defined):
            if used in names and i not in kept:
                kept.add(i)
                new = _uses(statements[i]) - known
                known |= new
                wanted += sorted(new)
    return ast.Module([statements[i] for i in sorted(kept)], [])


def _is_main_guard(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and "__name__" in _uses(statement.test)


def _uses(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)}


def _defines(statement: ast.AST) -> set[str]:
    """The names that a statement of the top level gives a meaning, also inside of its `if`, `try`, `for` or `with`."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {statement.name}
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
            return {"*"}
        return {(alias.asname or alias.name).partition(".")[0] for alias in statement.names}
    if isinstance(statement, ast.Name):
        return {statement.id} if isinstance(statement.ctx, ast.Store) else set()
    return {name for child in ast.iter_child_nodes(statement) for name in _defines(child)}
