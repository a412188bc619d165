"""Runs that crash where a test says, and what two runs came to."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor


class Crash(BaseException):
    """Ends a run where it is raised."""


def weights(folder: Path, name: str = "checkpoint") -> dict[str, Tensor]:
    return load_file(folder / f"{name}.safetensors")


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {name: value for name, value in row.items() if "second" not in name}
            for row in csv.DictReader(file)
        ]


def same(folder: Path, expected: Path, *names: str) -> None:
    """Hold one run's files against another's."""
    for name in names:
        torch.testing.assert_close(weights(folder, name), weights(expected, name), rtol=0, atol=0)
    assert rows(folder) == rows(expected)


def crash_in(monkeypatch: pytest.MonkeyPatch, place: type, name: str, call: int) -> None:
    """Crash in the n-th call of a method, 1, 2, ..."""
    method, calls = getattr(place, name), []

    def crashing(*arguments: Any, **keywords: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            raise Crash
        return method(*arguments, **keywords)

    monkeypatch.setattr(place, name, crashing)
