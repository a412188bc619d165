from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from querybox.data import read_dataset
from querybox.detector import Detector
from querybox.structures import ImageBatch, Target


def test_shows_every_stage(run: Any, model: Path, photos: Path) -> None:
    code, out, err = run("trace", photos / "images" / "val1.jpg", "--model", model, "--queries", "2")
    assert (code, err) == (0, "")
    for stage in ("padding mask of the map", "positional encoding", "memory", "decoder layer 2", "logits"):
        assert stage in out
    assert "the best 2 queries" in out
    assert "1 x 3 x 32 x 48" in out
    assert "losses" not in out


def test_costs_and_losses_are_the_criterion_s_to_the_last_digit(run: Any, model: Path, photos: Path) -> None:
    picture, words = photos / "images" / "val2.jpg", ("--annotations", photos, "--split", "val")
    code, out, err = run("trace", picture, "--model", model, *words)
    assert (code, err) == (0, "")
    plain = json.loads(run("trace", picture, "--model", model, *words, "--json")[1])

    detector = Detector.load(model)
    (record,) = [record for record in read_dataset(photos, "val").images if record.path.name == picture.name]
    corners = torch.from_numpy(record.boxes_xyxy).float() / torch.tensor([60, 40, 60, 40])
    target = Target(
        boxes=torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1),
        labels=torch.from_numpy(record.labels),
    )
    batch = ImageBatch.from_images([detector.trace(picture).pixels], detector.preprocessing)
    assert detector.recipe is not None
    criterion = detector.recipe.criterion()
    with torch.no_grad():
        answers = detector(batch)
        losses = {name: loss.item() for name, loss in criterion(answers, [target]).items()}
        cost = criterion.matcher.cost(
            torch.stack([layer.logits for layer in answers.layers]),
            torch.stack([layer.boxes for layer in answers.layers]),
            [target],
        )
    assert plain["comparison"]["losses"] == pytest.approx(losses, rel=1e-6)
    assert all(f"{loss:.6g}" in out for loss in losses.values())
    assert torch.tensor(plain["comparison"]["cost"]).shape == (2, 1, 8)
    for layer, (query,) in enumerate(plain["comparison"]["matched"]):
        assert query == cost[layer, 0, 0].argmin()
        assert f"{cost[layer, 0, 0, query]:.6g}" in out


def test_classes_are_told_by_name(run: Any, model: Path, photos: Path, tmp_path: Path) -> None:
    """The model's labels are cat, dog; a dataset's ids may order them the other way."""
    content = json.loads((photos / "annotations" / "val.json").read_text())
    swapped = {3: 9, 9: 3}
    for each in content["categories"]:
        each["id"] = swapped[each["id"]]
    for each in content["annotations"]:
        each["category_id"] = swapped[each["category_id"]]
    (tmp_path / "images").symlink_to(photos / "images")
    (tmp_path / "swapped.json").write_text(json.dumps(content))
    words = ("trace", photos / "images" / "val2.jpg", "--model", model, "--json", "--annotations")
    there = json.loads(run(*words, photos / "annotations" / "val.json")[1])["comparison"]
    here = json.loads(run(*words, tmp_path / "swapped.json")[1])["comparison"]
    assert here == there


def test_an_image_without_annotations_is_named(run: Any, model: Path, photos: Path) -> None:
    words = ("--model", model, "--annotations", photos, "--split", "val")
    code, _, err = run("trace", photos / "images" / "train1.jpg", *words)
    assert code == 2
    assert "val.json: has no annotations of" in err
    assert "train1.jpg; expected an image that it lists" in err
