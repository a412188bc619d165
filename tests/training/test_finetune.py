"""Fine-tuning starts from what the pretrained detector sees, whatever its layout, classes and queries."""

from __future__ import annotations

import argparse
import csv
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import HYBRID, PUBLIC, TINY, TRAINABLE
from torch.testing import assert_close

from querybox import Category, Detector, ImageBatch, RunSettings, read_dataset, train
from querybox.checkpoints import coco
from querybox.checkpoints.hub import Snapshot
from querybox.errors import CheckpointError, ConfigError
from querybox.models import DETR
from querybox.models.layouts.facebook import FACEBOOK
from querybox.models.layouts.fundamentalvision import FUNDAMENTALVISION
from querybox.models.layouts.idea import IDEA
from querybox.models.layouts.layout import Layout
from querybox.models.layouts.mmdet3 import MMDET3
from querybox.runfile import read_run_file
from querybox.training.finetune import initialize_from, match_classes
from querybox.training.settings import Given
from querybox.training.start import build_detector, check_effect, locate, resolve

COCO_SAMPLE = Path(__file__).parent.parent / "data" / "coco_sample"
CELLS = Path(__file__).parent.parent.parent / "examples" / "blood_cells"
SMALL = {name: TINY[name] for name in TINY if name not in ("backbone", "heads")}
PETS = tuple(Category(id=number, name=name) for number, name in enumerate(("cat", "dog", "ant")))


def pretrained(recipe: str = "detr_r18", **settings: Any) -> Detector:
    """A detector whose random weights stand for pretrained ones."""
    torch.manual_seed(3)
    return Detector.from_recipe(recipe, **settings).eval()


def publish(detector: Detector, layout: Layout, path: Path, **beside: Any) -> Path:
    wrapper = "model" if layout is FACEBOOK else "state_dict"
    torch.save({wrapper: layout.to_theirs(detector.state_dict()), **beside}, path)
    return path


def begin(data: Path, weights: Path | str, output: Path, **settings: Any) -> Detector:
    """Return the detector as it is before the first step."""
    values = {"data": {"train": str(data), "image_size": 64, "workers": 0}, "weights": str(weights)}
    run = resolve(RunSettings.parse({**values, "output": str(output), **settings}))
    return Detector.of(build_detector(run, read_dataset(data, "train").categories).eval())


def assert_same_answers(tuned: Detector, source: Detector, picture: Path) -> None:
    """Compare logits and boxes of the classes that both know."""
    kept = match_classes(tuned.categories, source.categories)
    assert kept
    batch = ImageBatch.from_images([Image.open(picture).resize((96, 64))], source.preprocessing)
    with torch.inference_mode():
        ours, theirs = tuned(batch).layers[-1], source(batch).layers[-1]
    rows, source_rows = (
        [*(detector.class_rows[label] for label in labels), -1]
        for detector, labels in ((tuned, kept.keys()), (source, kept.values()))
    )
    assert_close(ours.logits[..., rows], theirs.logits[..., source_rows])
    assert_close(ours.boxes, theirs.boxes)


def test_coco_classes_are_kept_from_a_head_of_92_rows(tmp_path: Path) -> None:
    source = pretrained(categories=coco.CATEGORIES, unused_rows=coco.UNUSED_ROWS, **SMALL)
    file = publish(source, FACEBOOK, tmp_path / "detr-r18.pth", args=argparse.Namespace(nheads=8, lr=1e-4))
    tuned = begin(COCO_SAMPLE, file, tmp_path / "run")
    assert len(tuned.categories) == 80
    assert tuned.decoder.class_head.out_features == 81  # type: ignore[union-attr]
    assert_same_answers(tuned, source, next((COCO_SAMPLE / "val2017").glob("*.jpg")))


def test_detections_are_those_of_the_pretrained_model(tmp_path: Path) -> None:
    source = pretrained(categories=coco.CATEGORIES, **SMALL)
    meta = {"dataset_meta": {"classes": tuple(category.name for category in coco.CATEGORIES)}}
    file = publish(source, MMDET3, tmp_path / "detr.pth", meta=meta)
    tuned = begin(COCO_SAMPLE, file, tmp_path / "run")
    public = Detector.load(file)
    assert tuned.preprocessing.resizing == public.preprocessing.resizing
    public.preprocessing = tuned.preprocessing
    pictures = COCO_SAMPLE / "val2017"
    found, expected = (each.predict(pictures, threshold=0) for each in (tuned, public))
    assert len(found) > 1
    for one, other in zip(found, expected, strict=True):
        assert one.names == other.names
        assert_close((one.scores, one.boxes_xyxy), (other.scores, other.boxes_xyxy))


def test_the_example_goes_on_from_its_own_weights(tmp_path: Path) -> None:
    source = Detector.load(CELLS / "weights.safetensors")
    tuned = begin(CELLS, CELLS / "weights.safetensors", tmp_path / "run")
    assert tuned.recipe == source.recipe
    assert_same_answers(tuned, source, next((CELLS / "images").glob("*.jpg")))
    more = begin(CELLS, CELLS / "weights.safetensors", tmp_path / "run", model={"queries": 150})
    at = more.queries.state_dict()
    for name, tensor in source.queries.state_dict().items():
        assert_close(at[name][: len(tensor)], tensor)


def test_classes_are_matched_by_name_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="querybox")
    names = ("Platelets", "zebra", "rbc")
    source = pretrained(categories=[Category(id=n, name=name) for n, name in enumerate(names)], **SMALL)
    file = publish(source, FACEBOOK, tmp_path / "cells.pth")
    source.save(tmp_path / "cells.safetensors")
    tuned = begin(CELLS, tmp_path / "cells.safetensors", tmp_path / "run")
    assert_same_answers(tuned, source, next((CELLS / "images").glob("*.jpg")))
    assert "2 of 3 classes are kept: " in caplog.text
    assert "lacks WBC; these classes start from random weights" in caplog.text
    caplog.clear()
    begin(CELLS, file, tmp_path / "run")  # which has no names
    assert "0 of 3 classes are kept: none" in caplog.text


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (["cat", "dog"], ["dog", "bird", "cat"], {0: 2, 1: 0}),
        (["Traffic_Light", "dining-table"], ["dining table", "traffic light"], {0: 1, 1: 0}),
        (["CAT", "cat"], ["cat", "Cat"], {0: 1, 1: 0}),  # equal names first, none twice
        (["Cat", "CAT"], ["cat"], {0: 0}),
        (["cat", "cat"], ["cat"], {0: 0}),
        (["cat", "cat", "cat"], ["cat", "cat", "cat"], {0: 0, 1: 1, 2: 2}),
        (["CAT", "cat "], ["Cat", "Cat"], {0: 0, 1: 1}),
        (["pottedplant", "tv-monitor"], ["potted plant", "TVMonitor"], {0: 0, 1: 1}),
        (["caf\u00e9"], ["Cafe\u0301"], {0: 0}),  # composed and decomposed, which look the same
        (["catfish"], ["cat"], {}),
    ],
)
def test_names_match(ours: list[str], theirs: list[str], expected: dict[int, int]) -> None:
    def categories(names: list[str]) -> list[Category]:
        return [Category(id=number, name=name) for number, name in enumerate(names)]

    assert match_classes(categories(ours), categories(theirs)) == expected


@pytest.mark.parametrize("queries", [4, 10, 25])
def test_queries_are_kept_as_far_as_they_go(queries: int) -> None:
    source = pretrained(categories=PETS, **TRAINABLE)
    tuned = pretrained(categories=PETS, **{**TRAINABLE, "queries": queries})
    fresh = tuned.queries.position.detach().clone()  # type: ignore[operator]
    initialize_from(tuned, source, "file")
    both = min(queries, 10)
    assert_close(tuned.queries.position[:both], source.queries.position[:both])  # type: ignore[index]
    assert_close(tuned.queries.position[both:], fresh[both:])  # type: ignore[index]


RELATIVES: dict[str, tuple[str, ...]] = {  # and the classes of the tuned model
    "deformable_detr_r50": ("dog", "bee", "cat"),
    "deformable_detr_r50_refine": ("dog", "bee", "cat"),
    "deformable_detr_r50_two_stage": ("dog", "bee", "cat", "fly"),
    "dino_r50": ("dog", "ant", "cat"),  # all of them: it chooses proposals by the best class
}


def test_a_mask_head_starts_from_its_initial_weights_or_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="querybox")
    plain, masked = (pretrained(num_classes=2, **SMALL, masks=masks) for masks in (False, True))
    initial = {name: values.clone() for name, values in masked.state_dict().items() if "mask_head" in name}
    assert initial
    for values in plain.parameters():
        values.data.mul_(1.5)
    initialize_from(masked, plain, "plain.safetensors")
    assert "plain.safetensors: has no mask head; it starts from random weights" in caplog.text
    for name, values in masked.state_dict().items():
        assert_close(values, initial.get(name, plain.state_dict().get(name)), rtol=0, atol=0)

    fresh = pretrained(num_classes=2, **SMALL)
    initialize_from(fresh, masked, "masked.safetensors")
    assert "masked.safetensors: has a mask head, which is dropped; model.masks=true keeps it" in caplog.text
    assert_close(dict(fresh.state_dict()), dict(plain.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("recipe", RELATIVES)
def test_relatives_keep_classes_by_name(recipe: str) -> None:
    source = pretrained(recipe, categories=(Category(id=9, name="gnu"), *PETS), unused_rows=(0,), **TRAINABLE)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    names = RELATIVES[recipe] + (("gnu",) if recipe == "dino_r50" else ())
    tuned = pretrained(
        recipe, categories=[Category(id=label, name=name) for label, name in enumerate(names)], **TRAINABLE
    )
    initialize_from(tuned, source, "file")
    batch = ImageBatch.from_images([torch.randint(256, (3, 64, 96), dtype=torch.uint8)])
    kept = match_classes(tuned.categories, source.categories)
    with torch.inference_mode():
        if recipe == "dino_r50":  # its unused row has a say in the choice
            source.queries.proposals.class_head.bias[0] = -1000.0  # type: ignore[union-attr, operator]
        ours, theirs = tuned(batch).layers[-1], source(batch).layers[-1]
    rows = [source.class_rows[label] for label in kept.values()]
    assert_close(ours.logits[..., list(kept)], theirs.logits[..., rows])
    assert_close(ours.boxes, theirs.boxes)
    if recipe == "dino_r50":
        labels = source.denoising.label.weight  # type: ignore[union-attr]
        assert_close(tuned.denoising.label.weight, labels[[3, 4, 2, 1]])  # type: ignore[union-attr, index]


def test_a_relative_of_which_no_class_is_known() -> None:
    source = pretrained("dino_r50", categories=PETS, **TRAINABLE)
    tuned = pretrained("dino_r50", categories=[Category(id=0, name="bee")], **{**TRAINABLE, "queries": 12})
    fresh = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    initialize_from(tuned, source, "file")
    for name in (
        "decoder.class_heads.0.weight",
        "queries.proposals.class_head.bias",
        "denoising.label.weight",
    ):
        assert_close(tuned.state_dict()[name], fresh[name])
    assert_close(tuned.queries.content[:10], source.queries.content)  # type: ignore[index]
    assert_close(tuned.queries.content[10:], fresh["queries.content"][10:])  # type: ignore[index]


@pytest.mark.usefixtures("without_shape_checks")
def test_training_with_more_queries_stays_finite(
    run_settings: Callable[..., RunSettings], trained: Path
) -> None:
    settings = run_settings("second", epochs=20).replace(
        recipe=None, model={"queries": 30}, weights=str(trained / "last.safetensors")
    )
    result = train(settings)
    with (result.run_dir / "metrics.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 20  # of two steps each
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]
    assert all(tensor.isfinite().all() for tensor in result.detector.state_dict().values())


@pytest.mark.usefixtures("without_shape_checks")
def test_a_run_is_repeated_from_its_settings(
    run_settings: Callable[..., RunSettings], tmp_path: Path
) -> None:
    source = pretrained("detr_r50", categories=PETS, **TRAINABLE)
    source.save(tmp_path / "pets.safetensors")
    values = run_settings("run", epochs=1).model_dump(exclude={"recipe", "model"})
    first = train(RunSettings.parse({**values, "weights": str(tmp_path / "pets.safetensors")}))
    written = read_run_file(first.run_dir / "run.yaml")
    assert written["model"]["width"] == 32
    assert written["model"]["backbone"] == "test_efficientnet"
    assert written["model"]["unused_rows"] == []
    again = train(RunSettings.parse({**written, "output": str(tmp_path / "again")}))
    assert_close(again.detector.state_dict(), first.detector.state_dict(), rtol=0, atol=0)
    (tmp_path / "pets.safetensors").unlink()  # which a resumed run does not need
    train(RunSettings.parse({**written, "train": {**written["train"], "epochs": 2}}), resume=True)


def test_images_are_normalised_as_the_weights_expect_and_sized_as_the_data_say(tmp_path: Path) -> None:
    source = pretrained("detr_r50", categories=PETS, **TRAINABLE)
    source.preprocessing = type(source.preprocessing)(
        mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), short_side=320
    )
    source.save(tmp_path / "pets.safetensors")
    look = begin(CELLS, tmp_path / "pets.safetensors", tmp_path / "run").preprocessing
    assert (look.mean, look.std, look.short_side) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 64)


def test_images_are_resized_and_normalised_as_the_weights_state_beside_a_recipe(tmp_path: Path) -> None:
    source = pretrained("rtdetr_r18", categories=PETS, **HYBRID)
    source.preprocessing = replace(source.preprocessing, short_side=320, long_side=448)
    source.save(tmp_path / "pets.safetensors")
    values = {"recipe": "rtdetr_r18", "model": {"heads": 4}, "weights": str(tmp_path / "pets.safetensors")}
    data = resolve(RunSettings.parse({**values, "data": {"train": "cells"}})).data
    assert (data.image_size, data.long_side, data.stretch) == (320, 448, True)
    data = resolve(RunSettings.parse({**values, "data": {"train": "cells", "image_size": 640}})).data
    assert (data.image_size, data.long_side, data.stretch) == (640, 896, True)
    given = RunSettings.parse(
        {**values, "model": {"heads": 4, "normalize": True}, "data": {"train": "cells"}}
    )
    with pytest.raises(ConfigError, match=r"model.normalize has no effect with weights: omit"):
        check_effect(Given(settings=given), resolve(given), resume=False)


def test_what_no_tensor_shows_can_be_said(tmp_path: Path) -> None:
    file = publish(pretrained(num_classes=2, **SMALL), FACEBOOK, tmp_path / "detr-dc5.pth")
    tuned = begin(CELLS, file, tmp_path / "run", model={"dilation": True, "heads": 4})
    assert isinstance(tuned.recipe, DETR)
    assert (tuned.recipe.dilation, tuned.recipe.stride, tuned.recipe.heads) == (True, 16, 4)


@pytest.fixture(scope="module", params=["own", "public"])
def dino_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a small DINO with four heads."""
    folder = tmp_path_factory.mktemp("dino")
    source = pretrained("dino_r50", categories=PETS, **PUBLIC)
    if request.param == "own":
        source.save(folder / "small.safetensors")
        return folder / "small.safetensors"
    return publish(source, IDEA, folder / "small.pth", args=argparse.Namespace(nheads=4))


@pytest.mark.parametrize(
    ("recipe", "differences"),
    [
        ("detr_small", {"kind": ("detr", "dino"), "heads": (8, 4)}),
        (
            "conditional_detr_r50_dc5",
            {"kind": ("conditional_detr", "dino"), "dilation": (True, False), "heads": (8, 4)},
        ),
        ("deformable_detr_small", {"kind": ("deformable_detr", "dino")}),
        ("dino_r50", {"heads": (8, 4)}),
        ("rtdetr_r18", {"kind": ("rtdetr", "dino"), "heads": (8, 4)}),
        ("dfine_n", {"kind": ("dfine", "dino"), "heads": (8, 4)}),
    ],
)
def test_recipes_of_another_model_than_that_of_the_weights_are_named(
    dino_file: Path, tmp_path: Path, recipe: str, differences: dict[str, tuple[object, object]]
) -> None:
    with pytest.raises(ConfigError) as caught:
        begin(CELLS, dino_file, tmp_path / "run", recipe=recipe)
    shown = ", ".join(
        f"'model.{name}' is {ours!r} in the recipe and {theirs!r} in the file"
        for name, (ours, theirs) in differences.items()
    )
    cure = "omit 'recipe': the model is then that of the file"
    assert str(caught.value) == f"{dino_file}: is not of recipe '{recipe}': {shown}; {cure}"


def test_without_a_recipe_the_model_is_that_of_the_weights(dino_file: Path, tmp_path: Path) -> None:
    assert begin(CELLS, dino_file, tmp_path / "run").recipe.heads == 4  # type: ignore[union-attr]


def test_a_recipe_says_what_no_tensor_shows(tmp_path: Path) -> None:
    shape = {name: value for name, value in PUBLIC.items() if name != "heads"}
    source = pretrained("deformable_detr_small", categories=PETS, **shape)
    file = publish(source, FUNDAMENTALVISION, tmp_path / "small.pth")
    tuned = begin(CELLS, file, tmp_path / "run", recipe="deformable_detr_small", model=shape)
    assert tuned.recipe is not None
    assert tuned.recipe.heads == 4


def test_a_setting_of_the_user_that_contradicts_the_weights_is_named(tmp_path: Path) -> None:
    source = pretrained("dino_small", categories=PETS, **TRAINABLE)
    source.save(tmp_path / "small.safetensors")
    with pytest.raises(ConfigError, match="got heads=8, but the file says 4; omit heads"):
        begin(CELLS, tmp_path / "small.safetensors", tmp_path / "run", model={"heads": 8})


def test_settings_of_a_model_of_another_kind_than_the_weights_are_named(tmp_path: Path) -> None:
    file = tmp_path / "small.safetensors"
    source = pretrained("dino_small", categories=PETS, **TRAINABLE)
    source.save(file)
    model = pretrained("rtdetr_r18", categories=PETS, **HYBRID).recipe
    assert model is not None
    with pytest.raises(ConfigError) as caught:
        begin(CELLS, file, tmp_path / "run", model=model.model_dump(exclude={"heads"}))
    assert str(caught.value) == (
        f"{file}: 'model.kind' is 'rtdetr' in this run and 'dino' in the file; omit 'model': the model is then that of "
        "the file"
    )


def test_all_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    file = publish(pretrained(num_classes=2, **SMALL), FACEBOOK, tmp_path / "detr.pth")
    with pytest.raises(CheckpointError) as caught:
        begin(CELLS, file, tmp_path / "run", model={"feedforward": 48, "decoder_layers": 3})
    message = str(caught.value)
    assert "'model.decoder_layers' is 3 in this run and 2 in the file" in message
    assert "'model.feedforward' is 48 in this run and 64 in the file" in message
    wrong = ("encoder.layers.0", "decoder.layers.0", "decoder.layers.1")
    assert all(f"{name}.feedforward.0.weight: expected [48, 32], got [64, 32]" in message for name in wrong)
    assert "decoder.layers.2.feedforward.0.bias: expected [48], got none" in message
    assert "queries.position" not in message


def test_a_name_on_the_hub_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "snapshots"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    publish(pretrained(num_classes=2, **SMALL), FACEBOOK, folder / "pytorch_model.bin")

    snapshot = Snapshot(name="hf://someone/detector@" + "1" * 40, folder=folder)
    monkeypatch.setattr("querybox.training.start.fetch", lambda _: snapshot)
    monkeypatch.setattr("querybox.checkpoints.find.fetch", lambda _: snapshot)
    values = {
        "data": {"train": str(CELLS)},
        "weights": "hf://someone/detector",
        "output": str(tmp_path / "run"),
    }
    (tmp_path / "run.yaml").write_text("{data: {train: cells}, weights: 'hf://someone/detector'}")
    assert read_run_file(tmp_path / "run.yaml")["weights"] == "hf://someone/detector"
    resolved = resolve(locate(RunSettings.parse(values), resume=False))
    assert resolved.weights == snapshot.name
    assert resolved.model["backbone"] == "resnet18.tv_in1k"
    assert build_detector(resolved, PETS).categories == PETS
