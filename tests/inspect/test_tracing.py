from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from comparisons import assert_same_detections
from PIL import Image
from torch import nn
from torch.testing import assert_close

from querybox.detector import Detector
from querybox.errors import ConfigError, DataError
from querybox.losses.criterion import Criterion
from querybox.structures import Category, ImageBatch, Target


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((75, 50)).convert("RGB").save(path)
    return path


def test_every_stage_is_there_in_order(detr: Detector, padded: ImageBatch, target: Target) -> None:
    stages = [(stage.number, stage.name, stage.shape) for stage in detr.trace(padded, target).stages]
    assert stages == [
        (0, "images", (1, 3, 96, 128)),
        (1, "features", (1, 96, 3, 4)),
        (2, "padding mask of the image", (1, 96, 128)),
        (2, "padding mask of the map", (1, 3, 4)),
        (3, "projection", (1, 32, 3, 4)),
        (4, "positional encoding", (1, 32, 3, 4)),
        (5, "encoder layer 1", (1, 12, 32)),
        (5, "encoder layer 2", (1, 12, 32)),
        (5, "memory", (1, 12, 32)),
        (6, "queries: content", (1, 8, 32)),
        (6, "queries: position", (1, 8, 32)),
        (6, "decoder layer 1", (1, 8, 32)),
        (6, "decoder layer 2", (1, 8, 32)),
        (6, "decoder layer 3", (1, 8, 32)),
        (7, "logits", (3, 1, 8, 4)),
        (7, "boxes", (3, 1, 8, 4)),
        (8, "cost, layer 1", (2, 8)),
        (8, "cost, layer 2", (2, 8)),
        (8, "cost, layer 3", (2, 8)),
        (8, "query of each object", (3, 2)),
        (9, "object of each query", (3, 8)),
        (10, "losses", (9,)),
        (12, "scores", (8,)),
        (12, "labels", (8,)),
        (12, "boxes in pixels", (8, 4)),
    ]


def test_stages_are_what_the_model_computes(detr: Detector, padded: ImageBatch) -> None:
    detr.train()
    trace = detr.trace(padded)
    assert all(part.training for part in detr.modules() if not isinstance(part, nn.BatchNorm2d))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in detr.modules())
    detr.eval()
    stages = {stage.name: stage for stage in trace.stages}
    with torch.no_grad():
        output = detr(padded)
        features = detr.neck(detr.backbone(padded.images))
        memory = detr.encoder(features, padded.padding_mask)
    assert_close(stages["projection"].value, features[0])
    assert_close(stages["memory"].value, memory.tokens)
    assert_close(stages["positional encoding"].value.flatten(2).transpose(1, 2), memory.position)
    assert torch.equal(stages["padding mask of the map"].value.flatten(1), memory.padding_mask)
    for layer, answer in enumerate(output.layers):
        assert_close(stages["logits"].value[layer], answer.logits)
        assert_close(trace.boxes[layer], answer.boxes[0])
        assert_close(trace.scores[layer], answer.logits[0].softmax(-1)[:, :-1])
    mask = stages["padding mask of the image"]
    assert (mask.dtype, mask.range) == ("bool", (0.0, 1.0))
    timed = {name for name, stage in stages.items() if stage.seconds is not None}
    assert {"images", "features", "projection", "encoder layer 1", "decoder layer 3", "logits"} <= timed
    assert all(stages[name].seconds > 0 for name in timed)  # type: ignore[operator]


def test_losses_and_costs_are_those_of_the_criterion(
    detr: Detector, relative: Detector, padded: ImageBatch, target: Target
) -> None:
    for detector in (detr, relative):
        comparison = detector.trace(padded, target).comparison
        assert comparison is not None
        assert detector.recipe is not None
        criterion = detector.recipe.criterion()
        with torch.no_grad():
            output = detector.eval()(padded)
            losses = criterion(output, [target])
        assert comparison.losses == {name: loss.item() for name, loss in losses.items()}
        logits = torch.stack([layer.logits for layer in output.layers])
        boxes = torch.stack([layer.boxes for layer in output.layers])
        assert torch.equal(comparison.cost, criterion.matcher.cost(logits, boxes, [target])[:, 0])
        assert_close(sum(comparison.terms.values()), comparison.cost)
        matches = criterion.matcher(logits, boxes, [target])
        for layer in range(3):
            pairs = dict(zip(matches.object[layer].tolist(), matches.query[layer].tolist(), strict=True))
            assert comparison.matched[layer].tolist() == [pairs[0], pairs[1]]
            wanted = comparison.matched_objects(8)[layer].tolist()
            assert {query: each for each, query in pairs.items()} == {
                query: each for query, each in enumerate(wanted) if each >= 0
            }


class Weighted(Detector):
    def criterion(self) -> Criterion:
        return Criterion(class_weight=7.0)


def test_a_criterion_of_ones_own_is_used(detr: Detector, padded: ImageBatch, target: Target) -> None:
    plain, weighted = (each.trace(padded, target).comparison for each in (detr, Weighted.of(detr)))
    assert plain is not None
    assert weighted is not None
    assert weighted.losses["loss_cls"] == pytest.approx(7 * plain.losses["loss_cls"])


def test_more_objects_than_queries(detr: Detector, padded: ImageBatch) -> None:
    boxes = torch.rand(10, 4, generator=torch.Generator().manual_seed(0)) / 2 + 0.1
    comparison = detr.trace(padded, Target(boxes=boxes, labels=torch.zeros(10, dtype=torch.long))).comparison
    assert comparison is not None
    assert (comparison.matched == -1).sum(1).tolist() == [2, 2, 2]
    assert (comparison.matched_objects(8) >= 0).all()


def test_an_image_without_objects(detr: Detector, padded: ImageBatch) -> None:
    trace = detr.trace(padded, Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)))
    assert trace.comparison is not None
    assert trace.comparison.cost.shape == (3, 0, 8)
    assert trace.comparison.losses["loss_bbox"] == 0
    cost = next(stage for stage in trace.stages if stage.name == "cost, layer 1")
    assert cost.range is None
    json.dumps(trace.to_dict(), allow_nan=False)


def test_relatives_have_a_row_for_each_map(relative: Detector, photo: Path) -> None:
    names = [stage.name for stage in relative.trace(photo).stages]
    assert {"features 3", "projection 4", "positional encoding 4", "queries: reference"} <= set(names)
    assert "cost, layer 1" not in names


def test_a_file_is_resized_and_answered_in_its_own_pixels(detr: Detector, photo: Path) -> None:
    trace = detr.trace(photo)
    assert (trace.source, trace.size, trace.pixels.shape) == (str(photo), (50, 75), (3, 64, 96))
    (found,) = detr.predict(photo, threshold=0.0)
    assert_same_detections(trace.detections, found)
    assert trace.ranking[0] == trace.scores[-1].amax(1).argmax()


def test_pixels_of_a_batch_are_shown_as_they_were(detr: Detector, photo: Path) -> None:
    pixels = detr.trace(photo).pixels
    batch = ImageBatch.from_images([pixels], detr.preprocessing)
    assert torch.equal(detr.trace(batch).pixels, pixels)


def test_unused_rows_of_the_class_head_do_not_shift_the_classes(padded: ImageBatch) -> None:
    categories = [Category(id=1, name="a"), Category(id=3, name="b")]
    detector = Detector.from_recipe(
        "detr_r18", categories=categories, unused_rows=(0, 2), width=16, heads=2, queries=4,
        backbone="test_resnet", encoder_layers=0, decoder_layers=1,
    ).eval()  # fmt: skip
    target = Target(boxes=torch.tensor([[0.5, 0.5, 0.3, 0.4]]), labels=torch.tensor([1]))
    trace = detector.trace(padded, target)
    assert trace.comparison is not None
    logits = next(stage.value for stage in trace.stages if stage.name == "logits")
    assert_close(trace.comparison.terms["class"][0, 0], -logits[0, 0].softmax(-1)[:, 3])
    assert_close(trace.scores[0, :, 1], logits[0, 0].softmax(-1)[:, 3])


def test_what_is_no_single_image_is_refused(detr: Detector, photo: Path, padded: ImageBatch) -> None:
    two = ImageBatch.from_images([Image.new("RGB", (64, 64))] * 2)
    with pytest.raises(ConfigError, match="a batch of 2 images; expected one"):
        detr.trace(two)
    Image.new("RGB", (64, 64)).save(photo.with_name("b.png"))
    with pytest.raises(ConfigError, match="more than one image; expected one"):
        detr.trace(photo.parent)
    with pytest.raises(DataError, match="no such file"):
        detr.trace("absent.jpg")
    with pytest.raises(ConfigError, match="the label 3 for 3 classes; expected labels from 0 to 2"):
        detr.trace(padded, Target(boxes=torch.rand(1, 4), labels=torch.tensor([3])))


def test_as_plain_values(detr: Detector, padded: ImageBatch, target: Target) -> None:
    trace = detr.trace(padded, target)
    plain = json.loads(json.dumps(trace.to_dict(), allow_nan=False))
    assert plain["stages"][3] | {"seconds": None} == {
        "number": 2, "name": "padding mask of the map", "shape": [1, 3, 4], "dtype": "bool",
        "range": [0.0, 1.0], "seconds": None,
    }  # fmt: skip
    assert trace.comparison is not None
    assert plain["comparison"]["losses"] == trace.comparison.losses
    assert_close(torch.tensor(plain["comparison"]["cost"]), trace.comparison.cost)
    assert_close(torch.tensor(plain["layers"][2]["boxes"]), trace.boxes[2])


def test_shows_itself_in_jupyter(detr: Detector, padded: ImageBatch, target: Target) -> None:
    plain, full = detr.trace(padded)._repr_html_(), detr.trace(padded, target)
    assert "padding mask of the map" in plain
    assert "loss_cls" not in plain
    assert 'href="data:image/jpeg;base64,' in plain
    assert repr(full) == f"Trace({len(full.stages)} stages, {full.scores.shape[1]} queries in 3 layers)"
    text = full._repr_html_()
    assert full.comparison is not None
    assert all(f"<td>{loss:.6g}</td>" in text for loss in full.comparison.losses.values())
    assert "<b>dog" not in text
