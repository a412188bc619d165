"""Runtimes report nothing about their use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from programs import run_program

from querybox.exporting.telemetry import ONNX_RUNTIME, without_telemetry

SCRIPT = """
import sys
from pathlib import Path
from querybox.errors import CheckpointError
from querybox.exporting import onnx
assert "onnxruntime" not in sys.modules
try:
    onnx.load(Path("none.onnx"))
except CheckpointError:
    sys.exit("onnxruntime" not in sys.modules)
"""


def test_onnx_runtime_leaves_no_identifier(tmp_path: Path) -> None:
    removed = dict.fromkeys(("CI", ONNX_RUNTIME))
    places = dict.fromkeys(("HOME", "XDG_CACHE_HOME"), str(tmp_path))
    run_program(SCRIPT, tmp_path, environment={**removed, **places})
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name or path.name == "deviceid"]


@pytest.mark.parametrize("given", [None, "0"])
def test_a_value_of_the_user_is_kept(monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    monkeypatch.delenv(ONNX_RUNTIME, raising=False)
    if given is not None:
        monkeypatch.setenv(ONNX_RUNTIME, given)
    with without_telemetry():
        assert os.environ[ONNX_RUNTIME] == (given or "1")
    assert os.environ.get(ONNX_RUNTIME) == given
