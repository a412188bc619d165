from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import save_detector

from querybox.tuning import machine, search
from querybox.tuning.choice import Candidate
from querybox.tuning.machine import Machine

HERE = Machine(processor="one", cores=4, device="cpu", packages={"torch": "2.8", "openvino": None})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of choices, which is empty, on a machine that does not change."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(machine.Machine, "here", lambda: HERE)
    return tmp_path / "cache" / "querybox"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A saved detector with random weights."""
    return save_detector(tmp_path / "model.safetensors", 64, 96)


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuning measures the engines of PyTorch alone, for a moment, with one thread."""
    monkeypatch.setattr(search, "SECONDS", 0.0)
    monkeypatch.setattr(search, "thread_counts", lambda: [1])
    monkeypatch.setattr(search, "candidates", lambda *_: [Candidate(engine="torch", threads=1)])
