"""Masks of detections: enlarged to the image, cut to the boxes, written and drawn."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_models import TINY
from torch.testing import assert_close

from querybox import Detections, Detector, ImageBatch, draw
from querybox.errors import ConfigError
from querybox.inference.draw import colour_of
from querybox.inference.masks import detection_masks
from querybox.inference.predict import predict
from querybox.inference.writers import coco_file, mask_images, yolo_labels
from querybox.losses.masks import computed_masks
from querybox.mask_embeddings import SMALL, MaskEmbeddings, MaskLogits
from querybox.masks import Rle
from querybox.polygons import Polygons
from querybox.structures import Category, DetectorOutput, Predictions, Preprocessing

CATEGORIES = (Category(id=7, name="cat"), Category(id=9, name="dog"))


@pytest.mark.parametrize(
    "box",
    [
        [3.2, 4.7, 30.0, 21.1],
        [0.0, 0.0, 50.0, 40.0],  # all: columns go on at the bottom
        [7.0, -3.0, 19.0, 99.0],
        [10.0, 10.0, 10.0, 20.0],
        [-9.0, 2.0, -3.0, 8.0],
        [60.0, 2.0, 70.0, 8.0],
    ],
)
def test_a_mask_is_the_enlarged_map_within_its_box(box: list[float]) -> None:
    logits = torch.randn(2, 8, 10, generator=torch.Generator().manual_seed(0))
    # Each cell has 4 pixels of the resized image, 5 of the original.
    maps = MaskLogits.of(logits[None], torch.tensor([[0, 1]]), 2)
    (masks,) = detection_masks(
        maps, torch.tensor([[0, 1]]), [torch.tensor([box, box])], [(40, 50)], [(32, 40)]
    )
    enlarged = F.interpolate(logits[:, None], size=(40, 50), mode="bilinear")[:, 0] > 0
    left, top, right, bottom = box
    rows, columns = torch.arange(40)[:, None], torch.arange(50)
    inside = (columns + 1 > left) & (columns < right) & (rows + 1 > top) & (rows < bottom)
    for mask, wanted in zip(masks, enlarged, strict=True):
        assert mask == Rle.of((wanted & inside).numpy())


class Stub:
    """An engine whose predictions are random, for images of 60 x 90 pixels that are not resized."""

    categories = CATEGORIES
    preprocessing = Preprocessing(short_side=60, long_side=90)
    device = torch.device("cpu")

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.last = Predictions(
            logits=torch.randn(1, 10, 2, generator=generator),
            boxes=0.2 + 0.4 * torch.rand(1, 10, 4, generator=generator),
            no_object=False,
            masks=MaskEmbeddings(
                embeddings=torch.randn(1, 10, 4, generator=generator),
                cells=torch.randn(1, 4, 15, 23, generator=generator),
            ),
        )

    def __call__(self, batch: ImageBatch, /) -> DetectorOutput:
        return DetectorOutput(layers=(self.last,))


def test_predicted_masks_are_those_of_their_queries() -> None:
    engine, image = Stub(), torch.zeros(3, 60, 90, dtype=torch.uint8)
    (everything,) = predict(engine, image, threshold=0)
    order = (
        engine.last.scores()[0].flatten().argsort(descending=True) // 2
    )  # of queries, each for two classes
    assert engine.last.masks is not None
    maps = MaskLogits.of(engine.last.masks.logits(torch.arange(10)[None]), torch.arange(10)[None], 10)
    (masks,) = detection_masks(maps, order[None], [everything.boxes_xyxy], [(60, 90)], [(60, 90)])
    assert everything.masks == masks
    assert len(set(everything.masks)) == 10
    threshold = float(everything.scores[3])
    (some,) = predict(engine, image, threshold=threshold)
    assert some.masks == everything.masks[:4] == everything.above(threshold).masks
    (none,) = predict(engine, image, threshold=1)
    assert none.masks == ()


def test_masks_of_some_queries_are_those_of_all() -> None:
    masks = Stub().last.masks
    assert isinstance(masks, MaskEmbeddings)
    query = torch.tensor([[7, 2, 7, 9]])
    some = MaskLogits.of(masks.logits(query), query, 10)
    assert some.shape == masks.shape
    wanted = torch.tensor([[9, 7]])
    assert_close(some.logits(wanted), masks.logits(wanted))
    assert_close(some.of_queries(slice(5, 10)).logits(wanted - 5), masks.logits(wanted))
    with pytest.raises(ConfigError, match="got predictions of an exported model"):
        computed_masks([masks, some])
    with pytest.raises(
        ConfigError, match=r"masks of the 4 highest-scoring detections .*: pass top_k=100, or"
    ):
        some.logits(torch.tensor([[9, 3]]))


@pytest.mark.parametrize("side", [1, 7, 15])  # with the last, all cells are multiplied
def test_products_in_windows_are_those_of_the_whole_map(side: int) -> None:
    masks = Stub().last.masks
    assert masks is not None
    query = torch.tensor([[7, 2, 7, 9, 1, 0, 3, 4, 5, 6, 8]])
    windows = [(slice(0, side), slice(number // 5, 21)) for number in range(10)]
    area = sum(side * (columns.stop - columns.start) for _, columns in windows)
    assert (area > SMALL * 15 * 23) == (side == 15)
    (found,) = masks.in_windows(query, [windows])
    assert len(found) == 10
    for each, logits, window in zip(found, masks.logits(query)[0], windows, strict=False):
        assert_close(torch.from_numpy(each), logits[window])


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bf16", 0.05)])
def test_an_optimised_copy_has_the_masks_of_its_detector(
    precision: Literal["float32", "bf16"], tolerance: float
) -> None:
    torch.manual_seed(0)
    detector = Detector.from_recipe("detr_r18", categories=CATEGORIES, masks=True, **TINY).eval()
    batch = ImageBatch.from_images([torch.randint(256, (3, 60, 90), dtype=torch.uint8)])
    query = torch.arange(10)[None]
    with torch.inference_mode():
        both = [
            engine(batch).layers[-1].masks for engine in (detector, detector.optimize(precision=precision))
        ]
    first, second = (masks.logits(query) for masks in both if masks is not None)
    assert_close(second, first, rtol=0, atol=tolerance)


def found() -> Detections:
    """A triangle, two squares, and nothing."""
    triangle = Rle.of_polygons(Polygons.of([[10, 10, 40, 10, 10, 40]]), (50, 100))
    squares = np.zeros((50, 100), dtype=bool)
    squares[5:15, 60:70] = squares[20:40, 80:99] = True
    return Detections(
        boxes_xyxy=torch.tensor([[10.0, 10, 40, 40], [60, 5, 99, 40], [0, 0, 9, 9]]),
        scores=torch.tensor([0.9, 0.8, 0.7]),
        labels=torch.tensor([1, 0, 1]),
        categories=CATEGORIES,
        size=(50, 100),
        masks=(triangle, Rle.of(squares), Rle.of(np.zeros((50, 100), dtype=bool))),
    )


def test_masks_follow_their_detections() -> None:
    three = found()
    assert three.masks is not None
    assert three.above(0.75).masks == three.masks[:2]
    assert three.nms(0.5).masks == three.masks
    assert [len(parts) for parts in three.polygons()] == [1, 2, 0]
    converted = three.to_supervision()
    assert converted.mask is not None
    assert converted.mask.shape == (3, 50, 100)
    assert int(converted.mask[1].sum()) == 10 * 10 + 20 * 19
    assert three.above(1.0).pixel_masks().shape == (0, 50, 100)


def test_coco_results_and_files_have_run_lengths(tmp_path: Path) -> None:
    three = found()
    assert three.masks is not None
    results = three.to_coco(3)
    assert [each["segmentation"] for each in results] == [mask.to_coco() for mask in three.masks]
    with coco_file(tmp_path / "d.json", CATEGORIES) as add:
        add(three)
    annotations = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))["annotations"]
    assert [each["area"] for each in annotations] == [three.masks[0].area, 480, 0]
    assert annotations[0]["segmentation"]["size"] == [50, 100]


def test_yolo_labels_are_the_masks() -> None:
    three = found()
    assert three.masks is not None
    lines = three.to_yolo().splitlines()
    assert [line.split()[0] for line in lines] == ["1", "0"]  # an empty mask has no polygon
    for line, mask in zip(lines, three.masks, strict=False):
        corners = np.reshape([float(number) for number in line.split()[1:]], (-1, 2))
        assert corners.min() >= 0
        assert corners.max() <= 1
        polygon = (corners * (100, 50)).ravel().tolist()
        assert Rle.of_polygons(Polygons.of([polygon]), (50, 100)) == mask


def test_files_of_yolo_and_of_masks(tmp_path: Path) -> None:
    first, second, third = found().pixel_masks()
    masks = (first, first | second, third)  # the first is on top
    three = dataclasses.replace(found(), source="photos/a.b.png", masks=tuple(map(Rle.of, masks)))
    frame = dataclasses.replace(three, source="clip.mp4#7")
    names = {"photos/a.b.png": "a.b", "clip.mp4": "clip"}
    for add in (yolo_labels(tmp_path, names, CATEGORIES), mask_images(tmp_path, names)):
        add(three)
        add(frame)
    assert (tmp_path / "classes.txt").read_text() == "cat\ndog\n"
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == ["a.b.txt", "clip_000007.txt"]
    assert (tmp_path / "labels" / "a.b.txt").read_text() == three.to_yolo()
    for name in ("a.b", "clip_000007"):
        with Image.open(tmp_path / "masks" / f"{name}.png") as image:
            assert image.mode == "P"
            indices = np.asarray(image)
        assert (indices == np.where(first, 1, np.where(second, 2, np.where(third, 3, 0)))).all()


def test_masks_of_more_detections_than_a_palette_has_colours(tmp_path: Path) -> None:
    three = found()
    assert three.masks is not None
    masks = (three.masks[2],) * 299 + (three.masks[0],)
    repeated = three.where(torch.zeros(300, dtype=torch.long))
    many = dataclasses.replace(repeated, masks=masks, source="a.png")
    mask_images(tmp_path, {"a.png": "a"})(many)
    indices = np.asarray(Image.open(tmp_path / "masks" / "a.png"))
    assert (indices == 300 * three.masks[0].mask()).all()


def test_labels_without_masks_are_boxes() -> None:
    plain = dataclasses.replace(
        found(),
        masks=None,
        boxes_xyxy=torch.tensor([[10.0, 10, 60, 40], [0, 0, 5.5, 6.25], [0, 0, 100, 50]]),
    )
    assert [line.split()[1:] for line in plain.to_yolo().splitlines()] == [
        ["0.35", "0.5", "0.5", "0.6"],
        ["0.0275", "0.0625", "0.055", "0.125"],
        ["0.5", "0.5", "1", "1"],
    ]
    assert [line.split()[0] for line in plain.to_yolo().splitlines()] == list(map(str, plain.labels.tolist()))


def test_masks_are_drawn_translucent_with_a_contour() -> None:
    grey = np.full((50, 100, 3), 128, dtype=np.uint8)
    picture = np.asarray(draw(grey, dataclasses.replace(found(), boxes_xyxy=torch.zeros(3, 4))))
    colour = np.array(colour_of(0))
    assert (picture[30, 90] == (0.6 * 128 + 0.4 * colour).round()).all()
    assert (picture[30, 80] == colour).all()
    assert (picture[45, 90] == 128).all()
    assert (picture[25, 75] == 128).all()
    with pytest.raises(ConfigError, match=r"detections of 50x100 .* for an image of 10x20"):
        draw(Image.new("RGB", (20, 10)), found())


def test_without_a_mask_head_there_are_no_polygons() -> None:
    plain = dataclasses.replace(found(), masks=None)
    assert "segmentation" not in plain.to_coco(1)[0]
    assert plain.to_supervision().mask is None
    for call in (plain.polygons, plain.pixel_masks):
        with pytest.raises(ConfigError, match=r"have no masks; .*model\.masks=true"):
            call()
