"""Shapes are types: under test, every annotated function and dataclass of querybox checks what it is given.

The root `conftest.py` installs jaxtyping's import hook with `check`, so `Float[Tensor, "B Q 4"]` is enforced
wherever it is written, and B means the same number throughout one call. Users never pay for this.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from beartype import BeartypeConf, beartype

CONF = BeartypeConf(is_pep484_tower=True)  # an int is a fine float, as it is to mypy
F = TypeVar("F", bound=Callable[..., Any])
SELF = re.compile(r"\bSelf\b")


def check(function: F) -> F:
    """Check `function` with beartype, all but annotations of `Self`.

    beartype knows `Self` only inside classes that it decorates whole; jaxtyping hands it single methods.
    """
    annotations = function.__annotations__
    for name in [name for name, hint in annotations.items() if SELF.search(str(hint))]:
        del annotations[name]
    return beartype(function, conf=CONF)
