"""Reading ``.pt2`` files in half of PyTorch's time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from threading import Lock
from typing import Any

PARSE = "_parse_sym_expr"
_lock = Lock()


@contextmanager
def sizes_parsed_once() -> Iterator[None]:
    """Let `torch.export.load` parse every size once.

    PyTorch parses the sizes of all intermediate values, of which few differ, and all parts of each size.
    """
    from torch._export.serde.serialize import GraphModuleDeserializer  # takes seconds

    plain = getattr(GraphModuleDeserializer, PARSE, None)
    if plain is None:  # not every version of PyTorch has this private method
        yield
        return

    @wraps(plain)
    def parse(self: Any, expression: Any, hint: Any = None) -> Any:
        parsed = vars(self).setdefault("parsed_sizes", {})
        if (expression, hint) not in parsed:
            parsed[expression, hint] = plain(self, expression, hint)
        return parsed[expression, hint]

    with _lock:
        setattr(GraphModuleDeserializer, PARSE, parse)
        try:
            yield
        finally:
            setattr(GraphModuleDeserializer, PARSE, plain)
