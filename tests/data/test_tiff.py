"""Parts of TIFFs: the pixels are those of the image as a whole, and what cannot be read is an error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from querybox.data import tiff
from querybox.data.deep import DeepValues
from querybox.data.image import read_image
from querybox.data.tiff import examine_tiff, image_size, is_tiff, open_tiff, read_picture
from querybox.data.windows import Window
from querybox.errors import ImageError

SIZE = (150, 210)
WINDOWS = (Window(0, 0, 210, 150), Window(37, 61, 100, 80), Window(160, 100, 50, 50), Window(64, 64, 1, 1))
COLOURS = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
GRAY = np.random.default_rng(0).integers(0, 2**16, SIZE, dtype=np.uint16)
SMOOTH = np.asarray(Image.fromarray(COLOURS[:15, :21]).resize(SIZE[::-1]))

FILES: dict[str, tuple[np.ndarray[Any, Any], dict[str, Any]]] = {
    "tiles": (COLOURS, {"tile": (64, 48)}),
    "deflate": (COLOURS, {"tile": (64, 64), "compression": "deflate", "predictor": 2}),
    "LZW": (COLOURS, {"tile": (64, 64), "compression": "lzw", "predictor": 2}),
    "Zstandard": (COLOURS, {"tile": (64, 64), "compression": "zstd"}),
    "strips": (COLOURS, {"rowsperstrip": 40, "compression": "deflate"}),
    "one strip": (COLOURS, {"rowsperstrip": 2**20}),
    "BigTIFF": (COLOURS, {"tile": (64, 64), "bigtiff": True}),
    "big endian": (GRAY, {"tile": (64, 64), "byteorder": ">"}),
    "alpha": (np.dstack([COLOURS, COLOURS[..., :1]]), {"tile": (64, 64), "extrasamples": ["unassalpha"]}),
    "gray": (COLOURS[..., 0], {"tile": (64, 64)}),
    "white is zero": (COLOURS[..., 0], {"tile": (64, 64), "photometric": "miniswhite"}),
    "16-bit, white is zero": (GRAY, {"tile": (64, 64), "photometric": "miniswhite"}),
    "16-bit gray": (GRAY, {"tile": (64, 64), "compression": "deflate"}),
    "16-bit colours": (COLOURS.astype(np.uint16) * 200, {"tile": (64, 64)}),
}  # fmt: skip


def write(path: Path, pixels: np.ndarray[Any, Any], **options: Any) -> Path:
    if pixels.ndim == 3:
        options.setdefault("photometric", "rgb")
    tifffile.imwrite(path, pixels, **options)
    return path


@pytest.mark.parametrize("name", FILES)
def test_parts_are_those_of_the_image(name: str, tmp_path: Path) -> None:
    pixels, options = FILES[name]
    path = write(tmp_path / "a.tif", pixels, **options)
    assert is_tiff(path)
    whole = np.asarray(read_image(path))
    with open_tiff(path) as image:
        assert image.size == SIZE
        for window in WINDOWS:
            left, top, width, height = window
            expected = whole[top : top + height, left : left + width]
            np.testing.assert_array_equal(image.read(window), expected)
        np.testing.assert_array_equal(image.reduced(), whole)


@pytest.mark.parametrize("writer", ["rgb", "ycbcr", "Pillow"])
def test_parts_of_jpegs(writer: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    if writer == "Pillow":
        Image.fromarray(SMOOTH).save(path, compression="jpeg", quality=90)
    else:
        write(path, SMOOTH, photometric=writer, tile=(64, 64), compression="jpeg")
    with open_tiff(path) as image:
        difference = image.read(WINDOWS[0]).astype(int) - np.asarray(read_image(path))
    assert np.abs(difference).max() <= 2  # two versions of libjpeg


def test_range_of_values(tmp_path: Path) -> None:
    values = np.linspace(-1, 3, SIZE[0] * SIZE[1], dtype=np.float32).reshape(SIZE)
    path = write(tmp_path / "a.tif", values, tile=(64, 64))
    whole = np.asarray(read_image(path, pixel_range=(0.0, 2.0)))
    with open_tiff(path, (0.0, 2.0)) as image:
        np.testing.assert_array_equal(image.read(WINDOWS[0]), whole)
    with pytest.raises(ImageError, match=r"a\.tif: has float32 pixels of unknown range"), open_tiff(path):
        pass


@pytest.mark.parametrize("kind", [np.int16, np.float16])
def test_values_that_are_not_indices_of_a_table(kind: type, tmp_path: Path) -> None:
    values: np.ndarray[Any, Any] = np.linspace(-1000, 2000, SIZE[0] * SIZE[1]).reshape(SIZE).astype(kind)
    path = write(tmp_path / "a.tif", values, tile=(64, 64))
    expected = np.round((values.astype(float).clip(0, 1000)) * 255 / 1000)
    with open_tiff(path, (0.0, 1000.0)) as image:
        np.testing.assert_array_equal(image.read(WINDOWS[0])[..., 0], expected)


def test_parts_beyond_the_range_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The zeros with which the last tiles are filled up do not count."""
    monkeypatch.setattr("querybox.data.deep._warned", set())
    path = write(tmp_path / "a.tif", GRAY // 2 + 2**14, tile=(64, 64))
    found = examine_tiff(path, pixel_range=(0, 4095))
    assert found.deep == DeepValues(
        float(2**14 + GRAY.min() // 2), float(2**14 + GRAY.max() // 2), 65535, 1.0
    )
    assert [kind for kind, _ in found.findings] == ["deep_image", "beyond_range"]
    read_picture(path, pixel_range=(0, 4095))
    caplog.clear()
    for _ in range(2):
        with open_tiff(path, (0, 4096)) as image:
            image.reduced()
    (record,) = caplog.records
    assert f"{path}: 100 % of its values" in record.getMessage()


def test_reduced_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The means of squares of 3 x 3 pixels, in bands of a few rows, as Pillow computes them at once."""
    monkeypatch.setattr(tiff, "MAX_REDUCED", 4000)
    path = write(tmp_path / "a.tif", COLOURS, tile=(64, 64))
    with open_tiff(path) as image:
        reduced = image.reduced()
    np.testing.assert_array_equal(reduced, np.asarray(Image.fromarray(COLOURS).reduce(3)))
    assert reduced.shape == (50, 70, 3)


@pytest.mark.parametrize(
    ("pixels", "options", "message"),
    [
        (COLOURS.transpose(2, 0, 1), {"tile": (64, 64), "planarconfig": "separate"}, "has colours in separate planes"),
        (COLOURS, {"tile": (64, 64), "extratags": [(274, "H", 1, 6, False)]}, r"has orientation 6, .* 1 \(upright\)"),
        (np.dstack([COLOURS, COLOURS[..., :1]]), {"photometric": "separated"}, "has colours 5 in 4 channels"),
        (COLOURS, {"compression": "png"}, "has compression 34933, .* expected none, LZW, JPEG"),
        (COLOURS > 99, {"photometric": "minisblack", "planarconfig": "contig"}, "has 1 bits a channel"),
        (np.tile(COLOURS, (1, 1, 3)), {"photometric": "minisblack", "planarconfig": "contig"}, "has .* 9 channels"),
    ],
)  # fmt: skip
def test_other_kinds_are_named(
    pixels: np.ndarray[Any, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.tif", pixels, **options)
    with pytest.raises(ImageError, match=rf"a\.tif: {message}"), open_tiff(path):
        pass


@pytest.mark.parametrize(("limit", "value", "message"), [
    ("MAX_TIFF_PIXELS", 30_000, "has 150x210 pixels"),
    ("MAX_TIFF_SIDE", 200, "has 150x210 pixels"),
    ("CACHE", 10_000, "has strips or tiles of 12,288 bytes"),
])  # fmt: skip
def test_limits(
    limit: str, value: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff, limit, value)
    path = write(tmp_path / "a.tif", COLOURS, tile=(64, 64))
    with pytest.raises(ImageError, match=message), open_tiff(path):
        pass


def test_damaged_files(tmp_path: Path) -> None:
    """A part whose data are missing, whose data are no JPEG, or are a JPEG that is larger than a tile."""
    path = write(tmp_path / "a.tif", SMOOTH, tile=(64, 64), compression="jpeg")
    content = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages.first.dataoffsets[0], file.pages.first.databytecounts[0]
    small = content[offset : offset + count]
    frame = small.index(b"\xff\xc0") + 5  # height and width in the frame header
    larger = small[:frame] + b"\x1f\xff\x1f\xff" + small[frame + 4 :]
    for other, message in (
        (content[:200], "cannot be read|truncated"),
        (content.replace(small, bytes(count)), "cannot be read as a TIFF"),
        (content.replace(small, larger), "a part is 8191x8191; expected at most 64x64"),
    ):
        path.write_bytes(other)
        with pytest.raises(ImageError, match=message), open_tiff(path) as image:
            image.read(WINDOWS[0])
    path.write_bytes(b"\x89PNG")
    assert not is_tiff(path)
    with pytest.raises(ImageError, match="cannot be read as a TIFF"), open_tiff(path):
        pass


def test_the_size_of_a_large_file_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.tif", COLOURS, tile=(64, 48))
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    deep = write(tmp_path / "deep.tif", np.zeros(SIZE, np.float32), tile=(64, 64))
    for limit in (SIZE[0] * SIZE[1] - 1, 10_000):  # Pillow itself refuses twice its limit
        monkeypatch.setattr("querybox.data.image.MAX_PIXELS", limit)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert image_size(path) == image_size(deep) == SIZE
        np.testing.assert_array_equal(np.asarray(read_picture(path)), COLOURS)
        with pytest.raises(ImageError, match=r"a\.png: .*pixels.* make it smaller, or save it as a TIFF"):
            image_size(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ImageError, match=r"which querybox\[tiff\] reads in parts with tile=640"):
        image_size(path)
