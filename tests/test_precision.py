from __future__ import annotations

import platform
import time

import pytest
import torch

from querybox import precision
from querybox.precision import ComputedPrecision, Precision, dtype_of, is_native, resolve_precision, slowdown
from querybox.training import TrainSettings

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("machine", "avx512_bf16", "amx", "mkldnn", "native"),
    [
        ("x86_64", False, False, True, False),  # AVX-512 alone: oneDNN emulates bf16
        ("x86_64", True, False, True, True),
        ("AMD64", False, True, True, True),  # Windows
        ("aarch64", False, False, True, True),
        ("arm64", False, False, False, False),
    ],
)
def test_auto_is_bf16_on_cpus_with_its_instructions(
    machine: str, avx512_bf16: bool, amx: bool, mkldnn: bool, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: mkldnn, raising=False)
    assert is_native("bf16", CPU) is native
    assert resolve_precision("auto", CPU) == ("bf16" if native else "float32")


@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_a_pytorch_without_onednn_has_no_native_half_precision(
    half: ComputedPrecision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that for Apple's processors, in which `torch.ops.mkldnn` has no operators."""
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert not is_native(half, CPU)


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bf16_on_gpus_that_compute_it(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_bf16_supported(*, including_emulation: bool) -> bool:
        return including_emulation or native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert resolve_precision("auto", torch.device("cuda")) == ("bf16" if native else "float32")
    assert is_native("fp16", torch.device("cuda"))


@pytest.mark.parametrize("device", ["mps", "xla"])
def test_auto_is_float32_where_bf16_is_not_known_to_be_native(device: str) -> None:
    assert resolve_precision("auto", torch.device(device)) == "float32"


def test_an_emulated_precision_is_used_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "is_native", lambda *_: False)
    monkeypatch.setattr(precision, "slowdown", lambda *_: 5.94)
    assert resolve_precision("bf16", CPU) == "bf16"
    assert caplog.messages == [
        "precision 'bf16' is emulated on this device (cpu): a matrix product takes 5.9 times as long as in float32; "
        "use 'float32', or 'auto'"
    ]
    monkeypatch.setattr(precision, "slowdown", lambda *_: 0.65)
    resolve_precision("bf16", CPU)
    assert len(caplog.messages) == 1


def test_a_native_precision_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "is_native", lambda *_: True)
    monkeypatch.setattr(precision, "slowdown", None)
    each: Precision
    for each in ("float32", "bf16", "fp16"):
        assert resolve_precision(each, CPU) == each


def test_the_slowdown_is_that_of_the_fastest_product_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = {"bf16": (0.5, 4, 3, 5), "float32": (9, 1.5, 2, 3)}
    times = [second for each in durations.values() for duration in each for second in (0.0, duration)]
    monkeypatch.setattr(time, "perf_counter", iter(times).__next__)
    assert slowdown.__wrapped__("bf16", CPU) == 2


def test_dtypes() -> None:
    assert dtype_of("float32") == torch.float32
    assert dtype_of("bf16") == torch.bfloat16
    assert dtype_of("fp16") == torch.float16


def test_the_former_name_in_run_files_is_read() -> None:
    assert TrainSettings.parse({"precision": "no"}) == TrainSettings(precision="float32")
