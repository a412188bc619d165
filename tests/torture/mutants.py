"""Mutation testing of the matcher and the criterion: small changes to their code, each of which a test has to notice.

Every mutant is one change of the syntax tree. It is tested in a fork of a process that has imported PyTorch and most of
the package already, so that a mutant costs little more than the tests that it fails.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path

import hypothesis
import pytest
from rich.console import Console

ROOT = Path(__file__).parents[2]
TARGETS = [
    ROOT / "src" / "querybox" / "losses" / f"{name}.py" for name in ("classification", "criterion", "matcher")
]
TESTS = ROOT / "tests" / "losses"
READY = (
    "torchvision",
    "timm",
    "hypothesis",
    "sybil",
    "beartype",
    "accelerate",
    "querybox.data",
    "querybox.modules.decoder",
)
"""What is imported once for all mutants: it knows nothing of what is changed."""
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
WANTED = 0.85

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A file with one change."""

    file: Path
    line: int
    before: str
    after: str
    source: str


def mutants_of(file: Path) -> Iterator[Mutant]:
    """Yield every mutant of a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in code_nodes(tree):
        before = ast.unparse(node)
        for field, value in changes(node):
            kept = getattr(node, field)
            setattr(node, field, value)
            yield Mutant(
                file=file,
                line=getattr(node, "lineno", 0),
                before=before,
                after=ast.unparse(node),
                source=ast.unparse(tree),
            )
            setattr(node, field, kept)


def code_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that are executed: no docstrings, no annotations, no imports."""
    if isinstance(tree, ast.Import | ast.ImportFrom):
        return
    yield tree
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not is_docstring(child):
                yield from code_nodes(child)


def is_docstring(node: ast.AST) -> bool:
    """Tell a string that stands alone."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def changes(node: ast.AST) -> list[tuple[str, object]]:
    """Return in which ways a node is changed: a field of it, and the field's new value."""
    match node:
        case ast.BinOp() | ast.AugAssign() | ast.BoolOp() if type(node.op) in SWAPPED:
            return [("op", SWAPPED[type(node.op)]())]
        case ast.Compare() if type(node.ops[0]) in SWAPPED:
            return [("ops", [SWAPPED[type(node.ops[0])](), *node.ops[1:]])]
        case ast.UnaryOp(op=ast.USub()):
            return [("op", ast.UAdd())]
        case ast.Constant(value=bool(value)):
            return [("value", not value)]
        case ast.Constant(value=int(value) | float(value)):
            return [("value", value + 1)]
        case ast.Constant(value=str(value)):
            return [("value", f"{value}x")]
        case ast.If() | ast.IfExp():
            return [("test", ast.UnaryOp(ast.Not(), node.test))]
        case ast.Call():
            places = range(len(node.keywords))
            return [("keywords", node.keywords[:place] + node.keywords[place + 1 :]) for place in places]
        case ast.FunctionDef(decorator_list=[_, *others]):
            return [("decorator_list", others)]
    return []


def is_noticed(mutant: Mutant | None) -> bool:
    """Run the tests on a mutant, or on the code as it is, in a fork; return whether they fail."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            if mutant is not None:
                replace_source(mutant)
            code = run_tests(mutant)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return status != 0


def run_tests(mutant: Mutant | None) -> int:
    """Run the tests up to the first that fails; those most likely to fail first, before the others are collected."""
    first = [] if mutant is None else [TESTS / f"test_{mutant.file.name}", TESTS / "test_arguments.py"]
    others = [file for file in sorted(TESTS.glob("test_*.py")) if file not in first]
    codes = (pytest.main([*OPTIONS, *map(str, files)]) for files in (first, others) if files)
    return next((int(code) for code in codes if code), 0)


def replace_source(mutant: Mutant) -> None:
    """Let the import of the mutant's file find its changed source."""
    read, stats = SourceFileLoader.get_data, SourceFileLoader.path_stats

    def get_data(loader: SourceFileLoader, path: str) -> bytes:
        return mutant.source.encode() if Path(path) == mutant.file else read(loader, path)

    def path_stats(loader: SourceFileLoader, path: str) -> object:
        if Path(path) == mutant.file:
            raise OSError("so that no compiled file is taken")
        return stats(loader, path)

    SourceFileLoader.get_data = get_data  # type: ignore[method-assign, assignment]
    SourceFileLoader.path_stats = path_stats  # type: ignore[method-assign, assignment]


def main() -> int:
    """Test all mutants, tell which no test noticed; return 1 if these are too many."""
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    importlib.import_module("conftest")  # checks shapes in what is imported from here on
    # Without shrinking: that a test fails is enough.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", deadline=None, derandomize=True, phases=phases)
    hypothesis.settings.load_profile("mutants")
    for name in READY:
        importlib.import_module(name)
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    if is_noticed(None):
        console.print(f"the tests in {TESTS} fail as they are")
        return 1
    count, survivors = 0, []
    for mutant in (mutant for file in TARGETS for mutant in mutants_of(file)):
        count += 1
        if not is_noticed(mutant):
            survivors.append(mutant)
            place = f"{mutant.file.name}:{mutant.line}"
            console.print(f"survived: {place}: {short(mutant.before)} -> {short(mutant.after)}")
    noticed = count - len(survivors)
    console.print(
        f"{noticed} of {count} mutants killed, {noticed / count:.1%}; at least {WANTED:.0%} have to be"
    )
    return int(noticed < WANTED * count)


def short(code: str) -> str:
    """Return code in one line, its beginning."""
    return " ".join(code.split())[:80]


if __name__ == "__main__":
    sys.exit(main())
