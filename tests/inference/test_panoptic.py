"""Panoptic segmentation of masks that overlap, compared with transformers'."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jaxtyping import Bool
from panoptic_sets import CATEGORIES, draw_segments
from PIL import Image
from tiny_models import TINY
from torch.testing import assert_close
from transformers.models.detr.image_processing_detr import DetrImageProcessor

from querybox import Detector
from querybox.data import read_dataset
from querybox.errors import ConfigError
from querybox.inference.detections import Detections
from querybox.inference.file_names import file_names
from querybox.inference.writers import coco_file, panoptic_file
from querybox.masks import Rle, rasterised
from querybox.structures import Category, Preprocessing

SIZE = (40, 56)
CELL, FIBRE, GLASS, TISSUE = range(4)


def detections(masks: Bool[np.ndarray, "N H W"], labels: list[int], scores: list[float]) -> Detections:
    return Detections(
        boxes_xyxy=torch.zeros(len(masks), 4),
        scores=torch.tensor(scores),
        labels=torch.tensor(labels, dtype=torch.long),
        categories=CATEGORIES,
        size=(masks.shape[1], masks.shape[2]),
        masks=tuple(map(Rle.of, masks)),
    )


def random_detections(seed: int) -> Detections:
    """Make masks of ellipses, most of which overlap others, above one of the whole image."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    count = int(rng.integers(1, 12))
    masks = [
        ((rows - rng.uniform(0, SIZE[0])) / rng.uniform(3, 16)) ** 2
        + ((columns - rng.uniform(0, SIZE[1])) / rng.uniform(3, 16)) ** 2
        < 1
        for _ in range(count)
    ]
    scores = np.sort(rng.uniform(0.55, 1, count))[::-1]
    labels = rng.integers(0, 3, count).tolist()
    whole = np.ones((1, *SIZE), dtype=bool)
    return detections(np.concatenate([masks, whole]), [*labels, TISSUE], [*scores.tolist(), 0.51])


def by_transformers(found: Detections, overlap: float) -> list[dict[int, np.ndarray]]:
    """Return the pixels of each segment, by its label, of transformers; nothing is fused."""
    logits = torch.full((1, len(found), len(CATEGORIES) + 1), -torch.inf, dtype=torch.float64)
    rest = 1 - found.scores.double()
    logits[0, torch.arange(len(found)), found.labels] = found.scores.double().log()
    logits[0, :, -1] = torch.where(rest < found.scores, rest, 0).log()
    masks = torch.from_numpy(found.pixel_masks()).double()
    outputs = SimpleNamespace(logits=logits, pred_masks=(masks * 200 - 100)[None])
    (result,) = DetrImageProcessor().post_process_panoptic_segmentation(
        outputs, overlap_mask_area_threshold=overlap, label_ids_to_fuse=set()
    )
    segmentation = result["segmentation"].numpy()
    return [{one["label_id"]: segmentation == one["id"]} for one in result["segments_info"]]


@pytest.mark.parametrize("overlap", [0.5, 0.75])
@pytest.mark.parametrize("seed", range(20))
def test_segments_are_those_of_transformers(
    seed: int, overlap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("querybox.inference.panoptic.MIN_AREA", 1)
    found = random_detections(seed)
    theirs = by_transformers(found, overlap)
    ours = found.panoptic(overlap)
    merged: dict[int, list[np.ndarray]] = {}  # ours are merged; transformers' ids repeat where it merges
    for segment in theirs:
        for label, pixels in segment.items():
            if CATEGORIES[label].stuff and label in merged:
                merged[label][0] |= pixels
            else:
                merged.setdefault(label, []).append(pixels)
    assert len(ours.labels) == sum(map(len, merged.values()))
    for label, segments in merged.items():
        numbers = [number for number, one in enumerate(ours.labels, start=1) if one == label]
        for number, pixels in zip(numbers, segments, strict=True):
            np.testing.assert_array_equal(ours.numbers == number, pixels)
    assert ((ours.numbers == 0) == ~np.any([one for many in merged.values() for one in many], 0)).all()


def test_something_is_dropped_and_merged() -> None:
    """The random masks have what the rule is about."""
    many = [random_detections(seed) for seed in range(20)]
    assert sum(len(one.panoptic(0.5).labels) for one in many) < sum(map(len, many))
    assert sum(len(one.panoptic(0.5).labels) for one in many) > sum(
        len(one.panoptic(0.9).labels) for one in many
    )


def strips(*columns: tuple[int, int]) -> Bool[np.ndarray, "N 10 20"]:
    masks = np.zeros((len(columns), 10, 20), dtype=bool)
    for mask, (start, stop) in zip(masks, columns, strict=True):
        mask[:, start:stop] = True
    return masks


def test_stuff_is_merged_and_things_are_not() -> None:
    masks = strips((0, 4), (4, 8), (8, 12), (12, 16))
    panoptic = detections(masks, [GLASS, CELL, GLASS, CELL], [0.9, 0.8, 0.7, 0.6]).panoptic()
    assert panoptic.labels.tolist() == [GLASS, CELL, CELL]
    np.testing.assert_allclose(panoptic.scores, [0.9, 0.8, 0.6])
    assert panoptic.numbers[0].tolist() == [1] * 4 + [2] * 4 + [1] * 4 + [3] * 4 + [0] * 4


def test_covered_masks_are_dropped_and_leave_void() -> None:
    masks = strips((0, 10), (0, 10), (5, 20))
    panoptic = detections(masks, [CELL, FIBRE, CELL], [0.9, 0.8, 0.7]).panoptic(overlap=0.7)
    assert panoptic.labels.tolist() == [CELL]  # a third of the last one is covered
    assert (panoptic.numbers[:, 10:] == 0).all()
    assert detections(masks, [CELL, FIBRE, CELL], [0.9, 0.8, 0.7]).panoptic(0.6).labels.tolist() == [
        CELL,
        CELL,
    ]


def test_segments_of_a_few_pixels_are_dropped() -> None:
    masks = np.zeros((2, 10, 20), dtype=bool)
    masks[0, 0, :4] = masks[1, 5, :5] = True
    panoptic = detections(masks, [CELL, FIBRE], [0.9, 0.8]).panoptic()
    assert panoptic.labels.tolist() == [FIBRE]
    assert np.unique(panoptic.numbers).tolist() == [0, 1]


def test_nothing_has_no_segments() -> None:
    panoptic = detections(np.zeros((0, 10, 20), dtype=bool), [], []).panoptic()
    assert panoptic.segments_info() == []
    assert (panoptic.colours() == 0).all()
    empty = detections(np.zeros((1, 10, 20), dtype=bool), [CELL], [0.9]).panoptic()
    assert len(empty.labels) == 0


def test_boxes_alone_cannot_be_segmented() -> None:
    found = Detections(
        boxes_xyxy=torch.zeros(0, 4),
        scores=torch.zeros(0),
        labels=torch.zeros(0, dtype=torch.long),
        categories=CATEGORIES,
        size=SIZE,
    )
    with pytest.raises(ConfigError, match="panoptic: the detections have no masks"):
        found.panoptic()
    with pytest.raises(ConfigError, match="overlap"):
        random_detections(0).panoptic(1.5)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """The files are a dataset with the same segments, classes and colours."""
    (tmp_path / "photos").mkdir()
    written = []
    rng = np.random.default_rng(0)
    files = [tmp_path / "photos" / name for name in ("a.png", "b.png")]
    with panoptic_file(tmp_path / "panoptic.json", file_names(files), CATEGORIES) as add:
        for file in files:
            regions = draw_segments(rng, SIZE, 6)
            Image.new("RGB", SIZE[::-1]).save(file)
            masks = np.stack([regions == number for number in range(1, 7)])
            found = detections(masks, [0, 1, 2, 3, 2, 0], [0.9, 0.8, 0.7, 0.6, 0.55, 0.5])
            found = Detections(
                **{name: getattr(found, name) for name in Detections.__slots__} | {"source": str(file)}
            )
            add(found)
            written.append(found.panoptic())
    data = read_dataset(tmp_path / "panoptic.json")
    assert data.categories == CATEGORIES
    assert [record.path for record in data.images] == files
    assert not data.findings or {one.kind for one in data.findings} <= {"subpixel_box"}
    for record, panoptic in zip(data.images, written, strict=True):
        assert record.labels.tolist() == panoptic.labels.tolist() == [0, 1, 2, 3, 0]
        for number, region in enumerate(record.masks or (), start=1):
            assert region is not None
            np.testing.assert_array_equal(rasterised(region, SIZE).mask(), panoptic.numbers == number)
    with coco_file(tmp_path / "detections.json", CATEGORIES) as add:
        add(found)
    assert read_dataset(tmp_path / "detections.json").categories == CATEGORIES
    content = json.loads((tmp_path / "panoptic.json").read_text())
    assert [one["isthing"] for one in content["categories"]] == [1, 1, 0, 0]
    infos = content["annotations"][1]["segments_info"]
    assert infos[0]["score"] == pytest.approx(0.9)
    colours = np.asarray(Image.open(tmp_path / "panoptic" / "b.png")).astype(int)
    ids = colours[..., 0] + 256 * colours[..., 1] + 256**2 * colours[..., 2]
    assert {one["id"]: one["area"] for one in infos} == {
        number: int((ids == number).sum()) for number in np.unique(ids[ids > 0]).tolist()
    }


def test_masks_of_stuff_are_not_cut_to_their_boxes() -> None:
    torch.manual_seed(0)
    names = ("sky", "grass")
    detector = Detector.from_recipe("dino_small", categories=names, masks=True, **TINY).eval()
    detector.preprocessing = Preprocessing(short_side=32, long_side=64)
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    (things,) = detector.predict(image, threshold=0)
    detector.categories = tuple(
        Category(id=number, name=name, stuff=True) for number, name in enumerate(names)
    )
    (stuff,) = detector.predict(image, threshold=0)
    assert_close(stuff.boxes_xyxy, things.boxes_xyxy)
    outside = 0
    for box, thing, whole in zip(
        things.boxes_xyxy.tolist(), things.pixel_masks(), stuff.pixel_masks(), strict=True
    ):
        left, top, right, bottom = (
            math.floor(box[0]),
            math.floor(box[1]),
            math.ceil(box[2]),
            math.ceil(box[3]),
        )
        inside = np.zeros(SIZE, dtype=bool)
        inside[top:bottom, left:right] = True
        np.testing.assert_array_equal(thing, whole & inside)
        outside += (whole & ~inside).sum()
    assert outside > 0
