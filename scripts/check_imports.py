"""Check the directions of imports in the packages, by reading them; nothing is imported.

The rules:
- splitlearn_core and splitlearn_comm import no sibling; splitlearn_manager imports both.
- splitlearn imports splitlearn_core. The other two it reaches only from functions, so that it works where they are not
  installed: a module of it may import them at its top, when every way to that module leads through a function.
- splitlearn_core knows no network (no grpc), splitlearn_comm knows no model (no transformers).
- No import cycles within a package.
- No imports inside functions, but in splitlearn, and for an optional extra (in a `try` that catches ImportError, or
  an `if` that asks find_spec).

`if TYPE_CHECKING:` blocks never run, so they are not looked at. Exit status 1, and one line for each breach.
"""

import argparse
import ast
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What one package may not import, by top-level name."""

    never: frozenset[str]
    """Not anywhere."""
    only_from_functions: frozenset[str] = frozenset()
    """Not while one of `entries` is imported."""
    entries: frozenset[str] = frozenset()
    """The modules that people import, beside the packages themselves and `__main__`."""
    is_front_door: bool = False
    """Whether functions may import whatever they need."""


RULES = {
    "splitlearn_core": Rule(never=frozenset({"splitlearn", "splitlearn_comm", "splitlearn_manager", "grpc"})),
    "splitlearn_comm": Rule(never=frozenset({"splitlearn", "splitlearn_core", "splitlearn_manager", "transformers"})),
    "splitlearn_manager": Rule(never=frozenset({"splitlearn"})),
    "splitlearn": Rule(
        never=frozenset(),
        only_from_functions=frozenset({"splitlearn_comm", "splitlearn_manager"}),
        entries=frozenset({"splitlearn.quickstart", "splitlearn.training"}),
        is_front_door=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Module:
    """One source file of a package."""

    name: str
    """Dotted name; a package's `__init__` has the package's own."""
    path: Path
    is_package: bool


@dataclass(frozen=True, kw_only=True)
class Import:
    """One name that a module imports, by absolute dotted name."""

    target: str
    """`a.b.c` for `import a.b.c`, for `from a.b import c` and for `import_module("a.b.c")`."""
    line: int
    in_function: bool
    is_guarded: bool
    """Whether a missing module is caught: an optional extra."""


def find_modules(source_dir: Path, package: str) -> list[Module]:
    """List the modules of `package` below `source_dir`, in the order of their paths."""
    modules = []
    for path in sorted((source_dir / package).rglob("*.py")):
        parts = list(path.relative_to(source_dir).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        modules.append(Module(name=".".join(parts[:-1] if is_package else parts), path=path, is_package=is_package))
    return modules


def read_imports(module: Module) -> list[Import]:
    """List what `module` imports when it runs."""
    tree = ast.parse(module.path.read_text(encoding="utf-8"), filename=str(module.path))
    return list(_walk(tree, module, in_function=False, is_guarded=False))


def _walk(node: ast.AST, module: Module, *, in_function: bool, is_guarded: bool) -> Iterator[Import]:
    for target in _targets(node, module):
        assert isinstance(node, ast.stmt | ast.expr)  # what has targets has a line
        yield Import(target=target, line=node.lineno, in_function=in_function, is_guarded=is_guarded)
    in_function = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    guarded = _guarded_children(node)
    for child in _children(node):
        yield from _walk(child, module, in_function=in_function, is_guarded=is_guarded or child in guarded)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.If) and _names(node.test) & {"TYPE_CHECKING"}:
        yield from node.orelse
    else:
        yield from ast.iter_child_nodes(node)


def _targets(node: ast.AST, module: Module) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(names=names):
            source = _absolute(node, module)
            return [f"{source}.{alias.name}" for alias in names]
        case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
            return [name] if _names(function) & {"import_module", "__import__"} else []
    return []


def _absolute(node: ast.ImportFrom, module: Module) -> str:
    if not node.level:
        return node.module or ""
    above = node.level - 1 if module.is_package else node.level
    parts = module.name.split(".")
    base = parts[: len(parts) - above]
    return ".".join([*base, node.module] if node.module else base)


def _names(node: ast.AST) -> set[str]:
    """Collect the plain names in an expression: the `a` and `b` of `a.b`."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            found.add(part.id)
        elif isinstance(part, ast.Attribute):
            found.add(part.attr)
    return found


def _guarded_children(node: ast.AST) -> list[ast.stmt]:
    """List the statements that are ready for a module that is not installed."""
    if isinstance(node, ast.If) and "find_spec" in _names(node.test):
        return node.body
    if isinstance(node, ast.Try):
        caught = {name for handler in node.handlers if handler.type for name in _names(handler.type)}
        return node.body if caught & {"ImportError", "ModuleNotFoundError"} else []
    return []


def check_import(module: Module, found: Import, way: str | None) -> str | None:
    """Say which rule one import breaks, or None; `way` leads to the module from its package's entry, if one does."""
    package = module.name.partition(".")[0]
    rule = RULES[package]
    top = found.target.partition(".")[0]
    if top in rule.never:
        return f"{package} may not import {top}"
    if top in rule.only_from_functions and way and not found.in_function:
        return (
            f"{package} may import {top} only inside the function that needs it, or in a module imported there: {way}"
        )
    if found.in_function and not found.is_guarded and not rule.is_front_door:
        return f"import of {found.target} inside a function: move it to the top, or catch ImportError for an extra"
    return None


def find_cycle(imports: dict[str, list[Import]]) -> list[str] | None:
    """Find one import cycle among modules, as a path that ends where it began; `imports` is keyed by module name.

    Only imports at module level count, and only what is named: that `import a.b` runs `a/__init__` as well would make
    a cycle of every package that exports its parts.
    """
    graph = {name: _imported_modules(name, imports) - {name} for name in imports}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        path: list[str] = error.args[1]
        return path[::-1]  # the sorter names predecessors first; people read "a imports b"
    return None


def find_reached(package: str, modules: list[Module], imports: dict[str, list[Import]]) -> dict[str, str]:
    """Find the modules of `package` that run when one of its entries is imported, each with the way to it."""
    entries = RULES[package].entries
    starts = [m.name for m in modules if m.is_package or m.path.stem == "__main__" or m.name in entries]
    reached = {name: name for name in starts}
    waiting = deque(starts)
    while waiting:
        name = waiting.popleft()
        for imported in sorted(_imported_modules(name, imports) - reached.keys()):
            reached[imported] = f"{reached[name]} -> {imported}"
            waiting.append(imported)
    return reached


def _imported_modules(name: str, imports: dict[str, list[Import]]) -> set[str]:
    """List the modules of the same package that module `name` imports at its top."""
    owners = (_owner(found.target, imports) for found in imports[name] if not found.in_function)
    return {owner for owner in owners if owner is not None}


def _owner(target: str, modules: dict[str, list[Import]]) -> str | None:
    """Name the module that `target` is, or is in."""
    if target in modules:
        return target
    parent = target.rpartition(".")[0]
    return parent if parent in modules else None


def check_package(source_dir: Path, package: str) -> list[str]:
    """List the breaches of the rules in one package, a line each."""
    modules = find_modules(source_dir, package)
    imports = {module.name: read_imports(module) for module in modules}
    reached = find_reached(package, modules, imports)
    breaches = []
    for module in modules:
        for found in imports[module.name]:
            message = check_import(module, found, reached.get(module.name))
            if message:
                breaches.append(f"{module.path}:{found.line}: {message}")
    cycle = find_cycle(imports)
    if cycle:
        breaches.append(f"{source_dir / package}: import cycle: {' -> '.join(cycle)}")
    return list(dict.fromkeys(breaches))  # one line for `from a import b, c`


def find_packages(root: Path) -> list[tuple[Path, str]]:
    """List (source directory, package) for each package that has a rule; ValueError for one without."""
    found = [(path.parent.parent, path.parent.name) for path in sorted(root.glob("*/src/*/__init__.py"))]
    unknown = sorted({package for _, package in found} - set(RULES))
    if unknown:
        raise ValueError(f"no rule for the package {', '.join(unknown)}: add one to RULES in {Path(__file__).name}")
    return found


def main() -> int:
    """Check every package below the root; the exit status."""
    parser = argparse.ArgumentParser(description="Check the directions of imports in the packages.")
    parser.add_argument("root", nargs="?", type=Path, default=ROOT, help="where */src/* are (default: this repository)")
    root = parser.parse_args().root
    packages = find_packages(root)
    breaches = [line for source_dir, package in packages for line in check_package(source_dir, package)]
    print(*breaches, sep="\n", end="\n" if breaches else "")
    print(f"imports: {len(packages)} packages, {len(breaches)} breaches", file=sys.stderr)
    return 1 if breaches or not packages else 0


if __name__ == "__main__":
    sys.exit(main())
