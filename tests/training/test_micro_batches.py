"""As few micro-batches as fit into memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from torture.server import fork_server

from querybox import memory
from querybox.checkpoints.files import read_safetensors
from querybox.data import DataSettings
from querybox.errors import ConfigError, OutOfMemoryError
from querybox.fast.training import for_training
from querybox.memory import available_memory
from querybox.runfile import read_run_file
from querybox.structures import Category, Target
from querybox.training import RunSettings, micro_batches, train
from querybox.training.loss import DetectionLoss
from querybox.training.micro_batches import (
    StepMemory,
    check_micro_batch,
    fewest_micro_batches,
    is_small,
    measure_step,
    step_memory,
)
from querybox.training.processes import start_processes
from querybox.training.run import prepare
from querybox.training.settings import Given
from querybox.training.start import build_detector

MakeSettings = Callable[..., RunSettings]
STEP = StepMemory(one=100, each=30)


@pytest.mark.parametrize(
    ("available", "expected"),
    [(430, 1), (429, 2), (250, 2), (249, 3), (189, 4), (159, 6), (129, 12), (100, 12)],
)
def test_the_largest_equal_parts_that_fit_are_taken(available: int, expected: int) -> None:
    """12 images take 430 bytes, 6 take 250, 4 take 190, 3 take 160, 2 take 130, 1 takes 100."""
    assert fewest_micro_batches(STEP, 12, available, smallest=1) == expected


@pytest.mark.parametrize(
    ("images", "available", "error", "warning"),
    [
        (12, 1000, None, ""),  # by the upper bound
        (12, 580, None, ""),
        (
            12,
            570,
            None,
            "12 images takes about 0.0 GB, and 0.0 GB are available; if the system ends it, set train.accumulate=2",
        ),
        (
            12,
            430,
            None,
            "12 images takes about 0.0 GB, and 0.0 GB are available; if the system ends it, set train.accumulate=2",
        ),
        (
            12,
            429,
            "enough memory: a step with 12 images .*; set train.accumulate=2, which computes the same",
            None,
        ),
        (
            1,
            110,
            None,
            "1 image takes about 0.0 GB, and 0.0 GB are available; if the system ends it, set a smaller 'data.image",
        ),
        (
            1,
            99,
            "a step with 1 image takes about .* available; set a smaller 'data.image_size' or model",
            None,
        ),
    ],
)
def test_a_batch_that_is_set_is_checked(
    images: int, available: int, error: str | None, warning: str | None
) -> None:
    """12 images take 430 bytes."""
    made: list[StepMemory] = []

    def measured() -> Iterator[StepMemory]:
        for each in (StepMemory(one=100, each=50), STEP):
            made.append(each)
            yield each

    check = partial(check_micro_batch, measured(), images, 12, available, smallest=1)
    if error is not None:
        with pytest.raises(OutOfMemoryError, match=error):
            check()
    else:
        assert str(warning) in check()
        assert len(made) == (1 if available == 1000 else 2)


@pytest.mark.skipif(not memory.STATUS.exists(), reason="counts as Linux does")
def test_a_batch_of_the_user_that_does_not_fit_ends_before_the_first_step(
    run_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(micro_batches, "STATES", 0)
    monkeypatch.setattr(micro_batches, "step_memory", lambda model, data, images, *_: 10 + 90 * images)
    monkeypatch.setattr(micro_batches, "available_memory", lambda: 369)
    chosen = run_settings("chosen", batch_size=4, epochs=1)
    with pytest.raises(OutOfMemoryError, match=r"a step with 4 images .*; set train\.accumulate=2"):
        train(chosen)
    assert not chosen.folder.exists()
    monkeypatch.setattr(micro_batches, "available_memory", lambda: 370)
    train(chosen)
    assert "little memory is left: a step with 4 images" in capsys.readouterr().err


@pytest.mark.skipif(not memory.STATUS.exists(), reason="counts as Linux does")
def test_a_small_batch_is_not_measured(run_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four images of 64 x 107 pixels take less than 2 GB whatever the model."""
    monkeypatch.setattr(micro_batches, "available_memory", lambda: 3 * 10**9)
    monkeypatch.setattr(micro_batches, "step_memory", lambda *_: pytest.fail("measured"))
    train(run_settings(epochs=1))
    settings = run_settings(data={"image_size": 512})
    detector = build_detector(settings, (Category(id=0, name="cell"),))
    assert not is_small(detector, settings.data, 4, 3 * 10**9)


def test_an_image_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(OutOfMemoryError, match=r"a step with 1 image takes 0\.0 GB"):
        fewest_micro_batches(STEP, 12, 99, smallest=1)
    with pytest.raises(OutOfMemoryError, match="a step with 2 images"):
        fewest_micro_batches(STEP, 12, 100, smallest=2)  # mixup


def test_mixup_needs_two_images_whatever_the_memory(run_settings: MakeSettings) -> None:
    assert fewest_micro_batches(STEP, 1, 99, smallest=2) == 1
    alone = run_settings("alone", accumulate="auto", batch_size=1)
    with pytest.raises(ConfigError, match=r"setting 'data.mixup' is 1, but each process trains on one image"):
        train(alone.replace(data={**alone.data.model_dump(exclude_unset=True), "mixup": 1}))


@pytest.mark.usefixtures("without_shape_checks")
def test_the_number_is_kept_in_the_run_and_changes_nothing_else(
    run_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(micro_batches, "available_memory", lambda: 200)  # of which 150 can be used
    monkeypatch.setattr(micro_batches, "step_memory", lambda model, data, images, *_: 70 + 30 * images)
    monkeypatch.setattr(micro_batches, "STATES", 0)
    chosen = run_settings("chosen", accumulate="auto", epochs=1)
    train(chosen)
    assert "2 micro-batches of 2 images per update (train.accumulate)" in capsys.readouterr().err
    assert read_run_file(chosen.folder / "run.yaml")["train"]["accumulate"] == 2
    given = run_settings("given", accumulate=2, epochs=1)
    train(given)
    ours, theirs = (read_safetensors(each.folder / "last.safetensors")[0] for each in (chosen, given))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    monkeypatch.setattr(micro_batches, "available_memory", lambda: 300)  # with which all four would fit
    train(run_settings("chosen", accumulate="auto", epochs=2), resume=True)
    assert read_run_file(chosen.folder / "run.yaml")["train"]["accumulate"] == 2


@pytest.mark.parametrize("parts", [2, 3])
def test_the_parts_make_one_update_of_the_whole_batch(run_settings: MakeSettings, parts: int) -> None:
    """There is none with the two of eight images that are left over."""
    plain = {"model": {"dropout": 0.0}, "data": {"scales": [64], "crop": 0}, "epochs": 1, "batch_size": 6}
    found: list[dict[str, float]] = []
    for number in (1, parts):
        folder = train(run_settings(str(number), accumulate=number, **plain)).run_dir
        names, *rows = (line.split(",") for line in (folder / "metrics.csv").read_text().splitlines())
        found += [dict(zip(names, map(float, row), strict=True)) for row in rows]
    whole, divided = found
    assert whole["step"] == divided["step"] == 1
    for name in whole:
        if "loss" in name or name == "grad_norm":
            assert divided[name] == pytest.approx(whole[name], rel=1e-4)


@pytest.mark.skipif(not memory.STATUS.exists(), reason="counts as Linux does")
def test_a_published_batch_is_divided_if_need_be_and_that_of_the_user_is_not(
    run_settings: MakeSettings,
) -> None:
    published = run_settings().replace(train={"epochs": 1})
    assert prepare(Given(settings=published), resume=False)[0].train.accumulate == "auto"
    for given in ({"batch_size": 16}, {"accumulate": 1}):
        assert prepare(Given(settings=published.replace(train=given)), resume=False)[0].train.accumulate == 1
    published.folder.mkdir()
    (published.folder / "run.yaml").write_text("train: {accumulate: 8}\n")
    assert prepare(Given(settings=published), resume=True)[0].train.accumulate == 8


@pytest.mark.skipif(not memory.STATUS.exists(), reason="counts as Linux does")
def test_the_memory_of_a_larger_batch_follows_from_that_of_two(run_settings: MakeSettings) -> None:
    # In a process of its own: pages that earlier tests have freed would be used again and not be counted.
    with ProcessPoolExecutor(1, mp_context=fork_server()) as process:
        expected, actual = process.submit(memory_of_six_images, run_settings()).result()
    assert 0.7 * actual < expected < 1.4 * actual


def memory_of_six_images(settings: RunSettings) -> tuple[int, int]:
    """Return the bytes that a step of six images should take, by that of two, and those that it takes."""
    detector = build_detector(settings, (Category(id=0, name="cell"),))
    assert detector.recipe is not None
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    data = DataSettings(train="none", image_size=512)
    accelerator = start_processes(settings)
    criterion = detector.recipe.criterion()
    bound, measured = measure_step(detector, criterion, data, 3, accelerator)
    assert bound.of(6) > measured.of(6)
    model = DetectionLoss(for_training(copy.deepcopy(detector).train()), criterion)
    assert all(torch.equal(before[name], tensor) for name, tensor in detector.state_dict().items())
    return measured.of(6), max(step_memory(model, data, 6, 3, accelerator) for _ in range(2))


def test_masks_are_part_of_the_measured_step(run_settings: MakeSettings) -> None:
    settings = run_settings(model={"masks": True})
    detector = build_detector(settings, (Category(id=0, name="cell"),))
    assert detector.recipe is not None
    criterion = detector.recipe.criterion()
    seen: list[Sequence[Target]] = []
    criterion.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    data, accelerator = DataSettings(train="none", image_size=64), start_processes(settings)
    list(measure_step(detector, criterion, data, 3, accelerator))
    assert [len(targets) for targets in seen] == [1, 1, 2]
    masks = seen[0][0].masks
    assert masks is not None
    assert masks.shape == (3, 64, 107)


def test_a_system_that_does_not_report_memory_is_an_error(
    run_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(micro_batches, "peak_memory", lambda device, before: None)
    with pytest.raises(ConfigError, match="set a number"):
        train(run_settings(accumulate="auto"))


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = available_memory()
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("7000000\n")
    (tmp_path / "memory.stat").write_text("anon 5000000\ninactive_file 2000000\n")
    assert available_memory() > 0.5 * machine
    (tmp_path / "memory.max").write_text("8000000\n")
    assert available_memory() == 3_000_000
