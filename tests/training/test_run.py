"""Whole runs: what they leave behind, how they are resumed, what they refuse."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny_runs import settings_maker
from torch import Tensor

from querybox.data import Batch
from querybox.detector import Detector
from querybox.errors import CheckpointError, ConfigError, MissingExtraError, NonFiniteError
from querybox.evaluation.result import METRICS, Evaluation
from querybox.runfile import read_run_file
from querybox.temporary import temporary_name
from querybox.training import RunSettings, train
from querybox.training.loop import Trainer
from querybox.training.processes import start_processes
from querybox.training.update import Update

MakeSettings = Callable[..., RunSettings]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(folder: Path, name: str = "checkpoint") -> dict[str, Tensor]:
    return load_file(folder / f"{name}.safetensors")


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int, reason: str) -> None:
    """Make runs stop after `steps` updates as if `reason` were given."""
    update = Trainer.update

    def stopping(self: Trainer, *arguments: Any) -> Update:
        done = update(self, *arguments)
        stop = reason if self.progress.step + 1 == steps else None
        return replace(done, stop=stop)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "update", stopping)


def test_a_run_leaves_everything_that_repeats_it(run_settings: MakeSettings) -> None:
    settings = run_settings(epochs=2)
    result = train(settings)
    folder = result.run_dir
    assert folder == settings.folder
    expected = {"run.yaml", "environment.json", "record.json", "validation.json", "metrics.csv"}
    assert expected | {"checkpoint.safetensors", "last.safetensors"} == {
        path.name for path in folder.iterdir()
    }
    assert [category.name for category in result.detector.categories] == ["red", "blue"]
    assert result.detector.preprocessing.short_side == 64
    assert json.loads((folder / "environment.json").read_text())["packages"]["torch"] == version("torch")

    again = RunSettings.parse(read_run_file(folder / "run.yaml"))
    assert again.model["feedforward"] == 64
    assert again.model["dropout"] == 0.1  # written out, though not set
    train(again.replace(output=str(folder.parent / "again")))
    torch.testing.assert_close(weights(folder.parent / "again"), weights(folder), rtol=0, atol=0)


@pytest.mark.parametrize("outer", [torch.no_grad, torch.inference_mode, partial(torch.autocast, "cpu")])
def test_a_run_computes_gradients_in_its_precision_whatever_is_set_around_it(
    outer: Any, run_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    autocast = []
    monkeypatch.setattr(Trainer, "seed_dropout", lambda _: autocast.append(torch.is_autocast_enabled("cpu")))
    with outer():
        before = torch.is_grad_enabled()
        result = train(run_settings(epochs=1))
        assert torch.is_grad_enabled() == before
    assert float(rows(result.run_dir)[0]["grad_norm"]) > 0
    assert autocast == [False, False]


def test_each_epoch_has_its_row(run_settings: MakeSettings) -> None:
    result = train(run_settings(epochs=3, model={"decoder_layers": 2}))
    table = rows(result.run_dir)
    assert [(row["epoch"], row["step"]) for row in table] == [("1", "2"), ("2", "4"), ("3", "6")]
    assert list(table[0]) == [
        *("epoch", "step", "lr", "loss", "loss_cls", "loss_bbox", "loss_iou"),
        *("d0.loss_cls", "d0.loss_bbox", "d0.loss_iou", "grad_norm", "images_per_second", "seconds"),
    ]
    for row in table:
        parts = sum(float(value) for name, value in row.items() if "loss_" in name)
        assert float(row["loss"]) == pytest.approx(parts, rel=1e-4)


WAVE: dict[str, Any] = {"ema": 0.9, "schedule": "cosine"}


@pytest.fixture(scope="module")
def whole(boxes_json: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(settings_maker(boxes_json, tmp_path_factory.mktemp("whole"))(**WAVE)).run_dir


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("steps", [2, 3])  # at the end of an epoch, and within one
@pytest.mark.usefixtures("without_shape_checks")
def test_a_resumed_run_ends_as_if_it_had_not_stopped(
    run_settings: MakeSettings, whole: Path, monkeypatch: pytest.MonkeyPatch, steps: int, workers: int
) -> None:
    settings = run_settings("parts", **WAVE, data={"workers": workers})
    with monkeypatch.context() as patch:
        stop_after(patch, steps, "signal")
        with pytest.raises(SystemExit):
            train(settings)
    assert len(rows(whole)) == 2
    parts = train(settings, resume=True).run_dir
    torch.testing.assert_close(weights(parts), weights(whole), rtol=0, atol=0)
    for row, expected in zip(rows(parts), rows(whole), strict=True):
        assert row["loss"] == expected["loss"]


def test_a_time_budget_ends_the_run_with_a_row_and_a_checkpoint(run_settings: MakeSettings) -> None:
    result = train(run_settings(epochs=100, max_time=0.001))
    assert [row["step"] for row in rows(result.run_dir)] == ["1"]
    resumed = train(run_settings(epochs=1), resume=True)
    assert [row["step"] for row in rows(resumed.run_dir)] == ["2"]


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(
    run_settings: MakeSettings, trained: Path
) -> None:
    folder = trained
    (folder / "checkpoint.safetensors").unlink()
    (folder / "last.safetensors").unlink()
    (folder / temporary_name(os.getpid())).mkdir()
    (folder / "record.json").write_bytes(b"")
    train(run_settings(epochs=1), resume=True)
    assert (folder / "checkpoint.safetensors").exists()
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_was_killed_as_it_made_its_folder_starts(run_settings: MakeSettings, resume: bool) -> None:
    settings = run_settings(epochs=1)
    settings.folder.mkdir()
    (settings.folder / temporary_name(os.getpid())).mkdir()
    assert rows(train(settings, resume=resume).run_dir)


def test_a_run_without_its_checkpoint_is_not_begun_anew(run_settings: MakeSettings, trained: Path) -> None:
    (trained / "checkpoint.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: is missing.* --weights"):
        train(run_settings(epochs=1), resume=True)


def test_a_folder_in_use_is_refused(run_settings: MakeSettings) -> None:
    settings = run_settings()
    settings.folder.mkdir()
    (settings.folder / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        train(settings)


def test_nothing_to_resume_is_an_error(run_settings: MakeSettings) -> None:
    with pytest.raises(CheckpointError, match="no run to resume"):
        train(run_settings(), resume=True)


@pytest.mark.usefixtures("trained")
def test_a_resumed_run_keeps_its_settings(run_settings: MakeSettings) -> None:
    with pytest.raises(ConfigError, match=r"cannot change 'train.lr' from 0.001 to 0.01"):
        train(run_settings(epochs=1, lr=0.01), resume=True)
    with pytest.raises(ConfigError, match=r"'model\.width'"):
        train(run_settings(epochs=1, model={"width": 64}), resume=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_update(
    run_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    losses = Trainer.losses
    seen: list[tuple[Batch, Trainer, dict[str, Tensor]]] = []

    def poisoned(self: Trainer, part: Batch, counts: Sequence[int] | None) -> dict[str, Tensor]:
        found = losses(self, part, counts)
        if self.progress.step == 2:
            seen.append(
                (part, self, {name: p.detach().clone() for name, p in self.detector.named_parameters()})
            )
            found["loss_iou"] = found["loss_iou"] * value
        return found

    monkeypatch.setattr(Trainer, "losses", poisoned)
    with pytest.raises(NonFiniteError) as caught:
        train(run_settings())
    ((part, trainer, before),) = seen
    assert "epoch 2, step 3: loss_iou" in str(caught.value)
    assert f"ids {', '.join(map(str, part.image_ids))};" in str(caught.value)
    after = {name: parameter.detach() for name, parameter in trainer.detector.named_parameters()}
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_a_gradient_that_is_not_finite_stops_before_the_update(
    run_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = Trainer.losses

    def poisoned(self: Trainer, part: Batch, counts: Sequence[int] | None) -> dict[str, Tensor]:
        found = losses(self, part, counts)
        found["loss_cls"].register_hook(lambda gradient: gradient * math.nan)
        return found

    monkeypatch.setattr(Trainer, "losses", poisoned)
    with pytest.raises(NonFiniteError, match="step 1: the gradient became NaN"):
        train(run_settings())


def test_predictions_that_are_not_finite_name_their_images(
    run_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Trainer) -> None:
        with torch.no_grad():
            next(self.detector.queries.parameters()).fill_(math.nan)

    monkeypatch.setattr(Trainer, "seed_dropout", broken)
    with pytest.raises(NonFiniteError, match=r"matching cost .* ids \d+, \d+, \d+, \d+;"):
        train(run_settings())


@pytest.mark.usefixtures("without_shape_checks")
def test_frozen_parts_stay_and_the_others_move(run_settings: MakeSettings) -> None:
    start = train(run_settings("start", epochs=1, lr=1e-12, backbone_lr=1e-12, weight_decay=0)).run_dir
    end = train(run_settings("end", epochs=1, freeze=["backbone", "encoder"], weight_decay=0.0)).run_dir
    before, after = weights(start, "last"), weights(end, "last")
    moved = {
        name for name, tensor in after.items() if not torch.allclose(tensor, before[name], rtol=0, atol=1e-6)
    }
    assert {name.split(".")[0] for name in moved} == {"neck", "queries", "decoder"}


def test_a_run_starts_from_weights_by_class_name(run_settings: MakeSettings, trained: Path) -> None:
    first = trained / "last.safetensors"
    second = train(run_settings("second", epochs=1, lr=1e-12, backbone_lr=1e-12).replace(weights=str(first)))
    before = Detector.load(first).state_dict()
    torch.testing.assert_close(second.detector.state_dict(), before, rtol=0, atol=1e-6)


def test_weights_of_another_model_are_refused_with_what_differs(
    run_settings: MakeSettings, trained: Path
) -> None:
    settings = run_settings("second", model={"width": 16}).replace(weights=str(trained / "last.safetensors"))
    with pytest.raises(CheckpointError, match=r"'model.width' is 16 in this run and 32 in the file"):
        train(settings)


def test_bf16_takes_the_same_way_and_keeps_float32_weights(run_settings: MakeSettings, trained: Path) -> None:
    full = trained
    half = train(run_settings("half", epochs=1, precision="bf16")).run_dir
    assert float(rows(half)[0]["loss"]) == pytest.approx(float(rows(full)[0]["loss"]), rel=0.01)
    assert rows(half)[0]["loss"] != rows(full)[0]["loss"]
    assert {tensor.dtype for tensor in weights(half, "last").values() if tensor.is_floating_point()} == {
        torch.float32
    }


def test_an_unknown_tracker_is_refused(run_settings: MakeSettings) -> None:
    with pytest.raises(ConfigError, match=r"'tensorbord'; expected some of .*tensorboard"):
        train(run_settings(trackers=["tensorbord"]))


def test_a_tracker_that_is_not_installed_is_named(
    run_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(MissingExtraError, match="pip install"):
        train(run_settings(trackers=["tensorboard"]))


def test_tensorboard_gets_the_losses(run_settings: MakeSettings) -> None:
    folder = train(run_settings(epochs=1, trackers=["tensorboard"])).run_dir
    assert list(folder.rglob("events.out.tfevents.*"))


def test_more_objects_than_queries_is_a_warning(
    run_settings: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    train(run_settings(epochs=1, model={"queries": 1}))
    assert (
        "objects in excess of the number of queries (6: image 1: 2 objects, 1 queries; image 2" in caplog.text
    )


def evaluations(values: Iterable[float]) -> Callable[..., Evaluation]:
    """Return an evaluation that finds these AP one after the other."""
    remaining = iter(values)

    def evaluate(*arguments: object) -> Evaluation:
        metrics = {**dict.fromkeys(METRICS, 0.0), "AP": next(remaining)}
        return cast("Evaluation", SimpleNamespace(metrics=metrics))

    return evaluate


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("querybox.training.run.write_report", lambda *arguments: "")


@pytest.mark.usefixtures("no_report")
@pytest.mark.usefixtures("without_shape_checks")
def test_the_best_detector_is_kept_and_patience_ends_the_run(
    run_settings: MakeSettings, boxes_json: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("querybox.training.run.evaluate_and_record", evaluations([0.1, 0.3, 0.2, 0.3, 0.9]))
    settings = run_settings(epochs=20, batch_size=8, patience=2, data={"val": str(boxes_json)})
    result = train(settings)
    assert [row["AP"] for row in rows(result.run_dir)] == ["0.1", "0.3", "0.2", "0.3"]
    assert result.metrics["AP"] == 0.3
    two = train(run_settings("two", epochs=2, batch_size=8, milestones=[13])).run_dir
    torch.testing.assert_close(weights(result.run_dir, "best"), weights(two, "last"), rtol=0, atol=0)


@pytest.mark.usefixtures("no_report")
@pytest.mark.usefixtures("without_shape_checks")
def test_every_nth_epoch_and_the_last_are_evaluated(
    run_settings: MakeSettings, boxes_json: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("querybox.training.run.evaluate_and_record", evaluations([0.1, 0.2, 0.3]))
    result = train(run_settings(epochs=5, batch_size=8, evaluate_every=2, data={"val": str(boxes_json)}))
    assert [row["AP"] for row in rows(result.run_dir)] == ["", "0.1", "", "0.2", "0.3"]


@pytest.mark.usefixtures("no_report")
def test_the_moving_average_is_what_is_evaluated_and_saved(
    run_settings: MakeSettings, boxes_json: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []
    found = evaluations([0.5])

    def evaluate(
        accelerator: object, settings: object, data: object, detector: Detector, request: object
    ) -> Evaluation:
        seen.append({name: tensor.clone() for name, tensor in detector.state_dict().items()})
        return found()

    monkeypatch.setattr("querybox.training.run.evaluate_and_record", evaluate)
    folder = train(run_settings(epochs=1, ema=0.5, data={"val": str(boxes_json)})).run_dir
    state = weights(folder)
    average = {name.removeprefix("average."): t for name, t in state.items() if name.startswith("average.")}
    for saved in (seen[0], weights(folder, "best"), weights(folder, "last")):
        torch.testing.assert_close(saved, average, rtol=0, atol=0)
    latest = {name.removeprefix("model."): t for name, t in state.items() if name.startswith("model.")}
    assert any(not torch.equal(latest[name], tensor) for name, tensor in average.items())


def test_evaluation_data_of_other_classes_are_refused_before_the_first_step(
    run_settings: MakeSettings, boxes_json: Path
) -> None:
    content = json.loads(boxes_json.read_text())
    content["categories"][0]["name"] = "green"
    other = boxes_json.with_name("green.json")
    other.write_text(json.dumps(content))
    settings = run_settings(data={"val": str(other)})
    with pytest.raises(ConfigError, match="'green'"):
        train(settings)
    assert not settings.folder.exists()


def test_a_gradient_that_overflows_its_fp16_scale_skips_the_step_and_no_more(
    run_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scaler is a real one, but the arithmetic float32: CPUs take minutes for float16."""

    def start(settings: RunSettings) -> Accelerator:
        accelerator = start_processes(settings)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
        accelerator.unscale_gradients = lambda: accelerator.scaler.unscale_(
            accelerator._optimizers[0].optimizer
        )
        return accelerator

    monkeypatch.setattr("querybox.training.run.start_processes", start)
    folder = train(run_settings(epochs=16, batch_size=8, model={"dropout": 0.0})).run_dir
    norms = [row["grad_norm"] for row in rows(folder)]
    assert norms[0] == ""  # infinite
    assert norms[-1] != ""
    steps = {float(t) for name, t in weights(folder).items() if name.endswith(":step")}
    assert steps == {float(len(norms) - norms.count(""))}
