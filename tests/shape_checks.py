"""Shapes are types: under test, every annotated function and dataclass of querybox checks what it is given.

`install` installs jaxtyping's import hook with `check`, so `Float[Tensor, "B Q 4"]` is enforced wherever it is written,
and B means the same number throughout one call. Users never pay for this.
"""

from __future__ import annotations

import builtins
import re
import sys
from collections.abc import Callable, Hashable
from dataclasses import is_dataclass
from functools import wraps
from inspect import isgeneratorfunction
from itertools import chain
from types import CodeType, FunctionType
from typing import Any, TypeVar, cast, get_args
from unittest import mock

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import TypeCheckError, jaxtyped
from torch import Tensor

CONF = BeartypeConf(
    is_pep484_tower=True, violation_type=TypeCheckError
)  # an int is a fine float, as it is to mypy
SCOPE: Any = jaxtyped("context")
"""Within it axes of one name have one size."""
CHECKED: set[Hashable] = set()
"""Calls that were checked in this test: the function, and the types and shapes of its arguments."""
LONG = 32
"""Number of items from which on those of lists and tuples are not told apart."""
CLOSURES: dict[CodeType, bool] = {}
"""Whether closures with this code have shapes in their annotations."""
F = TypeVar("F", bound=Callable[..., Any])


def install() -> None:
    """Have querybox checked once it is imported, which nothing may have done before."""
    assert "querybox" not in sys.modules

    def decorator(**_: object) -> Callable[[Any], Any]:
        return decorate

    mock.patch.object(jaxtyping, "jaxtyped", decorator).start()  # which the hook decorates with
    jaxtyping.install_import_hook("querybox", "shape_checks.check")


def decorate(checked: Any) -> Any:
    """Check a function, or what a dataclass is made of."""
    if is_kernel(checked):
        return checked
    if isinstance(checked, type):
        if is_dataclass(checked):
            checked.__init__ = with_shapes(checked.__init__)  # type: ignore[method-assign]
        return checked
    if is_closure(checked):
        return jaxtyped(typechecker=check)(checked) if is_closure_with_shapes(checked) else checked
    if is_without_shapes(checked):
        return check(checked)
    return jaxtyped(typechecker=check)(checked) if is_special(checked) else with_shapes(checked)


def with_shapes(function: F) -> F:
    """Check `function` with beartype in a scope of its own, once in a test for arguments of the same types and shapes.

    So does `jaxtyped`, in twice the time: it checks arguments before the call, and again with the result.
    """
    checked = check(function)

    @wraps(function)
    def scoped(*arguments: Any, **keywords: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable or was_checked(
            (function, *map(kind, arguments), *map(kind, keywords.values()))
        ):
            return function(*arguments, **keywords)
        with SCOPE:
            return checked(*arguments, **keywords)

    return cast("F", scoped)


def kind(argument: object) -> Hashable:
    """Return what annotations say of an argument, except for the items of long collections."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.shape
    if isinstance(argument, list | tuple) and len(argument) < LONG:
        return type(argument), *map(kind, argument)
    return cast("Hashable", type(argument))


def was_checked(call: Hashable) -> bool:
    """Return whether a call was checked in this test, and take it as checked from now on."""
    try:
        if call in CHECKED:
            return True
        CHECKED.add(call)
    except TypeError:  # a size is a symbol of a trace, which cannot be hashed
        pass
    return False


def is_kernel(checked: object) -> bool:
    """Whether `checked` is a function that Triton compiles, from its source and what that refers to."""
    return isinstance(checked, FunctionType) and "tl.tensor" in checked.__annotations__.values()


def is_closure(function: FunctionType) -> bool:
    """Whether `function` refers to more than its class and globals.

    Beartype keeps what it decorates, and thus what that refers to, such as mapped files of exported models.
    """
    return not {"__class__"}.issuperset(function.__code__.co_freevars)


def is_closure_with_shapes(function: FunctionType) -> bool:
    """Whether a closure has shapes in annotations; decorating others in every call that defines them does not pay."""
    if function.__code__ not in CLOSURES:
        names = {**vars(builtins), **function.__globals__}
        found = chain.from_iterable(map(names_in, function.__annotations__.values()))
        CLOSURES[function.__code__] = any(name not in names or has_shapes(names[name]) for name in found)
    return CLOSURES[function.__code__]


def is_special(function: FunctionType) -> bool:
    """Whether `function` is a generator, or sizes in its annotations are computed from its arguments."""
    return isgeneratorfunction(function) or any(
        "{" in str(hint) for hint in function.__annotations__.values()
    )


def is_without_shapes(checked: object) -> bool:
    """Whether `checked` is a function whose annotations have no shapes, as far as can be told before it is called.

    Functions that refer to their class do not count, so that tests can switch off the checks of constructors.
    """
    if not isinstance(checked, FunctionType) or checked.__closure__:
        return False
    names = {**vars(builtins), **checked.__globals__}
    return all(
        name in names and not has_shapes(names[name])
        for hint in checked.__annotations__.values()
        for name in names_in(hint)
    )


def has_shapes(hint: Any) -> bool:
    """Whether a type, such as an alias of another one, has shapes in it."""
    of_jaxtyping = str(getattr(hint, "__module__", "")).partition(".")[0] == "jaxtyping"
    return of_jaxtyping or any(map(has_shapes, get_args(hint)))


def check(function: F) -> F:
    """Check `function` with beartype, all but annotations with names that do not exist when it is defined.

    These are names imported for type checkers alone, classes that come later in the file, and `Self`, which beartype
    knows only inside classes that it decorates whole.
    """
    annotations = function.__annotations__
    existing = (vars(builtins).keys() | function.__globals__.keys()) - {"Self"}
    for name in [name for name, hint in annotations.items() if not existing.issuperset(names_in(hint))]:
        del annotations[name]
    return beartype(conf=CONF)(function)


def names_in(hint: object) -> list[str]:
    """Return the names in an annotation, of those with a dot the first part, without keywords and what is quoted."""
    text = hint if isinstance(hint, str) else "Self" * ("typing.Self" in str(hint))
    return re.findall(r"(?<![\w.])[A-Za-z_]\w*\b(?!=)", re.sub(r"'[^']*'", "", text))
