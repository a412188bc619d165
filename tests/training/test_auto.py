"""`recipe: auto`: what is chosen from which facts, what stays as it was set, and what the run keeps of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_writers import write_boxes
from tiny_models import TINY, TRAINABLE

from querybox import Detector
from querybox.data.records import DetectionData, ImageRecord
from querybox.errors import ConfigError
from querybox.runfile import read_run_file
from querybox.structures import Category, Resizing
from querybox.training import RunSettings, train
from querybox.training.auto import choose, is_auto
from querybox.training.resources import Resources
from querybox.training.start import default_folder, resolve

LAPTOP = Resources(device="cpu", memory=8 << 30, cores=2)
GPU = Resources(device="cuda", memory=64 << 30, cores=16)


def dataset(
    images: int = 200,
    side: float = 60.0,
    most: int = 3,
    names: tuple[str, ...] = ("cat",),
    size: tuple[int, int] = (640, 480),
    others: int = 1,
) -> DetectionData:
    """Images of `size` (width, height) with square objects; the first has `most` of them, the others `others`."""
    records = []
    for number in range(1, images + 1):
        count = most if number == 1 else others
        records.append(
            ImageRecord(
                id=number,
                path=Path(f"{number}.jpg"),
                width=size[0],
                height=size[1],
                boxes_xyxy=np.tile([[0.0, 0.0, side, side]], (count, 1)),
                labels=np.arange(count) % len(names),
                crowd=np.zeros(count, dtype=bool),
                areas=np.full(count, float(side * side)),
            )
        )
    categories = tuple(Category(id=number, name=name) for number, name in enumerate(names, start=1))
    return DetectionData(source=Path("photos"), categories=categories, images=tuple(records))


def settings(**values: Any) -> RunSettings:
    return RunSettings.parse({**values, "data": {"train": "photos", **values.get("data", {})}})


def chosen(images: DetectionData, resources: Resources = LAPTOP, **values: Any) -> RunSettings:
    return choose(settings(**values), images, resources).settings


def test_few_images_get_a_small_model() -> None:
    assert chosen(dataset()).recipe == "dino_small"
    assert chosen(dataset(), GPU).recipe == "dino_small"
    assert chosen(dataset(6000)).recipe == "dino_small"


def test_many_images_and_a_gpu_get_a_published_model_as_published() -> None:
    found = chosen(dataset(6000), GPU)
    assert found.recipe == "dino_r50"
    assert found.train.model_dump(exclude_unset=True) == {"precision": "auto", "accumulate": "auto"}
    assert found.data.model_dump(exclude_unset=True) == {"train": "photos"}


def test_small_objects_get_large_images() -> None:
    sizes = [chosen(dataset(side=side), GPU).data.image_size for side in (200, 40, 20, 4)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] == 640
    assert chosen(dataset(side=4)).data.image_size < 640  # a CPU would take too long


def test_wide_images_keep_their_aspect_ratio() -> None:
    assert "long_side" not in chosen(dataset(size=(1920, 1080))).data.model_fields_set
    for size in ((10_000, 400), (400, 10_000)):
        sizes = chosen(dataset(size=size, side=40), GPU).data.sizes()
        assert sizes.long_side / sizes.short_side == pytest.approx(25, abs=0.1)
        assert 40 * sizes.short_side / 400 > 16  # 4 pixels if the long side were 1066
        assert sizes.short_side * sizes.long_side <= 1.01 * 640 * 1066
    assert chosen(dataset(size=(20_000, 10))).data.image_size == 32
    mine = chosen(dataset(size=(10_000, 400)), data={"image_size": 200})
    assert mine.data.sizes().long_side == 333
    assert chosen(dataset(size=(10_000, 400)), data={"long_side": 900}).data.sizes().long_side == 900


def test_a_long_side_alone_is_a_limit() -> None:
    """The short side is chosen, not above it; it was compared with the default of 800."""
    for size in ((640, 480), (10_000, 400)):
        sizes = chosen(dataset(size=size, side=4), GPU, data={"long_side": 300}).data.sizes()
        assert sizes.long_side == 300
        assert sizes.short_side <= 300
    found = chosen(dataset(), GPU, data={"long_side": 300, "stretch": True}).data
    assert (found.image_size, found.long_side) == (chosen(dataset(), GPU).data.image_size, 300)
    with pytest.raises(
        ConfigError, match=r"long_side is 300; expected .* image_size, 800: set a smaller image_size"
    ):
        resolve(RunSettings.parse({"recipe": "detr_r50", "data": {"train": "x", "long_side": 300}}))


@pytest.mark.parametrize("resources", [LAPTOP, GPU, Resources(device="cpu", memory=1 << 20, cores=1)])
@pytest.mark.parametrize("max_time", [None, "10m"])
@pytest.mark.parametrize(
    "data",
    [
        dataset(1),
        dataset(3),
        dataset(50, most=0, others=0),
        dataset(200, most=5, others=0),  # few images with objects
        dataset(50, most=300, others=300, side=20, size=(1920, 1080)),
        dataset(50, most=2000),
        dataset(300, names=tuple(map(str, range(1000))), others=9),
        dataset(20, size=(1, 1), side=1),
        dataset(20, size=(9000, 9000), side=9),
    ],
    ids=[
        "one",
        "three",
        "no-objects",
        "few-objects",
        "crowded",
        "more-than-queries",
        "classes",
        "pixels",
        "huge",
    ],
)
def test_unusual_data_get_usable_settings(
    data: DetectionData, resources: Resources, max_time: str | None
) -> None:
    train = {} if max_time is None else {"max_time": max_time}
    choice = choose(settings(train=train), data, resources)
    found = resolve(choice.settings)
    assert 32 <= found.data.image_size <= 640
    assert found.data.workers <= resources.cores
    assert found.train.evaluate_every * max(1, len(data.images) // found.train.batch_size) >= 150  # about 200
    assert min(900, 2 * choice.facts.max_objects) <= found.model["queries"] <= 900
    assert choice.describe().startswith(f"recipe auto: {len(data.images):,} training image")


def test_crowded_images_get_more_queries() -> None:
    assert chosen(dataset(most=20)).model["queries"] == 100
    assert chosen(dataset(most=120)).model["queries"] == 240
    assert chosen(dataset(most=5000)).model["queries"] == 900


def test_the_number_of_updates_follows_from_the_data() -> None:
    few, many = chosen(dataset(20)), chosen(dataset(2000))
    assert few.train.epochs > many.train.epochs
    assert 20 * few.train.epochs < 2000 * many.train.epochs
    assert chosen(dataset(), train={"max_time": "10m"}).train.epochs > 1000  # the time limit ends it


def test_left_and_right_are_not_mirrored() -> None:
    assert chosen(dataset()).data.horizontal_flip == 0.5
    for name in "left hand", "hand_left", "Right":
        assert chosen(dataset(names=(name, "face"))).data.horizontal_flip == 0
    assert chosen(dataset(names=("copyright",))).data.horizontal_flip == 0.5


def test_left_and_right_are_not_mirrored_in_fine_tuning(tmp_path: Path) -> None:
    """The augmentation is otherwise that of the published model."""
    path, hands = (
        str(save(tmp_path / "detr.safetensors", "detr_r50", 600, **TINY)),
        ("left hand", "right hand"),
    )
    assert "horizontal_flip" not in chosen(dataset(), weights=path).data.model_fields_set
    for resources in LAPTOP, GPU:
        choice = choose(settings(weights=path), dataset(names=hands), resources)
        assert choice.settings.data.horizontal_flip == 0
        assert "class 'left hand' would be wrong in a mirrored image" in choice.describe()
    mirrored = chosen(dataset(names=hands), weights=path, data={"horizontal_flip": 0.3})
    assert mirrored.data.horizontal_flip == 0.3


def test_a_batch_can_be_divided_among_processes_and_parts() -> None:
    assert chosen(dataset()).train.batch_size == 4
    assert chosen(dataset(), GPU).train.batch_size == 16
    assert chosen(dataset(), replace(GPU, processes=6)).train.batch_size == 18
    assert chosen(dataset(), train={"accumulate": 8}).train.batch_size == 8


def test_images_are_kept_in_memory_if_they_fit() -> None:
    assert chosen(dataset()).data.cache
    assert not chosen(dataset(), Resources(device="cpu", memory=100 << 20, cores=2)).data.cache


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.queries", 7),
        ("data.image_size", 123),
        ("data.crop", 0.9),
        ("train.lr", 1e-6),
        ("train.patience", None),
    ],
)
def test_what_is_set_stays(name: str, value: object) -> None:
    section, key = name.split(".")
    given: dict[str, Any] = {section: {key: value}}
    found, default = chosen(dataset(), **given), chosen(dataset())
    assert found.flat().get(name, found.model.get(key)) == value
    different = {key for key, other in found.flat().items() if other != default.flat()[key]}
    assert different <= {name, "model", "data.scales"} | {f"model.{key}"}


def test_scales_follow_the_image_size() -> None:
    assert chosen(dataset(), data={"image_size": 200}).data.scales == (160, 180, 200)


def test_published_recipes_are_left_alone() -> None:
    assert is_auto(settings())
    assert is_auto(settings(recipe="auto"))
    assert is_auto(settings(recipe="detr_small"))
    assert not is_auto(settings(recipe="detr_r50"))


def save(path: Path, recipe: str, short_side: int, **model: Any) -> Path:
    detector = Detector.from_recipe(recipe, num_classes=1, **model)
    detector.preprocessing = replace(detector.preprocessing, short_side=short_side, long_side=2 * short_side)
    detector.save(path)
    return path


def test_weights_of_a_small_model_keep_their_image_size(tmp_path: Path) -> None:
    path = save(tmp_path / "cats.safetensors", "dino_small", 200, queries=30)
    for recipe in None, "auto":
        found = chosen(dataset(), weights=str(path), recipe=recipe)
        assert found.recipe is None
        assert (found.data.image_size, found.data.long_side) == (200, 400)
        assert found.data.scales == (160, 180, 200)
        assert found.model == {"queries": 30}
        assert found.train.schedule == "cosine"
        assert "cats.safetensors" in choose(settings(weights=str(path)), dataset(), LAPTOP).describe()
    named = chosen(dataset(), weights=str(path), recipe="dino_small")
    assert (named.data.image_size, named.data.long_side) == (200, 400)


@pytest.mark.parametrize("stretch", [False, True])
def test_settings_of_image_sizes_beside_weights_stay(tmp_path: Path, stretch: bool) -> None:
    path = tmp_path / "cats.safetensors"
    detector = Detector.from_recipe("detr_r50", num_classes=1, **TINY)
    resizing: Resizing = "stretch" if stretch else "querybox"
    detector.preprocessing = replace(detector.preprocessing, short_side=200, long_side=400, resizing=resizing)
    detector.save(path)

    def sizes(**data: Any) -> tuple[int, int | None, bool]:
        found = chosen(dataset(), weights=str(path), data=data).data
        return found.image_size, found.long_side, found.stretch

    assert sizes() == (200, 400, stretch)
    assert sizes(image_size=300) == (300, 600, stretch)
    assert sizes(long_side=1000) == (200, 1000, stretch)
    assert sizes(image_size=300, long_side=500) == (300, 500, stretch)
    assert sizes(stretch=stretch) == (200, 400, stretch)
    assert sizes(stretch=not stretch) == (200, None, not stretch)  # the usual ratio of that way to resize


def test_weights_of_a_published_model_are_fine_tuned_on_few_images(tmp_path: Path) -> None:
    """As published the schedule would be too long or, in updates, too short, and its batches too large for a laptop."""
    path = save(tmp_path / "detr.safetensors", "detr_r50", 600, **TINY)
    found = chosen(dataset(), weights=str(path))
    assert (found.data.image_size, found.data.long_side) == (600, 1200)
    assert (found.train.batch_size, found.train.accumulate) == (4, "auto")
    assert (found.train.lr, found.train.backbone_lr) == (
        5e-5,
        5e-6,
    )  # of 16 images 1e-4 and 1e-5: times sqrt(4 / 16)
    assert (found.train.schedule, found.train.epochs, found.train.clip) == ("cosine", 120, 0.1)
    assert found.train.ema == 0.998
    assert found.data.cache
    assert resolve(found).data.crop == 0.5  # augmentation is as published
    assert (chosen(dataset(), GPU, weights=str(path)).train.batch_size) == 16
    assert chosen(dataset(), weights=str(path), train={"accumulate": 2}).train.accumulate == 2
    unmeasured = replace(LAPTOP, reports_memory=False)
    assert chosen(dataset(), unmeasured, weights=str(path)).train.accumulate == 1


def test_the_slow_average_and_second_phase_of_a_published_training_end_with_it(tmp_path: Path) -> None:
    path = save(tmp_path / "dfine.safetensors", "dfine_n", 640, backbone_weights=None)
    found = resolve(chosen(dataset(), weights=str(path))).train
    assert (found.ema, found.ema_warmup, found.ema_restart) == (0.998, None, None)
    assert (found.lr, found.weight_decay, found.decay_norms) == (1.4e-4, 1e-4, False)  # 8e-4 for 128 images


def test_weights_of_a_published_model_are_trained_as_published_on_many_images(tmp_path: Path) -> None:
    path = save(tmp_path / "detr.safetensors", "detr_r50", 600, **TINY)
    found = chosen(dataset(6000), GPU, weights=str(path))
    assert found.train.model_dump(exclude_unset=True) == {"precision": "auto", "accumulate": "auto"}
    assert chosen(dataset(6000), weights=str(path)).train.batch_size == 4


def test_the_choices_are_explained() -> None:
    text = choose(settings(), dataset(), LAPTOP).describe()
    assert "200 training images" in text
    assert "dino_small" in text
    assert "pixels" in text
    assert len(text.splitlines()) <= 7


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "horizontal flips, crops, scales, colours"),
        ({"crop": 0.0, "color_jitter": 0.0}, "horizontal flips, scales"),
        ({"horizontal_flip": 0.0, "scales": [320]}, "no flips, crops, colours"),
        ({"horizontal_flip": 0.0, "crop": 0.0, "scales": None, "color_jitter": 0.0}, "no flips"),
    ],
)
def test_the_augmentation_that_is_explained_is_the_one_that_is_set(
    values: dict[str, Any], expected: str
) -> None:
    choice = choose(settings(data=values), dataset(), LAPTOP)
    assert choice.reasons["augmentation"][0] == expected


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    return write_boxes(tmp_path / "boxes", (96, 64), sides=(16, 40))


def tiny(boxes: Path, folder: Path, **train: Any) -> RunSettings:
    return RunSettings.parse(
        {
            "model": {**TRAINABLE, "decoder_layers": 1},
            "data": {"train": str(boxes), "image_size": 64, "workers": 0},
            "train": {"epochs": 2, **train},
            "output": str(folder),
        }
    )


def test_a_run_keeps_what_was_chosen(boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(tiny(boxes, tmp_path / "run"))
    folder = result.run_dir
    assert "AP" in result.metrics
    assert (folder / "best.safetensors").is_file()
    assert (folder / "report.html").is_file()
    kept = read_run_file(folder / "run.yaml")
    assert kept["recipe"] == "dino_small"
    assert kept["data"]["image_size"] == 64  # as set
    assert kept["train"]["schedule"] == "cosine"  # as chosen
    assert "auto" not in (folder / "run.yaml").read_text()
    held_out = (folder / "held_out.txt").read_text().splitlines()
    assert 1 <= len(held_out) <= 2
    told = capsys.readouterr().err
    assert f"{len(held_out)} of 8 images are held out" in told.replace("\n", " ")
    assert "recipe auto: " in told

    # It goes on as it began, though another machine might choose otherwise, and is repeated without choosing.
    train(tiny(boxes, folder, epochs=3, lr=kept["train"]["lr"]), resume=True)
    assert read_run_file(folder / "run.yaml")["train"]["schedule"] == "cosine"
    again = train(str(folder / "run.yaml"), output=tmp_path / "again").run_dir
    assert (again / "held_out.txt").read_text().splitlines() == held_out
    assert "recipe auto: " not in capsys.readouterr().err


@pytest.mark.usefixtures("without_shape_checks")
def test_a_run_without_validation_says_so(
    boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(tiny(boxes, tmp_path / "run", epochs=1), val="none")
    assert not result.metrics
    assert "NO VALIDATION" in capsys.readouterr().err
    # It is resumed without, too, even by settings that no longer say so.
    resumed = train(tiny(boxes, result.run_dir, epochs=2), resume=True)
    assert not resumed.metrics


@pytest.mark.usefixtures("without_shape_checks")
def test_the_folder_is_named_after_the_dataset(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tiny(boxes, tmp_path, epochs=1).model_dump(exclude_unset=True)
    run["data"]["val"] = "none"
    del run["output"]
    first = train(RunSettings.parse(run)).run_dir
    second = train(RunSettings.parse(run)).run_dir
    assert (first, second) == (tmp_path / "runs" / "boxes", tmp_path / "runs" / "boxes-2")
    resumed = train(RunSettings.parse({**run, "train": {"epochs": 2}}), resume=True)
    assert resumed.run_dir == second


def test_a_folder_whose_name_has_a_dot_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "raccoon.v1i.voc").mkdir()
    (tmp_path / "raccoon.v1i.voc" / "data.yaml").touch()
    for dataset in (tmp_path / "raccoon.v1i.voc", tmp_path / "raccoon.v1i.voc" / "data.yaml"):
        assert default_folder(dataset, resume=False) == Path("runs", "raccoon.v1i.voc")
