"""The map in the docstring of `arrowrb` is held against the code, and so are the house's limits."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import arrowrb

PACKAGE = Path(arrowrb.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
LAZY = {PACKAGE / "__init__.py", PACKAGE / "kernels" / "__init__.py"}
# What goes through the pipe between a process and those that it starts; nothing that lies in a file.
PIPES = {"collector/processes.py", "collector/worker.py"}
MOST_LINES = 420
MOST_FUNCTION_LINES = 70


def read_map() -> list[list[str]]:
    """The rows of the map, from top to bottom, as names of modules and packages."""
    lines = [line for line in (arrowrb.__doc__ or "").splitlines() if line.startswith("    ")]
    return [[name.rstrip("/") for name in line.strip().split("  ")[0].split(", ")] for line in lines]


def unit_of(path: Path) -> str:
    """The part of the house that a file belongs to: a module or a package right below `arrowrb`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def own_imports(path: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name (below `arrowrb`; "" is the package itself) of each import of our own modules."""
    package = [PACKAGE.name, *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import kernels` names modules, `from .rows import Kind` names what is in one.
            names = [f"{module}.{alias.name}" for alias in node.names] if module == PACKAGE.name else [module]
        else:
            continue
        for name in names:
            if name.split(".")[0] == PACKAGE.name:
                yield node.lineno, name.partition(".")[2]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_map_is_complete() -> None:
    listed = [name for row in read_map() for name in row]
    there = {unit_of(path) for path in MODULES} - {"__init__", "__main__"}
    assert len(listed) == len(set(listed))
    assert set(listed) == there


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.parent != PACKAGE or path.stem[0] != "_"], ids=name_of
)
def test_imports_point_down(path: Path) -> None:
    level = {name: number for number, row in enumerate(read_map()) for name in row}
    unit = unit_of(path)
    for line, name in own_imports(path, parse(path)):
        target = name.split(".")[0]
        if target == unit:
            continue
        if not target:
            # The package loads names when they are used; what is below it must not reach up through that.
            assert unit == "cli", f"{path}:{line} imports arrowrb itself"
            continue
        assert level[target] > level[unit], f"{path}:{line} imports {name}, which is not below {unit}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_own_modules_are_not_imported_inside_functions(path: Path) -> None:
    tree = parse(path)
    for function in functions(tree):
        hidden = [f"{path}:{line}: {name or 'arrowrb'}" for line, name in own_imports(path, function)]
        assert not hidden
    called = {
        node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
    }
    assert path in LAZY or "import_module" not in called
    assert "__import__" not in called


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES
    for function in functions(parse(path)):
        # The docstring says what types cannot; it is not what makes a function long.
        first = function.body[1] if ast.get_docstring(function) and len(function.body) > 1 else function.body[0]
        lines = (function.end_lineno or first.lineno) - first.lineno + 1
        assert lines <= MOST_FUNCTION_LINES, f"{path}:{function.lineno} {function.name} has {lines} lines"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_is_asserted_or_unpickled(path: Path) -> None:
    for node in ast.walk(parse(path)):
        assert not isinstance(node, ast.Assert), f"{path}:{node.lineno} asserts; raise an error of ours"
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names = [node.func.id]
        forbidden = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "eval", "exec"}
        if path.relative_to(PACKAGE).as_posix() in PIPES:
            forbidden.remove("cloudpickle")
        assert forbidden.isdisjoint(name.split(".")[0] for name in names), f"{path}: {names}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(parse(path))


HEAVY = {"torch", "numba", "duckdb", "gymnasium", "pandas", "polars", "pyarrow.dataset"}


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import arrowrb", HEAVY | {"numpy", "pyarrow", "typer", "rich"}),
        ("import arrowrb.store", HEAVY | {"typer", "rich"}),
        ("import arrowrb.info", HEAVY | {"typer", "rich"}),
        ("import arrowrb; arrowrb.Schema, arrowrb.Recorder, arrowrb.Uniform", HEAVY),
        ("import arrowrb; arrowrb.Collector, arrowrb.evaluate", HEAVY - {"gymnasium"}),
        ("import arrowrb.cli", HEAVY | {"numpy", "pyarrow"}),
    ],
)
def test_heavy_imports_wait(code: str, absent: set[str]) -> None:
    program = f"import sys\n{code}\nprint(*(set(sys.modules) & {absent!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True, cwd=PACKAGE.parent
    )
    assert done.stdout.split() == []
