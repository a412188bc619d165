"""Copy-paste: objects of another image cover those of an image, with their boxes and masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from querybox.data import DataSettings, read_dataset, train_loader
from querybox.data import copy_paste as module
from querybox.data.augment import augment
from querybox.data.copy_paste import copy_paste, place
from querybox.data.phases import BatchAugmentation
from querybox.data.transforms import Sample, mask_boxes
from querybox.data.windows import Window
from querybox.errors import ConfigError

PLAIN = DataSettings(horizontal_flip=0, crop=0, image_size=20, scales=(20,))


def image(value: int, *boxes: tuple[int, int, int, int], shape: tuple[int, int] = (20, 30)) -> Sample:
    """Return an image of one value, whose n-th object is a rectangle (x0, y0, x1, y1) that is n brighter."""
    pixels = torch.full((3, *shape), value, dtype=torch.uint8)
    masks = torch.zeros(len(boxes), *shape, dtype=torch.bool)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        masks[number, y0:y1, x0:x1] = True
        pixels[:, y0:y1, x0:x1] = value + 1 + number
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Sample(pixels, corners, torch.arange(len(boxes)) + value, masks)


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paste at the same place and scale."""
    monkeypatch.setattr(module, "place", lambda image, *_: image)


def paste(sample: Sample, source: Sample, seed: int = 0) -> Sample:
    return copy_paste(sample, source, PLAIN, np.random.default_rng(seed))


@pytest.mark.usefixtures("in_place")
def test_what_is_covered_is_cut_by_hand() -> None:
    sample = image(10, (2, 2, 12, 8), (2, 12, 6, 16), (20, 2, 28, 18), (14, 14, 16, 16))
    pasted = paste(sample, image(100, (8, 1, 22, 17)))
    assert pasted.masks is not None
    assert sample.masks is not None
    # The first is cut at its right, the second is beside, the third is cut at its left, the fourth vanishes.
    assert pasted.boxes_xyxy.tolist() == [[2, 2, 8, 8], [2, 12, 6, 16], [20, 2, 28, 18], [8, 1, 22, 17]]
    assert pasted.labels.tolist() == [10, 11, 12, 100]
    covered = torch.zeros(20, 30, dtype=torch.bool)
    covered[1:17, 8:22] = True
    assert_close(pasted.masks, torch.cat([sample.masks[:3] & ~covered, covered[None]]))
    expected = sample.pixels.clone()
    expected[:, covered] = 101
    assert_close(pasted.pixels, expected)


@pytest.mark.usefixtures("in_place")
@pytest.mark.parametrize(("left", "kept"), [(8, True), (9, True), (10, False)])
def test_objects_of_which_less_than_a_tenth_remains_are_dropped(left: int, *, kept: bool) -> None:
    sample = image(10, (left, 0, left + 10, 10), (0, 12, 3, 14))
    pasted = paste(sample, image(100, (10, 0, 30, 10)))
    assert (10 in pasted.labels.tolist()) == kept
    if kept:
        assert pasted.boxes_xyxy[0].tolist() == [left, 0, 10, 10]


@pytest.mark.usefixtures("in_place")
def test_boxes_that_are_not_covered_stay_as_they_are() -> None:
    sample = image(10, (2, 2, 6, 6))
    loose = sample._replace(boxes_xyxy=torch.tensor([[1.5, 1.25, 7.0, 6.5]]))
    pasted = paste(loose, image(100, (20, 2, 24, 6)))
    assert pasted.boxes_xyxy[0].tolist() == [1.5, 1.25, 7.0, 6.5]


def test_images_without_masks_neither_give_nor_receive() -> None:
    sample, source = image(10, (2, 2, 6, 6)), image(100, (2, 2, 6, 6))
    for pair in (
        (sample, source._replace(masks=None)),
        (sample._replace(masks=None), source),
        (sample, image(100)),
    ):
        assert paste(*pair) is pair[0]


def test_a_negative_example_receives_objects() -> None:
    pasted = [paste(image(10), image(100, (5, 5, 25, 15)), seed) for seed in range(8)]
    assert any(len(each.labels) for each in pasted)


def test_masks_boxes_and_pixels_belong_together_at_all_places_and_scales() -> None:
    counts, areas = set(), []
    for seed in range(40):
        source = image(100, (3, 3, 13, 13), (20, 8, 38, 30), shape=(40, 50))
        made = copy_paste(image(10), source, PLAIN.replace(horizontal_flip=0.5), np.random.default_rng(seed))
        counts.add(len(made.labels))
        if not len(made.labels):
            continue
        assert made.masks is not None
        assert made.masks.shape == (len(made.labels), 20, 30)
        assert (mask_boxes(made.masks) - made.boxes_xyxy).abs().max() <= 1
        assert_close(made.pixels[0] > 50, made.masks.any(0))
        areas.append(int(made.masks[0].sum()))
    assert {1, 2} <= counts <= {0, 1, 2}
    assert max(areas) > 2 * min(areas)


def test_the_other_image_is_inside_or_covers_this_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        left, top, width, height = place(Window(0, 0, 50, 40), (20, 30), rng)
        scale = 20 / height * 40 / 20  # of the other image, relative to its fitting size
        assert 0.49 <= scale <= 1.52
        assert min(0, 50 - width) <= left <= max(0, 50 - width)
        assert min(0, 40 - height) <= top <= max(0, 40 - height)


def test_augmentation_pastes_with_its_probability() -> None:
    source = image(200, (5, 5, 25, 15))
    settings = PLAIN.replace(copy_paste=0.5)

    def augmented(seed: int, settings: DataSettings, *, mosaic: bool = True) -> Sample:
        rng = np.random.default_rng(seed)
        return augment(image(10), settings, rng, BatchAugmentation(mosaic=mosaic), draw=lambda: source)

    made = [len(augmented(seed, settings).labels) for seed in range(40)]
    assert 10 <= sum(made) <= 25
    assert made == [len(augmented(seed, settings).labels) for seed in range(40)]
    assert not any(len(augmented(seed, settings, mosaic=False).labels) for seed in range(40))
    assert not any(len(augmented(seed, PLAIN).labels) for seed in range(40))


def test_a_detector_of_boxes_is_trained_with_pasted_objects(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30), (90, 90, 90)).save(tmp_path / name)
    square = [[5, 5, 25, 5, 25, 20, 5, 20]]
    content = {
        "images": [
            {"id": number, "file_name": name, "width": 40, "height": 30}
            for number, name in enumerate(("a.png", "b.png"))
        ],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 0,
                "category_id": 1,
                "bbox": [5, 5, 20, 15],
                "segmentation": square,
                "iscrowd": 0,
            }
        ],
    }
    file = tmp_path / "train.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    data = read_dataset(file)
    settings = PLAIN.replace(copy_paste=1.0, workers=0, image_size=30, scales=(30,))
    found = 0
    for masks in (False, True):
        loader = train_loader(data, settings, batch_size=2, seed=0, masks=masks, epochs=4)
        for epoch in range(4):
            loader.batch_sampler.set_epoch(epoch)
            for batch in loader:
                found += sum(len(target.labels) for target in batch.targets)
                assert all((target.masks is not None) == masks for target in batch.targets)
    assert found > 8  # without pasted objects there are 4 with each setting
    del content["annotations"][0]["segmentation"]
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"setting 'data.copy_paste' is 1, but .* has no masks"):
        train_loader(read_dataset(file), settings, batch_size=2, seed=0)
