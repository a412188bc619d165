"""Images with 16 bits a channel, of which Pillow keeps the upper byte."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import tifffile
from jaxtyping import UInt16
from PIL import Image

from querybox.data.deep import DeepValues
from querybox.data.image import examine_image, read_image, read_size
from querybox.errors import ImageError
from querybox.pixels import ORIENTATION

PNG_TYPES = {2: 4, 3: 2, 4: 6}
"""Colour types of PNG by the number of channels: gray with alpha, RGB, RGB with alpha."""
CAMERA = np.array([[[0, 16, 4095], [300, 2048, 5]], [[4080, 255, 256], [1, 2, 3]]], dtype=np.uint16)
"""An RGB image of a 12-bit camera, [2 2 3]."""
SCALED = np.round(CAMERA.astype(float) * 255 / 4095).astype(int)


def write_png(path: Path, values: UInt16[np.ndarray, "h w c"], exif: bytes = b"") -> Path:
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, PNG_TYPES[channels], 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows), b"IEND": b""}
    if exif:
        chunks = {b"IHDR": header, b"eXIf": exif, **chunks}
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks.items():
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(content)
    return path


def write_tiff(path: Path, values: UInt16[np.ndarray, "h w c"], order: str, *, planes: bool = False) -> Path:
    """Write an uncompressed TIFF.

    Args:
        path: The file.
        values: Its pixels.
        order: `<` for little-endian, `>` for big-endian.
        planes: Store each channel on its own.
    """
    height, width, channels = values.shape
    pixels = (values.transpose(2, 0, 1) if planes else values).astype(f"{order}u2").tobytes()
    bits = struct.pack(f"{order}{channels}H", *[16] * channels)
    counts = [len(pixels) // channels] * channels if planes else [len(pixels)]
    offsets = [8 + len(bits) + sum(counts[:number]) for number in range(len(counts))]
    lists = struct.pack(f"{order}{len(counts)}I", *offsets) + struct.pack(f"{order}{len(counts)}I", *counts)
    end = 8 + len(bits) + len(pixels)
    first, second = (end, end + 4 * len(counts)) if planes else (offsets[0], counts[0])
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, 8), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, len(counts), first), (277, 3, 1, channels), (278, 3, 1, height)]
    tags += [(279, 4, len(counts), second), (284, 3, 1, 2 if planes else 1)]
    tags += [(338, 3, 1, 2)] if channels == 4 else []
    directory = struct.pack(f"{order}H", len(tags))
    for tag, kind, count, value in tags:
        directory += struct.pack(f"{order}HHI", tag, kind, count)
        directory += struct.pack(
            f"{order}HH" if (kind, count) == (3, 1) else f"{order}I",
            *([value, 0] if (kind, count) == (3, 1) else [value]),
        )
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, end + len(lists))
    path.write_bytes(start + bits + pixels + lists + directory + bytes(4))
    return path


def write_compressed_tiff(path: Path, values: UInt16[np.ndarray, "h w 3"], compression: str) -> Path:
    encoder = av.CodecContext.create("tiff", "w")
    encoder.height, encoder.width = values.shape[:2]
    encoder.pix_fmt, encoder.time_base = "rgb48le", Fraction(1)
    encoder.options = {"compression_algo": compression}
    packets = encoder.encode(av.VideoFrame.from_ndarray(values, format="rgb48le")) + encoder.encode(None)
    path.write_bytes(b"".join(map(bytes, packets)))
    return path


def with_alpha(values: UInt16[np.ndarray, "h w c"]) -> UInt16[np.ndarray, "h w c+1"]:
    return np.concatenate([values, np.full_like(values[..., :1], 65535)], axis=-1)


def write(path: Path, kind: str) -> Path:
    """Write `CAMERA` as one kind of file."""
    values = with_alpha(CAMERA) if "alpha" in kind else CAMERA
    if kind.startswith("png"):
        return write_png(path, values)
    if kind.startswith("tiff"):
        return write_tiff(path, values, "<" if "little" in kind else ">")
    return write_compressed_tiff(path, values, kind)


@pytest.mark.parametrize(
    "kind",
    [
        *("png", "png alpha", "tiff little", "tiff little alpha", "tiff big", "tiff big alpha"),
        *("deflate", "lzw", "packbits"),
    ],
)
def test_colours_of_16_bits_keep_their_lower_bytes(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a", kind)
    np.testing.assert_array_equal(np.asarray(read_image(path, pixel_range=(0, 4095))), SCALED)
    np.testing.assert_array_equal(np.asarray(read_image(path)), np.round(CAMERA / 257))
    found = examine_image(path)
    assert found.deep == DeepValues(0, 4095, 65535)
    assert found.findings == [
        ("deep_image", str(path)),
        ("narrow_range", f"{path}: values from 0 to 4095 of 0 to 65535"),
    ]


def test_gray_of_16_bits_with_alpha(tmp_path: Path) -> None:
    gray = CAMERA[..., :1]
    read = read_image(write_png(tmp_path / "a.png", with_alpha(gray)), pixel_range=(0, 4095))
    np.testing.assert_array_equal(np.asarray(read), np.repeat(SCALED[..., :1], 3, axis=2))


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_gray_of_which_0_is_white(tmp_path: Path, kind: type) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, CAMERA[..., 0].astype(kind), photometric="miniswhite")
    read = np.asarray(read_image(path, pixel_range=(0, 4095)))
    np.testing.assert_array_equal(read, np.repeat(255 - SCALED[..., :1], 3, axis=2))


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_colours_of_16_bits_are_turned_upright(tmp_path: Path, orientation: int, turns: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    wide = np.concatenate([CAMERA, CAMERA[:, :1]], axis=1)
    path = write_png(tmp_path / "a.png", wide, exif.tobytes().removeprefix(b"Exif\0\0"))
    upright = np.rot90(wide, turns)
    assert read_size(path) == upright.shape[:2]
    read = np.asarray(read_image(path, upright.shape[:2], pixel_range=(0, 65535)))
    np.testing.assert_array_equal(read, np.round(upright / 257))


def test_colours_in_separate_planes_are_refused(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", CAMERA, "<", planes=True)
    for read in (read_image, examine_image):
        with pytest.raises(
            ImageError, match=r"a\.tif: has 16-bit colours in separate planes, .*; save it as PNG"
        ):
            read(path)


def test_a_truncated_image_of_16_bits_is_an_error(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 65536, (64, 64, 3), dtype=np.uint16)
    path = write_png(tmp_path / "a.png", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match="cannot be read as an image"):
        read_image(path)


def test_images_beyond_the_range_that_is_given_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of weights of a thermal camera, which make all images of another camera white."""
    monkeypatch.setattr("querybox.data.deep._warned", set())
    values = np.linspace(20000, 30000, 100, dtype=np.uint16).reshape(10, 10, 1)
    path = write_png(tmp_path / "a.png", with_alpha(values))
    problem = "100 % of its values, which are 20000 to 30000, are beyond 7012 to 9120"
    found = examine_image(path, pixel_range=(7012, 9120))
    assert found.findings == [("deep_image", str(path)), ("beyond_range", f"{path}: {problem}")]
    assert found.deep == DeepValues(20000, 30000, 65535, 1.0)
    for _ in range(2):
        assert np.asarray(read_image(path, pixel_range=(7012, 9120))).min() == 255
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"{path}: {problem}, which become black and white")
    read_image(path, pixel_range=(0, 21200))  # 88 %
    read_image(path)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("kind", "channels", "pixels"),
    [
        ("float64", 1, "1 channel of 64-bit floats"),
        ("float16", 1, "1 channel of 16-bit floats"),
        ("uint16", 5, "5 channels of 16-bit integers"),
        ("int16", 3, "3 channels of 16-bit signed integers"),
    ],
)
def test_pixels_of_tiffs_that_are_not_read_are_named(
    tmp_path: Path, kind: str, channels: int, pixels: str
) -> None:
    path = tmp_path / "a.tif"
    values = np.zeros((4, 6, channels) if channels > 1 else (4, 6), kind)
    planes = "contig" if channels > 1 else None
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig=planes, bigtiff=kind == "int16")
    with pytest.raises(
        ImageError, match=rf"a\.tif: is a TIFF with {pixels}, which is not read; expected gray"
    ):
        read_image(path)
    path.write_bytes(b"II*\0" + bytes(8))
    with pytest.raises(ImageError, match="cannot be read as an image"):
        read_image(path)
