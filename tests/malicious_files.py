"""Weight files made to do harm: what they hold, and the formats it is written in."""

from __future__ import annotations

import argparse
import collections
import ctypes
import io
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

CANARY = "executed"
"""A file of this name in the working folder tells that something ran."""
CODE = f"__import__('pathlib').Path('{CANARY}').touch()"


class Call:
    """Pickled, it is a call that unpickling makes."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call

    def __call__(self) -> None:
        """So that what a call returns can be called."""


def harm() -> Call:
    return Call(os.system, f"touch {CANARY}")


def with_attributes(value: Any, **attributes: object) -> Any:
    vars(value).update(attributes)
    return value


def nested_pickle() -> Call:
    """Bytes that torch unpickles without any care when it is asked to."""
    content = io.BytesIO()
    torch.save(harm(), content)
    return Call(torch.storage._load_from_bytes, content.getvalue())


def good() -> dict[str, Any]:
    return {"weight": torch.ones(3)}


OBJECTS: dict[str, Callable[[], Any]] = {
    "system": harm,
    "eval": lambda: Call(eval, CODE),
    "exec": lambda: Call(exec, CODE),
    "open": lambda: Call(open, CANARY, "w"),
    "import": lambda: Call(__import__, "antigravity"),
    "subprocess": lambda: Call(subprocess.check_output, ["touch", CANARY]),
    "mkdir": lambda: Call(Path.mkdir, Path(CANARY)),
    "a tensor among others": lambda: {**good(), "bias": harm()},
    "a name": lambda: {**good(), (1, harm()): torch.ones(1)},
    "model": lambda: {"model": {**good(), "bias": harm()}},
    "state_dict": lambda: {"state_dict": harm()},
    "optimizer": lambda: {"model": good(), "optimizer": {"state": [harm()]}},
    "options": lambda: {"model": good(), "args": argparse.Namespace(lr=harm())},
    "meta": lambda: {"state_dict": good(), "meta": {"CLASSES": harm()}},
    "attribute of an ordered dict": lambda: with_attributes(
        collections.OrderedDict(good()), _metadata=harm()
    ),
    "attribute of a parameter": lambda: with_attributes(nn.Parameter(torch.ones(2)), extra=harm()),
    "hooks of a tensor": lambda: with_attributes(torch.ones(2), _backward_hooks=harm()),
    "torch.load in a pickle": nested_pickle,
    "torch.load": lambda: Call(torch.load, "inner.pth", None, None),
    "torch.hub": lambda: Call(torch.hub.load, ".", "run", "local"),
    "a library": lambda: Call(ctypes.CDLL, "inner.so"),
    "type rebuilt by any function": lambda: Call(
        torch._tensor._rebuild_from_type_v2, os.system, torch.Tensor, (f"touch {CANARY}",), {}
    ),
    "methods through getattr": lambda: Call(Call(getattr, Path, "touch"), Path(CANARY)),
    "getattr of an allowed name": lambda: {
        "model": good(),
        "args": Call(Call(getattr, argparse.Namespace, "__init__"), CANARY),
    },
    "a module": lambda: nn.Linear(2, 2),
    "not data": lambda: good,
}
"""What a file may hold, freshly made."""


def as_zip(content: Any, path: Path) -> None:
    torch.save(content, path)


def as_zip_of_protocol_4(content: Any, path: Path) -> None:
    torch.save(content, path, pickle_protocol=4)


def as_legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


FORMATS = [as_zip, as_zip_of_protocol_4, as_legacy, as_pickle]

PLACES = (
    *(
        "..",
        "",
        "/etc/passwd",
        "http://127.0.0.1:9/w.safetensors",
        "model.safetensors.index.json",
        "absent.bin",
    ),
    *(3, None),
)
"""What an index may give for the file of a tensor that is none beside it."""
HEADERS = tuple(
    (length or len(header)).to_bytes(8, "little") + header
    for header in (b'{"w":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,399999999996]}}', b'{"w":')
    for length in (None, 2**40, 2**63 + 1)
)
"""Safetensors files whose headers state sizes that they do not have."""
