"""The comparison of how fast detectors learn, with small models on small images, for a moment each."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from documentation import copy_dataset
from environments import ENVIRONMENT

from benchmarks.convergence import __main__ as program
from benchmarks.convergence import curves, ours, pages
from benchmarks.convergence.curves import Curve, Point, Watch, marks
from benchmarks.convergence.one_class import one_class
from benchmarks.convergence.theirs import PeerModel, pad, peer_model
from benchmarks.small import Kind
from querybox import Category, Detector, ImageBatch, Target, read_dataset

pytest.importorskip("transformers")


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A COCO folder of a few small blood cells, named as COCO names its files."""
    folder = tmp_path / "coco"
    copy_dataset(folder)
    for split in ("train", "val"):
        (folder / "annotations" / f"{split}.json").rename(
            folder / "annotations" / f"instances_{split}2017.json"
        )
    return folder


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run files of a model and images that take no time."""
    folder = tmp_path / "files"
    folder.mkdir()
    model = {"backbone": "test_resnet", "backbone_weights": None, "width": 32, "heads": 4, "feedforward": 32}
    data = {"train": ".", "image_size": 60, "workers": 0}
    common = {"model": model, "data": data, "train": {"batch_size": 4, "epochs": 1000, "schedule": "cosine"}}
    (folder / "common.yaml").write_text(yaml.safe_dump(common))
    (folder / "detr_small.yaml").write_text("recipe: detr_small\nmodel: {frozen_stride: 4}\n")
    monkeypatch.setattr(ours, "FOLDER", folder)


def test_a_budget_is_evaluated_at_the_marks_and_at_its_end() -> None:
    assert marks(10) == [1, 2, 3, 4, 6, 8, 10]
    assert marks(2.5) == [1, 2, 2.5]
    assert marks(0.5) == [0.5]


def test_a_watch_evaluates_once_when_a_mark_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(metrics={"AP": 0.25, "AP50": 0.5})
    monkeypatch.setattr(curves, "evaluate", lambda *_: found)
    watch = Watch("model", 4, None, steps_per_epoch=10)  # type: ignore[arg-type]  # evaluate is not run
    engine = Detector.from_recipe("detr_r50", num_classes=1, backbone="test_resnet", width=32, heads=4)
    looks = [
        watch.evaluate_if_due(seconds, step, engine)
        for step, seconds in enumerate((30, 61, 100, 200, 241, 250))
    ]
    assert [seconds > 0 for seconds in looks] == [False, True, False, True, True, False]
    assert [point.minutes for point in watch.points] == [1, 3, 4]
    assert watch.points[0] == Point(minutes=1, seconds=61, steps=1, epochs=0.1, AP=0.25, AP50=0.5)


def test_all_run_files_share_data_batch_seed_and_budget() -> None:
    runs = [ours.settings(name, 5) for name in ours.OURS]
    assert all(run.data == runs[0].data for run in runs)
    assert {(run.train.batch_size, run.train.seed, run.train.max_time) for run in runs} == {(8, 0, 300.0)}
    assert [run.recipe for run in runs] == list(ours.OURS)
    assert ours.settings("transformers_detr", 5).data == runs[0].data


def test_one_class_of_a_folder(coco: Path, tmp_path: Path) -> None:
    folder = one_class(coco, "WBC", tmp_path / "one")
    assert one_class(coco, "WBC", tmp_path / "one") == folder
    data, source = read_dataset(folder, "val"), read_dataset(coco, "val")
    assert [category.name for category in data.categories] == ["WBC"]
    assert len(data.images) == len(source.images)
    label = [category.name for category in source.categories].index("WBC")
    assert data.num_objects == sum(int((image.labels == label).sum()) for image in source.images) > 0
    with pytest.raises(SystemExit, match="no category 'person'"):
        one_class(coco, "person", tmp_path / "other")
    with pytest.raises(SystemExit, match="expected a COCO folder"):
        one_class(tmp_path, "WBC", tmp_path / "other")


@pytest.mark.parametrize("kind", ["detr", "deformable_detr", "rtdetr", "dfine"])
def test_transformers_models_answer_as_an_engine_and_learn_all_layers(kind: Kind) -> None:
    categories = (Category(id=1, name="a"), Category(id=2, name="b"))
    model = peer_model(kind, categories, 64, 96, weights=None).train()
    batch = ImageBatch(
        images=torch.randn(2, 3, 64, 96),
        padding_mask=torch.zeros(2, 64, 96, dtype=torch.bool),
        sizes=torch.tensor([[64, 96]] * 2),
    )
    (answer,) = model(batch).layers
    assert answer.logits.shape == (2, 100, 3 if kind == "detr" else 2)
    assert answer.no_object == (kind == "detr")
    objects = Target(boxes=torch.tensor([[0.5, 0.5, 0.2, 0.2]]), labels=torch.tensor([1]))
    model.loss(batch, [objects, objects]).backward()
    lacking = [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None]
    assert not lacking


def test_boxes_of_models_without_padding_mask_are_those_of_the_images() -> None:
    """In batches with padding, and padded further: 60x90 in 64x96."""
    model = peer_model("rtdetr", (Category(id=1, name="a"),), 64, 96, weights=None).eval()
    sizes = torch.tensor([[60, 90], [48, 60]])
    given = ImageBatch(
        images=torch.randn(2, 3, 60, 90), padding_mask=torch.zeros(2, 60, 90, dtype=torch.bool), sizes=sizes
    )
    with torch.no_grad():
        (answer,) = model(given).layers
        theirs = model.model(pixel_values=pad(given.images)).pred_boxes
    pixels = answer.boxes * torch.tensor([[[90, 60, 90, 60]], [[60, 48, 60, 48]]])
    torch.testing.assert_close(pixels, theirs * torch.tensor([96, 64, 96, 64]))


def test_transformers_backbone_keeps_its_activations() -> None:
    model = PeerModel("detr", (Category(id=1, name="a"),), 64, 64, weights=None).eval()
    images = torch.randn(1, 3, 64, 64)
    mask = torch.ones(1, 64, 64)
    ((one, _),), ((two, _),) = (model.model.model.backbone(scale * images, mask) for scale in (1.0, -1.0))
    ((zero, _),) = model.model.model.backbone(0 * images, mask)
    assert not torch.allclose(one - zero, zero - two, atol=1e-3), "a linear backbone would be odd"


def test_models_are_trained_evaluated_reported_and_kept(
    small: None, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--models", "detr_small", "transformers_detr", "--minutes", "0.0001"]
    words += ["--output", str(tmp_path / "out"), "--coco", str(coco), "--category", "RBC"]
    assert program.main(words) == 0
    folder = tmp_path / "out" / "RBC"
    assert Detector.load(folder / "detr_small" / "last.safetensors").categories[0].name == "RBC"
    found = [curves.read(folder / f"{name}.json") for name in ("detr_small", "transformers_detr")]
    assert [len(curve.points) for curve in found if curve] == [1, 1]
    page = (tmp_path / "out" / "convergence.md").read_text()
    assert "other data: RBC" in page
    assert "| transformers DETR | 1.0 |" in page
    assert str(tmp_path) not in page

    capsys.readouterr()
    assert program.main(words) == 0
    assert capsys.readouterr().out.count("already trained with these settings; skipped") == 2


def test_other_settings_decide_otherwise() -> None:
    run = ours.settings("dino_small", 5)
    decisive = program.decisive_settings("dino_small", run)
    assert json.loads(json.dumps(decisive)) == decisive
    assert decisive["model"]["denoising"] > 0, "the recipe's own values count"
    assert program.decisive_settings("dino_small", ours.settings("dino_small", 6)) != decisive


def curve(name: str, **values: Any) -> Curve:
    points = [
        Point(
            minutes=minutes,
            seconds=60 * minutes + 0.5,
            steps=50 * minutes,
            epochs=2.0 * minutes,
            AP=AP50 / 2,
            AP50=AP50,
        )
        for minutes, AP50 in ((2, 0.35), (10, 0.7))
    ]
    return Curve(
        name=name, title=program.TITLES[name], settings={}, points=points, environment=ENVIRONMENT, **values
    )


def test_the_page_has_tables_and_goals_of_what_was_measured(tmp_path: Path) -> None:
    known = [curve("dino_small"), curve("transformers_detr")]
    page = pages.page(known, {"person": known[:1]}, [], "picture.png")
    assert "| querybox DINO | 0.175 / 0.350 | 0.350 / 0.700 |" in page
    assert "| transformers DETR | 4.0 | 20.0 |" in page
    assert "| AP50 0.30 after 2 minutes | 0.350 | querybox DINO | yes |" in page
    assert "| AP50 0.75 after 10 minutes | 0.700 | querybox DINO | **no** |" in page
    assert "![AP and AP50 over minutes and epochs](picture.png)" in page
    assert page.count("commit abc") == 1
    empty = pages.page([], {}, [], "picture.png")
    assert "picture.png" not in empty
    assert "reached" not in empty
    pages.draw(known, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000
