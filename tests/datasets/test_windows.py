from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marked_boxes import marked
from torchvision import tv_tensors
from torchvision.ops import box_iou
from torchvision.transforms.v2 import RandomIoUCrop

from querybox.data import DataSettings, windows
from querybox.data.augment import augment
from querybox.data.windows import Window, iou_crop, pairwise_iou, show, zoom_out

FILL = (10.0, 20.0, 30.4)
COLOR = torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None]


def test_a_window_around_an_image_shows_it_on_a_filled_canvas() -> None:
    sample = marked(10, 20, [(2, 4, 10, 8)])
    shown = show(sample, Window(-10, -30, 40, 40), (40, 40), FILL)
    torch.testing.assert_close(shown.pixels[:, 30:40, 10:30], sample.pixels, rtol=0, atol=0)
    assert (shown.pixels[:, :30] == COLOR).all()
    assert (shown.pixels[:, :, :10] == COLOR).all()
    assert (shown.pixels[:, :, 30:] == COLOR).all()
    assert shown.boxes_xyxy.tolist() == [[12, 34, 20, 38]]
    half = show(sample, Window(-10, -30, 40, 40), (20, 80), FILL)  # rows halved, columns doubled
    assert half.boxes_xyxy.tolist() == [[24, 17, 40, 19]]
    white = (half.pixels[0] > 127).nonzero()
    assert white.amin(0).tolist() == [17, 24]
    assert white.amax(0).tolist() == [18, 39]


def test_a_window_within_an_image_keeps_the_objects_whose_centre_it_has() -> None:
    boxes = [(0, 0, 8, 8), (10, 10, 30, 30), (14, 14, 24, 24), (19, 12, 23, 20), (12, 15, 16, 15)]
    sample = marked(40, 40, boxes)
    shown = show(sample, Window(12, 12, 10, 10), (20, 20), FILL)
    # The first is outside. The second and third, with centres (20, 20) and (19, 19), are clipped to the window. The
    # centre (21, 16) of the fourth is inside, and the last has no height.
    assert shown.labels.tolist() == [1, 2, 3]
    assert shown.boxes_xyxy.tolist() == [[0, 0, 20, 20], [4, 4, 20, 20], [14, 0, 20, 16]]
    torch.testing.assert_close(
        shown.pixels, show(marked(40, 40, boxes), Window(12, 12, 10, 10), (20, 20), FILL).pixels
    )


def test_objects_below_a_pixel_are_dropped() -> None:
    sample = marked(40, 40, [(0, 0, 3, 20), (10, 10, 14, 14)])
    shown = show(sample, Window(0, 0, 160, 160), (40, 40), FILL)  # a quarter: 0.75 x 5 and 1 x 1 pixels
    assert shown.labels.tolist() == [1]
    assert shown.boxes_xyxy.tolist() == [[2.5, 2.5, 3.5, 3.5]]


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 2**32))
def test_a_zoomed_out_window_has_the_whole_image(height: int, width: int, seed: int) -> None:
    window = zoom_out(Window(0, 0, width, height), np.random.default_rng(seed))
    assert window.left <= 0
    assert window.top <= 0
    assert window.left + window.width >= width
    assert window.top + window.height >= height
    assert width <= window.width <= 4 * width
    assert height <= window.height <= 4 * height


def test_zoom_out_has_ratios_of_1_to_4_and_any_position() -> None:
    drawn = [zoom_out(Window(0, 0, 100, 200), np.random.default_rng(seed)) for seed in range(500)]
    ratios = np.array([window.width / 100 for window in drawn])
    assert ratios.min() < 1.05
    assert ratios.max() > 3.95
    assert ratios.mean() == pytest.approx(2.5, abs=0.1)
    positions = np.array([-window.left / max(1, window.width - 100) for window in drawn])
    assert positions.mean() == pytest.approx(0.5, abs=0.05)


@settings(max_examples=100, deadline=None)
@given(st.integers(10, 200), st.integers(10, 200), st.integers(1, 6), st.integers(0, 2**32))
def test_an_iou_crop_is_within_its_window_and_has_an_object(
    height: int, width: int, count: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.random((count, 2)) * [width * 0.7, height * 0.7]
    boxes = torch.from_numpy(np.concatenate([corners, corners + np.array([width, height]) * 0.25], 1)).float()
    whole = Window(-3, -5, width + 3, height + 5)
    window = iou_crop(whole, boxes, rng)
    assert whole.left <= window.left
    assert whole.top <= window.top
    assert window.left + window.width <= whole.left + whole.width
    assert window.top + window.height <= whole.top + whole.height
    if window == whole:
        return
    assert max(window.width, window.height) <= 2 * min(window.width, window.height)
    assert window.width >= int(0.3 * whole.width)
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    corner = torch.tensor([window.left, window.top])
    inside = (center > corner) & (center < corner + torch.tensor([window.width, window.height]))
    assert inside.all(1).any()


def test_crops_have_the_minimum_iou_with_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = torch.tensor([[20.0, 20.0, 90.0, 90.0], [0.0, 0.0, 10.0, 10.0]])
    monkeypatch.setattr(windows, "MIN_IOUS", (0.6,))
    for seed in range(100):
        crop = iou_crop(Window(0, 0, 100, 100), boxes, np.random.default_rng(seed))
        corners = np.array(
            [[crop.left, crop.top, crop.left + crop.width, crop.top + crop.height]], dtype=float
        )
        assert pairwise_iou(corners, boxes.double().numpy()).max() >= 0.6


def test_crops_are_distributed_as_those_of_torchvision() -> None:
    boxes = torch.tensor([[20.0, 20.0, 90.0, 90.0], [150.0, 40.0, 170.0, 60.0]])
    ours = [iou_crop(Window(0, 0, 200, 100), boxes, np.random.default_rng(seed)) for seed in range(1500)]
    theirs = RandomIoUCrop()
    given = [
        tv_tensors.Image(torch.zeros(3, 100, 200)),
        tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(100, 200)),
    ]
    drawn = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(300):
            crop = theirs.make_params(given)
            drawn.append(window_of(crop))
    for number, tolerance in enumerate((4.2, 1.9, 8.1, 2.8)):  # about three standard errors of 300 crops
        mean, expected = (np.mean([window[number] for window in each]) for each in (ours, drawn))
        assert mean == pytest.approx(expected, abs=tolerance)


def window_of(crop: dict[str, int]) -> Window:
    """Return torchvision's crop of 200 x 100 pixels, which is empty for none."""
    return Window(crop.get("left", 0), crop.get("top", 0), crop.get("width", 200), crop.get("height", 100))


def test_an_image_without_objects_is_not_cropped() -> None:
    whole = Window(0, 0, 40, 30)
    assert iou_crop(whole, torch.zeros(0, 4), np.random.default_rng(0)) == whole


def test_ious_are_those_of_torchvision() -> None:
    rng = np.random.default_rng(0)
    first, second = (
        np.concatenate([c := rng.random((n, 2)) * 9, c + 1 + rng.random((n, 2)) * 5], 1) for n in (5, 4)
    )
    expected = box_iou(torch.from_numpy(first), torch.from_numpy(second)).numpy()
    np.testing.assert_allclose(pairwise_iou(first, second), expected, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(20, 120),
    st.integers(20, 120),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_boxes_stay_on_their_objects(height: int, width: int, stretch: bool, seed: int) -> None:
    sample = marked(height, width, [(width // 4, height // 4, width // 4 + 10, height // 4 + 12)])
    data = DataSettings(
        image_size=96, stretch=stretch, zoom_out=0.7, iou_crop=0.7, crop=0.3, horizontal_flip=0.5
    )
    shown = augment(sample, data, np.random.default_rng(seed), fill=(0.0, 0.0, 0.0))
    _, h, w = shown.pixels.shape
    assert (h, w) == (96, 96) or not stretch
    bright = (shown.pixels[0] > 127).nonzero().float()
    if not len(shown.boxes_xyxy):
        return
    left, top, right, bottom = shown.boxes_xyxy[0].tolist()
    assert 0 <= left < right <= w + 1e-3
    assert 0 <= top < bottom <= h + 1e-3
    if len(bright):
        blur = 1 + 2 * max(h / height, w / width)
        assert bright[:, 0].min() >= top - blur
        assert bright[:, 0].max() + 1 <= bottom + blur
        assert bright[:, 1].min() >= left - blur
        assert bright[:, 1].max() + 1 <= right + blur


def test_an_image_that_a_window_has_changed_is_not_cropped_besides() -> None:
    sample = marked(100, 100, [(40, 40, 60, 60)])
    values = {"image_size": 100, "scales": [100], "crop": 1.0, "crop_scales": [100], "crop_range": [10, 10]}
    for seed in range(10):
        zoomed = augment(sample, DataSettings.parse({**values, "zoom_out": 1.0}), np.random.default_rng(seed))
        assert len(zoomed.labels) == 1  # crops of 10 x 10 pixels would have lost it more often than not
    kept = [
        len(augment(sample, DataSettings.parse(values), np.random.default_rng(seed)).labels)
        for seed in range(10)
    ]
    assert sum(kept) < 10
