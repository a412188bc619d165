"""Reading ``.pt2`` files in a third of PyTorch's time."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from threading import Lock
from types import SimpleNamespace
from typing import Any

PARSE = "_parse_sym_expr"
HINTS = "get_type_hints"
_lock = Lock()


@contextmanager
def sizes_parsed_once() -> Iterator[None]:
    """Let `torch.export.load` parse every size once, and evaluate the annotations of every class once.

    PyTorch parses the sizes of all intermediate values, of which few differ, and all parts of each size; and it
    evaluates the annotations of a class for each object of the file.
    """
    from torch._export.serde import serialize  # takes seconds

    plain = getattr(serialize.GraphModuleDeserializer, PARSE, None)
    if plain is None:  # not every version of PyTorch has this private method
        yield
        return

    @wraps(plain)
    def parse(self: Any, expression: Any, hint: Any = None) -> Any:
        parsed = vars(self).setdefault("parsed_sizes", {})
        if (expression, hint) not in parsed:
            parsed[expression, hint] = plain(self, expression, hint)
        return parsed[expression, hint]

    evaluated: dict[tuple[Any, ...], dict[str, Any]] = {}

    def hints(kind: Any, **options: Any) -> dict[str, Any]:
        key = kind, *sorted((name, id(value)) for name, value in options.items())
        if key not in evaluated:
            evaluated[key] = typing.get_type_hints(kind, **options)
        return evaluated[key]

    with _lock:
        setattr(serialize.GraphModuleDeserializer, PARSE, parse)
        vars(serialize)["typing"] = SimpleNamespace(**{**vars(typing), HINTS: hints})
        try:
            yield
        finally:
            setattr(serialize.GraphModuleDeserializer, PARSE, plain)
            vars(serialize)["typing"] = typing
