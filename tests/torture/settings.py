"""Settings and remembered choices with values that cannot be: each is refused by name."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from querybox.data import DataSettings
from querybox.errors import ConfigError
from querybox.models import KINDS
from querybox.settings import Settings, kinds_of
from querybox.training import TrainSettings
from querybox.tuning.choice import Candidate, recall, remember
from torture.case import Case, require
from torture.watch import Attempt, watched

NUMBERS: tuple[object, ...] = (
    True,
    False,
    math.nan,
    math.inf,
    -math.inf,
    10**400,
    -(10**400),
    "nan",
    "three",
    [[]],
    {"a": 1},
)
"""No value of a setting that is a number; nor are those that are lists of numbers."""
CHANGES: dict[str, dict[str, Any]] = {
    "no threads": {"threads": 0},
    "negative threads": {"threads": -1},
    "a billion threads": {"threads": 10**9},
    "threads beyond integers": {"threads": 10**30},
    "threads: true": {"threads": True},
    "an engine without its file": {"engine": "onnx"},
    "a file that PyTorch does not run": {"file": "model.onnx"},
    "a file of another engine": {"engine": "onnx", "file": "model.xml"},
    "PyTorch in int8": {"precision": "int8"},
    "another engine": {"engine": "tensorrt"},
}
"""What somebody may have written to a choice."""


def numbers(folder: Path, long: bool) -> str:
    """Give every numeric setting of a run and of all recipes what is no number."""
    tried = 0
    kinds_of_settings: list[type[Settings]] = [DataSettings, TrainSettings, *KINDS.values()]
    for kind in kinds_of_settings:
        for name, field in kind.model_fields.items():
            kinds = set(kinds_of(field.annotation))
            if not {int, float} & kinds or bool in kinds:
                continue
            for value in NUMBERS:
                tried += 1
                require(is_refused(kind, name, value), f"{kind.__name__}.{name} takes {value!r:.20}")
    return f"{tried} values, each refused with the name of its setting"


def is_refused(kind: type[Settings], name: str, value: object) -> bool:
    """Return whether a value is refused with the name of its setting."""
    try:
        kind.parse({name: value})
    except ConfigError as error:
        return name in str(error)
    return False


def choices(folder: Path, long: bool) -> Iterator[Attempt]:
    """Choices of engines that were changed or damaged."""
    for name, changes in CHANGES.items():
        inside, file, values = chosen(folder / name)
        values["candidate"] |= changes
        file.write_text(json.dumps(values))
        yield Attempt(name=name, read=partial(recall_in, inside), inside=inside)
    for name, text in (("empty", b""), ("cut", None), ("binary", b"\xff\xfe\0"), ("deep", b"[" * 100_000)):
        inside, file, _ = chosen(folder / name)
        file.write_bytes(file.read_bytes()[:40] if text is None else text)
        yield Attempt(name=name, read=partial(recall_in, inside), inside=inside)


def chosen(inside: Path) -> tuple[Path, Path, dict[str, Any]]:
    """Return a new folder with weights and a choice, the file of the choice, and its content."""
    inside.mkdir()
    (inside / "model.safetensors").write_text("weights")
    os.environ["XDG_CACHE_HOME"] = str(inside / "cache")
    candidate = Candidate(engine="torch", threads=1)
    remember(candidate, (64, 64), inside / "model.safetensors", inside / "drafts")
    (file,) = inside.glob("cache/querybox/*/choice.json")
    return inside, file, json.loads(file.read_text())


def recall_in(inside: Path) -> object:
    """Read the choice in a folder."""
    os.environ["XDG_CACHE_HOME"] = str(inside / "cache")
    return recall(inside / "model.safetensors")


CASES = [
    Case(
        name="settings that are not numbers",
        required="refused with the name of the setting; true is not 1",
        run=numbers,
    ),
    Case(
        name="choices of engines that were tampered with",
        required="refused; no other engine is run, no threads without bound",
        run=partial(watched, choices),
    ),
]
