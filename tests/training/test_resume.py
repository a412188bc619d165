"""Runs that go on after this or that was lost, damaged or stopped, and what they come to."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from crashes import Crash, crash_in, rows, same, weights
from torchvision.transforms import v2

from querybox.data.loader import worker_error
from querybox.data.sampler import BatchSampler
from querybox.diagnosis.record import read_record
from querybox.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DiskFullError,
    ProcessError,
    QueryboxError,
    WorkerError,
)
from querybox.evaluation.evaluate import no_detections
from querybox.inference.detections import Detections
from querybox.runfile import read_run_file
from querybox.training import RunSettings, loop, train
from querybox.training.checkpoint import RunCheckpoint
from querybox.training.folder import check_best
from querybox.training.loop import Trainer
from querybox.training.processes import start_processes, translate_process_errors

MakeSettings = Callable[..., RunSettings]
pytestmark = pytest.mark.usefixtures("without_shape_checks")


@pytest.fixture
def checkpoint_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MIN_CHECKPOINT_SECONDS", 0.0)


@pytest.mark.usefixtures("checkpoint_each_epoch")
def test_a_crash_right_after_a_checkpoint_or_right_before(
    run_settings: MakeSettings, few_json: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torn between files: the checkpoint is written, the detectors are not."""
    data = {"val": str(few_json)}
    made = {"epochs": 3, "batch_size": 8}
    whole = train(run_settings("whole", data=data, **made)).run_dir
    for method in ("write_detectors", "end_epoch"):
        settings = run_settings(method, data=data, **made)
        with monkeypatch.context() as patch:
            crash_in(patch, Trainer, method, 2)
            with pytest.raises(Crash):
                train(settings)
        parts = train(settings, resume=True).run_dir
        same(parts, whole, "checkpoint", "last", "best")
        assert read_record(parts) == read_record(whole)


@pytest.mark.usefixtures("checkpoint_each_epoch")
def test_statistics_of_batch_norms_go_on_where_they_were(
    run_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RT-DETR's are trained, and averaged."""

    def settings(output: str) -> RunSettings:
        model = {"encoder_width": 32, "denoising": 4}
        made = run_settings(output, epochs=2, batch_size=8, ema=0.9, model=model)
        return made.replace(recipe="rtdetr_r18")

    whole = train(settings("whole")).run_dir
    with monkeypatch.context() as patch:
        crash_in(patch, Trainer, "end_epoch", 2)
        with pytest.raises(Crash):
            train(settings("parts"))
    parts = train(settings("parts"), resume=True).run_dir
    same(parts, whole, "checkpoint", "last")
    statistics = {name: tensor for name, tensor in weights(whole).items() if name.endswith("running_mean")}
    name = "encoder.laterals.0.norm.running_mean"
    assert not torch.equal(statistics[f"model.{name}"], statistics[f"average.{name}"])


def test_long_epochs_have_checkpoints_within(
    run_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    augmentation = {"mosaic": 0.5, "mixup": 0.5, "zoom_out": 0.5, "iou_crop": 0.5, "photometric": 0.5}
    data = {**augmentation, "multi_scale": 1, "mosaic_until": 0.6, "strong_until": 0.9}
    transform = v2.ColorJitter(0.3)
    whole = train(run_settings("whole", epochs=1, batch_size=2, data=data), transform=transform).run_dir
    settings = run_settings("parts", epochs=1, batch_size=2, data=data)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "MAX_CHECKPOINT_SECONDS", 0.0)
        crash_in(patch, Trainer, "update", 4)
        with pytest.raises(Crash):
            train(settings, transform=transform)
    with pytest.raises(ConfigError, match=r"cannot change 'data.transform' from 'ColorJitter.*' to None"):
        train(settings, resume=True)
    with pytest.raises(ConfigError, match=r"cannot change 'data.transform' from .*0\.7.* to .*0\.6"):
        train(settings, resume=True, transform=v2.ColorJitter(0.4))
    made = []
    update = Trainer.update

    def counting(self: Trainer, *arguments: Any) -> Any:
        made.append(self.progress.step)
        return update(self, *arguments)

    monkeypatch.setattr(Trainer, "update", counting)
    same(train(settings, resume=True, transform=transform).run_dir, whole, "checkpoint", "last")
    assert made == [3]
    run_file = whole / "run.yaml"
    with pytest.raises(ConfigError, match=r"'data.transform' is 'ColorJitter.*expected the transform itself"):
        train(run_file, output="other")


def test_a_signal_ends_an_evaluation_which_is_made_again(
    run_settings: MakeSettings, few_json: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"val": str(few_json)}
    whole = train(run_settings("whole", data=data)).run_dir
    seen = []

    def look(
        engine: Any, images: Any, *, callback: Callable[[Detections], object], **_: object
    ) -> dict[int, Detections]:
        seen.append(images)
        signal.raise_signal(signal.SIGINT if len(seen) == 1 else signal.SIGTERM)
        callback(no_detections(images[0], engine.categories))
        raise AssertionError("looked at another image")

    settings = run_settings("parts", data=data)
    folder = settings.folder
    with monkeypatch.context() as patch:
        patch.setattr("querybox.training.processes.detect_records", look)
        with pytest.raises(KeyboardInterrupt):
            train(settings)
        assert not (folder / "metrics.csv").exists()
        assert read_record(folder).ended == "signal"
        with pytest.raises(SystemExit):
            train(settings, resume=True)
    assert len(seen) == 2
    assert rows(folder) == []
    assert read_record(folder).ended == "signal"
    same(train(settings, resume=True).run_dir, whole, "checkpoint", "last", "best")


def test_a_schedule_that_ends_with_the_time_goes_on_where_it_was(
    run_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that ticks with the updates."""
    monkeypatch.setattr(Trainer, "seconds", property(lambda self: 10.0 * self.progress.step))
    shares = []
    monkeypatch.setattr(BatchSampler, "set_time_share", lambda _, share: shares.append(share))
    made = {"epochs": 40, "schedule": "cosine", "max_time": 45}
    whole = train(run_settings("whole", **made)).run_dir
    # Phases of augmentation go by the time, too: before each epoch of two updates and after each update but the last.
    assert [45 * share for share in shares] == pytest.approx([0, 10, 20, 20, 30, 40, 40, 50])
    shares.clear()
    settings = run_settings("parts", **made)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "MAX_CHECKPOINT_SECONDS", 5.0)
        crash_in(patch, Trainer, "update", 4)
        with pytest.raises(Crash):
            train(settings)
    parts = train(settings, resume=True).run_dir
    assert [row["step"] for row in rows(parts)] == ["2", "4", "6"]
    assert rows(parts)[-1]["lr"] == rows(whole)[-1]["lr"]
    assert [45 * share for share in shares] == pytest.approx([0, 10, 20, 20, 30, 30, 40, 40, 50])


@pytest.mark.usefixtures("checkpoint_each_epoch")
def test_the_scale_of_fp16_goes_on_where_it_was(
    run_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scaler is a real one, but the arithmetic float32: CPUs take minutes for float16."""
    scalers = []

    def start(settings: RunSettings) -> Accelerator:
        accelerator = start_processes(settings)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
        accelerator.unscale_gradients = lambda: accelerator.scaler.unscale_(
            accelerator._optimizers[0].optimizer
        )
        scalers.append(accelerator.scaler)
        return accelerator

    monkeypatch.setattr("querybox.training.run.start_processes", start)
    made = {"epochs": 4, "batch_size": 8}
    whole = train(run_settings("whole", **made)).run_dir
    settings = run_settings("parts", **made)
    with monkeypatch.context() as patch:
        crash_in(patch, Trainer, "update", 3)
        with pytest.raises(Crash):
            train(settings)
    same(train(settings, resume=True).run_dir, whole, "checkpoint")
    assert scalers[-1].get_scale() == scalers[0].get_scale() < 2.0**126


def test_the_weights_do_not_depend_on_the_number_of_workers(run_settings: MakeSettings) -> None:
    first, *others = (
        train(run_settings(f"{workers}", epochs=1, data={"workers": workers})).run_dir for workers in range(3)
    )
    for other in others:
        same(other, first, "checkpoint")


def test_settings_are_those_of_the_checkpoint_whatever_the_run_file_says(trained: Path) -> None:
    text = (trained / "run.yaml").read_text()
    assert "  lr: 0.001\n" in text
    (trained / "run.yaml").write_text(text.replace("  lr: 0.001\n", "  lr: 0.005\n"))
    changed = RunSettings.parse(read_run_file(trained / "run.yaml"))
    with pytest.raises(ConfigError, match=r"cannot change 'train\.lr' from 0\.001 to 0\.005; restore them"):
        train(changed, resume=True)


def test_a_run_with_the_former_name_of_float32_is_resumed(trained: Path) -> None:
    path = trained / "checkpoint.safetensors"
    checkpoint = RunCheckpoint.read(path)
    checkpoint.settings["train.precision"] = "no"
    checkpoint.write(path)
    text = (trained / "run.yaml").read_text()
    assert "  precision: float32\n" in text
    (trained / "run.yaml").write_text(
        text.replace("  precision: float32\n", "  precision: no\n").replace("  epochs: 1\n", "  epochs: 2\n")
    )
    train(RunSettings.parse(read_run_file(trained / "run.yaml")), resume=True)
    checkpoint = RunCheckpoint.read(path)
    assert (checkpoint.progress.epoch, checkpoint.settings["train.precision"]) == (2, "float32")


def test_damaged_metrics_are_written_anew(run_settings: MakeSettings, trained: Path) -> None:
    before = (trained / "metrics.csv").read_bytes()
    for damage in (b"", before[:-9], b"\xff\x00epoch\n"):
        (trained / "metrics.csv").write_bytes(damage)
        train(run_settings(epochs=1), resume=True)
        assert (trained / "metrics.csv").read_bytes() == before


def test_a_damaged_record_is_told_and_can_be_removed(run_settings: MakeSettings, trained: Path) -> None:
    whole = (trained / "record.json").read_bytes()
    for damage in (b"", whole[:-9], b"[]", b"\xff"):
        (trained / "record.json").write_bytes(damage)
        with pytest.raises(DataError, match=r"record\.json: .* remove the file"):
            train(run_settings(epochs=2), resume=True)
    (trained / "record.json").unlink()
    record = read_record(train(run_settings(epochs=2), resume=True).run_dir)
    assert record.training is not None
    assert record.parts is None  # nobody knows what it began with


@pytest.fixture
def with_best_behind(
    run_settings: MakeSettings, few_json: Path, monkeypatch: pytest.MonkeyPatch
) -> RunSettings:
    """The settings of a run whose best detector is not that of its checkpoint."""
    monkeypatch.setattr("querybox.training.run.write_report", lambda *_: "")
    settings = run_settings(epochs=2, data={"val": str(few_json)}, lr=1e-9, backbone_lr=1e-9)
    folder = train(settings).run_dir
    assert len(rows(folder)) == 2
    return settings.replace(train={**settings.train.model_dump(), "epochs": 3})


def test_a_best_detector_that_is_damaged_is_told_at_once(with_best_behind: RunSettings) -> None:
    path = with_best_behind.folder / "best.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"best\.safetensors: corrupt file.* or remove it"):
        train(with_best_behind, resume=True)


def test_a_best_detector_that_is_gone_is_chosen_anew(
    with_best_behind: RunSettings, caplog: pytest.LogCaptureFixture
) -> None:
    path = with_best_behind.folder / "best.safetensors"
    path.unlink()
    checkpoint = RunCheckpoint.read(path.parent / "checkpoint.safetensors")
    check_best(path.parent, checkpoint)
    assert checkpoint.progress.best_step is None  # nothing goes on from it; see `Trainer.restart_if_due`
    train(with_best_behind, resume=True)
    assert f"{path}: is missing" in caplog.text
    torch.testing.assert_close(weights(path.parent, "best"), weights(path.parent, "last"), rtol=0, atol=0)


def test_a_report_for_which_there_is_no_room_is_made_later(
    run_settings: MakeSettings, few_json: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = run_settings(epochs=1, data={"val": str(few_json)})
    write_bytes = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if content.lower().startswith(b"<!doctype html>"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(DiskFullError, match=r"report\.html: .*No space left.* MB are needed"):
            train(settings)
    assert (train(settings, resume=True).run_dir / "report.html").exists()


def test_a_full_disk_is_told_although_it_cannot_be_recorded(
    run_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise DiskFullError("record.json: no room")

    monkeypatch.setattr("querybox.training.record.add_to_record", full)
    monkeypatch.setattr(
        Trainer, "update", lambda *_: (_ for _ in ()).throw(DiskFullError("checkpoint: no room"))
    )
    monkeypatch.setattr("querybox.training.run.record_start", lambda *_, **__: None)
    with pytest.raises(DiskFullError, match="checkpoint: no room"):
        train(run_settings())


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", WorkerError),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", WorkerError),
        ("[/src/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer", ProcessError),
        ("NCCL error: remote process exited or there was a network error", ProcessError),
    ],
)
def test_deaths_have_names(said: str, error: type[QueryboxError]) -> None:
    with pytest.raises(error, match="continue with --resume"), translate_process_errors():
        raise RuntimeError(said)


@pytest.mark.parametrize(("method", "named"), [("fork", False), ("spawn", True), ("forkserver", True)])
def test_a_script_that_its_workers_import_is_named(
    method: str, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: method)
    assert ("outside of `if __name__ == '__main__':`" in str(worker_error("why", "cure"))) == named


def test_what_is_no_death_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes do not fit"), translate_process_errors():
        raise RuntimeError("shapes do not fit")
    with pytest.raises(ConfigError, match="NCCL"), translate_process_errors():
        raise ConfigError("NCCL is no setting")


def test_lost_connections_have_a_name() -> None:
    with pytest.raises(ProcessError), translate_process_errors():
        raise torch.distributed.DistNetworkError("the client socket has timed out")
