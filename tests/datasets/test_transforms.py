from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marked_boxes import marked
from PIL import Image

from querybox.data import DataSettings, read_image, resize, resized_shape
from querybox.data.augment import augment
from querybox.data.loader import to_target
from querybox.data.transforms import Sample
from querybox.errors import ConfigError
from querybox.pixels import as_pixels
from querybox.structures import ImageBatch, Preprocessing

REFERENCE = Path(__file__).parent.parent / "data" / "preprocessing"
PLAIN = {"horizontal_flip": 0.0, "crop": 0.0}
ALWAYS = {"horizontal_flip": 1.0, "vertical_flip": 1.0, "crop": 1.0}


def test_preprocessing_is_that_of_the_reference() -> None:
    image = read_image(REFERENCE / "000000039769.png")
    pixels = resize(as_pixels(image), 800, 1333)
    batch = ImageBatch.from_images([pixels])
    assert batch.images.shape == (1, 3, 800, 1066)
    torch.testing.assert_close(
        batch.images[0, 0, 0, :3], torch.tensor([0.2796, 0.3138, 0.3481]), rtol=0, atol=5e-5
    )

    annotations = json.loads((REFERENCE / "coco_annotations.txt").read_text())
    scale = 800 / image.height * 1066 / image.width
    areas = [item["area"] * scale for item in annotations]
    assert areas == pytest.approx(
        [5887.9600, 11250.2061, 489353.8438, 837122.7500, 147967.5156, 165732.3438], abs=0.1
    )

    x, y, w, h = np.array([item["bbox"] for item in annotations]).T
    boxes = torch.from_numpy(np.stack([x, y, x + w, y + h], 1)).float()
    sample = Sample(as_pixels(image), boxes, torch.zeros(len(boxes), dtype=torch.long))
    resized = augment(sample, DataSettings.parse({**PLAIN, "scales": [800]}), np.random.default_rng(0))
    torch.testing.assert_close(resized.pixels, pixels, rtol=0, atol=0)
    expected = torch.tensor([0.5503, 0.2765, 0.0604, 0.2215])
    torch.testing.assert_close(to_target(resized).boxes[0], expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("size", [(60, 80), (480, 333)])
def test_resizing_is_that_of_pillow(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    resized = resize(torch.from_numpy(noise).permute(2, 0, 1), 100, 150)
    expected = Image.fromarray(noise).resize((resized.shape[2], resized.shape[1]), Image.Resampling.BILINEAR)
    difference = resized.permute(1, 2, 0).int() - torch.from_numpy(np.array(expected)).int()
    assert difference.abs().max() <= 1


def test_pixels_do_not_depend_on_their_order_in_memory() -> None:
    noise = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    interleaved = noise.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert as_pixels(noise.permute(1, 2, 0).numpy()).stride() == interleaved.stride() == (1, 240, 3)
    for size in (100, 40, 60):
        expected = resize(noise, size, 150)
        torch.testing.assert_close(resize(interleaved, size, 150), expected, rtol=0, atol=0)
        torch.testing.assert_close(resize(interleaved[:, 5:], size, 150), resize(noise[:, 5:], size, 150))

    plain, other = (
        ImageBatch.from_pixels(one[None], torch.tensor([[50, 70]]), Preprocessing())
        for one in (noise, interleaved)
    )
    assert plain.images.stride() == other.images.stride()  # so that the model computes the same
    torch.testing.assert_close(plain.images, other.images, rtol=0, atol=0)
    assert not plain.images[..., 50:, :].any()
    assert not plain.images[..., 70:].any()


def test_normalisation_is_exact_and_zeroes_what_is_padded() -> None:
    pixels = torch.randint(
        0, 256, (2, 3, 8, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    sizes = torch.tensor([[6, 9], [8, 5]])
    batch = ImageBatch.from_pixels(pixels, sizes, Preprocessing())
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (Preprocessing().mean, Preprocessing().std)
    )
    everywhere = zip(pixels, batch.images, batch.padding_mask, sizes.tolist(), strict=True)
    for image, normalised, mask, (height, width) in everywhere:
        expected = ((image - mean) / std)[:, :height, :width]
        torch.testing.assert_close(normalised[:, :height, :width], expected, rtol=0, atol=0)
        assert not normalised[:, mask].any()
        assert not mask[:height, :width].any()
        assert mask.sum() == mask.numel() - height * width


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((480, 640), (800, 1066)),  # not 1067: truncated
        ((640, 480), (1066, 800)),
        ((400, 1000), (533, 1332)),  # the long side caps: 533.2, 1332.5
        ((800, 800), (800, 800)),
        ((1, 1), (800, 800)),
        ((1, 10_000), (1, 1333)),
        ((10_000, 1), (1333, 1)),
    ],
)
def test_resized_shapes(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_shape(*shape, 800, 1333) == expected


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 1000), st.integers(1, 2000))
def test_resized_shapes_keep_their_bounds(height: int, width: int, short_side: int, extra: int) -> None:
    long_side = short_side + extra
    shape = resized_shape(height, width, short_side, long_side)
    assert 1 <= min(shape) <= short_side
    assert max(shape) <= long_side
    assert (shape[0] <= shape[1]) == (height <= width) or shape[0] == shape[1]
    assert shape[::-1] == resized_shape(width, height, short_side, long_side) or height == width


def test_sizes_are_those_of_the_paper_and_scale_with_one_setting() -> None:
    sizes = DataSettings().sizes()
    assert sizes.scales == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert (sizes.short_side, sizes.long_side) == (800, 1333)
    assert (sizes.crop_scales, sizes.crop_range) == ((400, 500, 600), (384, 600))
    small = DataSettings(image_size=320).sizes()
    assert small.scales == (192, 205, 218, 230, 243, 256, 269, 282, 294, 307, 320)
    assert (small.short_side, small.long_side) == (320, 533)
    assert (small.crop_scales, small.crop_range) == ((160, 200, 240), (154, 240))
    assert DataSettings(image_size=320, scales=(300,)).sizes().scales == (300,)


@pytest.mark.parametrize(
    "values",
    [
        {"image_sise": 320},
        {"image_size": 0},
        {"crop": 1.5},
        {"scales": []},
        {"workers": -1},
        {"crop_range": [600, 384]},
        {"image_size": 800, "long_side": 600},
        {"image_size": 2300},
    ],
)
def test_settings_that_cannot_be_are_errors(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        DataSettings.parse(values)


def test_flips_turn_boxes_with_their_pixels() -> None:
    sample = marked(8, 10, [(1, 2, 4, 7)])
    values = {
        **PLAIN,
        "horizontal_flip": 1.0,
        "vertical_flip": 1.0,
        "scales": [8],
        "long_side": 10,
        "image_size": 8,
    }
    flipped = augment(sample, DataSettings.parse(values), np.random.default_rng(0))
    torch.testing.assert_close(flipped.pixels, sample.pixels.flip(1, 2), rtol=0, atol=0)
    assert flipped.boxes_xyxy.tolist() == [[6, 1, 9, 6]]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(20, 120),
    st.integers(20, 120),
    st.tuples(*[st.floats(0.05, 0.9)] * 2),
    st.integers(0, 2**32),
)
def test_boxes_stay_on_their_objects(height: int, width: int, place: tuple[float, float], seed: int) -> None:
    x0, y0 = int(place[0] * width), int(place[1] * height)
    sample = marked(height, width, [(x0, y0, max(x0 + 2, width - 3), max(y0 + 2, height - 3))])
    varied = augment(sample, DataSettings.parse({**ALWAYS, "image_size": 96}), np.random.default_rng(seed))
    _, h, w = varied.pixels.shape
    sizes = DataSettings(image_size=96).sizes()
    assert min(h, w) <= max(sizes.scales)
    assert max(h, w) <= sizes.long_side
    bright = (varied.pixels[0] > 127).nonzero().float()  # [N, 2] rows and columns
    if not len(varied.boxes_xyxy):
        assert len(bright) <= h + w  # no more than a line that resizing has smeared
        return
    left, top, right, bottom = varied.boxes_xyxy[0].tolist()
    assert 0 <= left < right <= w + 1e-4  # float32
    assert 0 <= top < bottom <= h + 1e-4
    if len(bright):
        blur = 2 * max(
            h / height, w / width
        )  # resizing twice moves an edge by up to two pixels of the original
        assert bright[:, 0].min() >= top - blur
        assert bright[:, 0].max() + 1 <= bottom + blur
        assert bright[:, 1].min() >= left - blur
        assert bright[:, 1].max() + 1 <= right + blur


def test_a_crop_keeps_what_shows_and_drops_what_does_not() -> None:
    boxes = [(0, 0, 100, 100), (0, 0, 30, 30), (70, 70, 100, 100)]
    values = {
        **PLAIN,
        "crop": 1.0,
        "image_size": 100,
        "crop_scales": [100],
        "crop_range": [40, 40],
        "scales": [80],
    }
    data_settings = DataSettings.parse(values)
    seen = set()
    for seed in range(50):
        cropped = augment(marked(100, 100, boxes), data_settings, np.random.default_rng(seed))
        assert cropped.pixels.shape == (3, 80, 80)
        assert cropped.boxes_xyxy[0].tolist() == [0, 0, 80, 80]  # it fills every window
        assert cropped.labels[0] == 0
        seen.add(tuple(cropped.labels.tolist()))
    assert seen == {(0,), (0, 1), (0, 2)}


def test_an_image_without_objects_stays_one() -> None:
    varied = augment(
        marked(50, 40, []), DataSettings.parse({**ALWAYS, "image_size": 64}), np.random.default_rng(0)
    )
    assert varied.boxes_xyxy.shape == (0, 4)
    assert varied.labels.shape == (0,)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1)])
def test_extreme_shapes_do_not_explode(shape: tuple[int, int]) -> None:
    data_settings = DataSettings.parse({**ALWAYS, "image_size": 64})
    for seed in range(5):
        varied = augment(
            marked(*shape, [(0, 0, shape[1], shape[0])]), data_settings, np.random.default_rng(seed)
        )
        assert max(varied.pixels.shape) <= 107
        assert len(varied.boxes_xyxy) == 1


def test_colour_jitter_changes_colours_alone() -> None:
    sample = marked(40, 40, [(5, 5, 30, 30)])
    sample = sample._replace(pixels=sample.pixels // 2)
    plain = augment(sample, DataSettings.parse({**PLAIN, "image_size": 64}), np.random.default_rng(1))
    jittered = augment(
        sample, DataSettings.parse({**PLAIN, "image_size": 64, "color_jitter": 0.5}), np.random.default_rng(1)
    )
    assert jittered.pixels.shape == plain.pixels.shape
    assert jittered.pixels.dtype == torch.uint8
    assert (jittered.pixels != plain.pixels).any()
    torch.testing.assert_close(jittered.boxes_xyxy, plain.boxes_xyxy, rtol=0, atol=0)


def test_images_are_stretched_to_a_square_in_training_and_prediction() -> None:
    settings = DataSettings(image_size=64, stretch=True, crop=0, horizontal_flip=0)
    assert settings.sizes().scales == (64,)
    assert (settings.sizes().short_side, settings.sizes().long_side) == (64, 64)
    noise = torch.randint(0, 256, (3, 100, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[10.0, 20.0, 30.0, 80.0]])
    sample = augment(Sample(noise, boxes, torch.tensor([3])), settings, np.random.default_rng(0))
    torch.testing.assert_close(sample.pixels, resize(noise, 64, 64, "stretch"), rtol=0, atol=0)
    # 50 columns become 64, and 100 rows become 64
    torch.testing.assert_close(sample.boxes_xyxy, torch.tensor([[12.8, 12.8, 38.4, 51.2]]))
    expected = Image.fromarray(noise.permute(1, 2, 0).numpy()).resize((64, 64), Image.Resampling.BILINEAR)
    difference = sample.pixels.permute(1, 2, 0).int() - torch.from_numpy(np.array(expected)).int()
    assert difference.abs().max() <= 1
    assert resized_shape(480, 640, 32, 96, "stretch") == (32, 96)
    for width in (96, 48):
        wide = DataSettings(image_size=64, long_side=width, scales=(32,), stretch=True, crop=0)
        sample = augment(Sample(noise, boxes, torch.tensor([3])), wide, np.random.default_rng(0))
        assert sample.pixels.shape == (3, 32, width // 2)
