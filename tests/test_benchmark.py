from __future__ import annotations

import io
import json
import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, call

import pytest
import torch
from programs import new_processes
from rich.console import Console
from tiny_models import TINY

from querybox import benchmark as module
from querybox.benchmark import (
    BenchmarkResult,
    EngineResult,
    benchmark,
    count_flops,
    engines_of,
    measure,
    photo_size,
    take_samples,
)
from querybox.cli import main
from querybox.cli.benchmark import results_table
from querybox.detector import Detector
from querybox.errors import CheckpointError, ConfigError
from querybox.structures import Preprocessing


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    detector = Detector.from_recipe("detr_r50", num_classes=3, **TINY)
    detector.preprocessing = Preprocessing(short_side=60, long_side=100)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    detector.save(path)
    return path


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_SECONDS", 0.0)


def test_photos_keep_their_proportions() -> None:
    assert photo_size(Preprocessing()) == (800, 1066)
    assert photo_size(Preprocessing(short_side=100, long_side=120)) == (90, 120)
    assert photo_size(Preprocessing(resizing="mmdet")) == (800, 1067)  # rounded, not truncated


def test_flops_follow_from_shapes(model: Path) -> None:
    detector = Detector.load(model)
    small, large = count_flops(detector, (64, 64)), count_flops(detector, (128, 128))
    assert 3.5 * small < large < 4.5 * small
    assert detector.device.type == "cpu"  # the detector itself is as it was


def test_pauses_count_as_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fast models most of the time is pauses, and measuring would take many times as long as stated."""
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep, perf_counter=lambda: clock.now))
    passed: list[float] = []
    works = [lambda: sleep(0.001), lambda: sleep(0.002)]
    samples = take_samples(works, 3.0, passed.append)
    assert clock.now == pytest.approx(3.0, abs=0.2)
    assert passed[-1] == pytest.approx(clock.now - 0.003)
    assert all(each == pytest.approx([each[0]] * len(each)) for each in samples)


def test_published_flops() -> None:
    """The paper's 86 GFLOPs count a multiplication and an addition as one, over COCO's sizes."""
    with torch.device("meta"):
        detector = Detector.from_recipe("detr_r50", num_classes=91)
    flops = count_flops(detector, (800, 1066))
    assert flops / 2 == pytest.approx(86e9, rel=0.1)


@pytest.mark.parametrize("name", module.ENGINES)
def test_an_engine_is_measured(model: Path, name: str) -> None:
    result = measure(model, name, (60, 80), 2, seconds=0.0)
    assert result.name == f"tiny.safetensors {name}"
    low, high = result.quartiles
    assert 0 < low <= result.seconds <= high
    assert result.images_per_second == pytest.approx(2 / result.seconds)
    assert result.peak_memory is None or result.peak_memory >= 0


def test_a_process_for_each_engine(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert engines_of(model) == ("plain", "optimised", "bf16")
    assert engines_of(Path("model.onnx")) == ("exported",)
    monkeypatch.setattr(module, "ENGINES", ("optimised",))
    started = Mock(return_value=new_processes())
    monkeypatch.setattr(multiprocessing, "get_context", started)
    assert main(["benchmark", str(model), "--size", "64x96", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    detector = Detector.load(model)
    assert found["parameters"] == sum(each.numel() for each in detector.parameters())
    assert found["flops"] == count_flops(detector, (64, 96))
    assert (found["size"], found["batch_size"]) == ([64, 96], 1)
    assert [each["name"] for each in found["engines"]] == ["tiny.safetensors optimised"]
    assert started.call_args_list == [call("spawn")]


def test_the_table() -> None:
    engine = EngineResult(
        name="model[1].onnx",
        load_seconds=0.5,
        seconds=0.25,
        quartiles=(0.2, 0.3),
        images_per_second=8.0,
        peak_memory=None,
    )
    result = BenchmarkResult(
        device="cpu",
        threads=2,
        size=(60, 80),
        batch_size=2,
        parameters=41_000_000,
        flops=172_000_000_000,
        engines=(engine,),
    )
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(results_table(result))
    shown = console.export_text()
    assert "batch 2 of 60x80, cpu, 2 threads, 41.00 M parameters, 172.0 GFLOPs per image" in shown
    cells = [cell.strip() for line in shown.splitlines() if "model[1]" in line for cell in line.split("│")]
    assert cells == ["", "model[1].onnx", "250.0", "200.0 - 300.0", "8.00", "-", "0.50", ""]


def test_bad_input(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="got 0 models"):
        benchmark([])
    with pytest.raises(ConfigError, match="batch_size=0"):
        benchmark([model], batch_size=0)
    with pytest.raises(CheckpointError, match="no such"):
        benchmark([tmp_path / "none.safetensors"])
    with pytest.raises(CheckpointError, match="no such"):
        benchmark([tmp_path / "none.onnx"])
    assert main(["benchmark", str(model), "--size", "large"]) == 2
    assert "--size got 'large'; expected height x width" in capsys.readouterr().err
    assert main(["benchmark"]) == 2
    assert "got no model" in capsys.readouterr().err
