"""Shapes are types: under test, every annotated function and dataclass of querybox checks what it is given.

`install` installs jaxtyping's import hook with `check`, so `Float[Tensor, "B Q 4"]` is enforced wherever it is written,
and B means the same number throughout one call. Users never pay for this.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar, get_args
from unittest import mock

import jaxtyping
from beartype import BeartypeConf, beartype

CONF = BeartypeConf(is_pep484_tower=True)  # an int is a fine float, as it is to mypy
F = TypeVar("F", bound=Callable[..., Any])


def install() -> None:
    """Have querybox checked once it is imported, which nothing may have done before."""
    assert "querybox" not in sys.modules
    jaxtyped = jaxtyping.jaxtyped

    def decorate(*, typechecker: Callable[[F], F]) -> Callable[[Any], Any]:
        with_shapes = jaxtyped(typechecker=typechecker)

        def decorated(checked: Any) -> Any:
            if is_kernel(checked):
                return checked
            return check(checked) if is_without_shapes(checked) else with_shapes(checked)

        return decorated

    # The hook decorates with this. Its bookkeeping of shapes costs many times what beartype does.
    mock.patch.object(jaxtyping, "jaxtyped", decorate).start()
    jaxtyping.install_import_hook("querybox", "shape_checks.check")


def is_kernel(checked: object) -> bool:
    """Whether `checked` is a function that Triton compiles, from its source and what that refers to."""
    return isinstance(checked, FunctionType) and "tl.tensor" in checked.__annotations__.values()


def is_without_shapes(checked: object) -> bool:
    """Whether `checked` is a function whose annotations have no shapes, as far as can be told before it is called.

    Closures do not count: beartype keeps them, and thus what they refer to, such as mapped files of exported models.
    """
    if not isinstance(checked, FunctionType) or checked.__closure__:
        return False
    words = {
        word for hint in checked.__annotations__.values() for word in re.findall(r"\b[A-Za-z_]\w*", str(hint))
    }
    names = {**vars(builtins), **checked.__globals__}
    return all(word in names and not has_shapes(names[word]) for word in words)


def has_shapes(hint: Any) -> bool:
    """Whether a type, such as an alias of another one, has shapes in it."""
    of_jaxtyping = str(getattr(hint, "__module__", "")).partition(".")[0] == "jaxtyping"
    return of_jaxtyping or any(map(has_shapes, get_args(hint)))


def check(function: F) -> F:
    """Check `function` with beartype, all but annotations that do not exist at run time.

    These are names imported for type checkers alone, and `Self`, which beartype knows only inside classes
    that it decorates whole; jaxtyping hands it single methods.
    """
    absent = {"Self", *typing_only(sys.modules[function.__module__].__file__ or "")}
    annotations = function.__annotations__
    for name in [
        name for name, hint in annotations.items() if absent.intersection(re.findall(r"\w+", str(hint)))
    ]:
        del annotations[name]
    return beartype(conf=CONF)(function)


@cache
def typing_only(path: str) -> frozenset[str]:
    """Names that the module at `path` imports under ``if TYPE_CHECKING``."""
    branches = [
        node.body
        for node in ast.parse(Path(path).read_text()).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    imports = [node for body in branches for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    return frozenset(alias.asname or alias.name for node in imports for alias in node.names)
