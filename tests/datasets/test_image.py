from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features
from PIL.PngImagePlugin import PngImageFile, PngInfo

from querybox.data.deep import DeepValues
from querybox.data.image import FORMATS, examine_image, read_image, read_size
from querybox.data.locate import image_files
from querybox.errors import ImageError
from querybox.pixels import ORIENTATION

HEIGHT, WIDTH = 20, 30
DEEP = Path(__file__).parent.parent / "data" / "deep16"


def gradient() -> NDArray[np.uint8]:
    """Return a picture that shows how it is turned: dark top left, green to the right, blue downwards."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([np.zeros_like(rows), 8 * columns, 12 * rows], -1).astype(np.uint8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_of_png_becomes_rgb(tmp_path: Path, mode: str) -> None:
    Image.fromarray(gradient()).convert(mode).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.mode == "RGB"
    assert read.size == (WIDTH, HEIGHT)
    if mode in {"RGB", "RGBA"}:
        np.testing.assert_array_equal(np.asarray(read), gradient())


@pytest.mark.parametrize("transparency", [0, b"\x00\x80"])
def test_a_palette_with_transparency_keeps_its_colours(tmp_path: Path, transparency: int | bytes) -> None:
    Image.fromarray(gradient()).quantize(64).save(tmp_path / "a.png", transparency=transparency)
    difference = np.asarray(read_image(tmp_path / "a.png")).astype(int) - gradient()
    assert np.abs(difference).mean() < 6


def test_cmyk_keeps_its_colours(tmp_path: Path) -> None:
    Image.fromarray(gradient()).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    difference = np.asarray(read_image(tmp_path / "a.jpg")).astype(int) - gradient()
    assert np.abs(difference).mean() < 4


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_rescaled(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 257 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    read = np.asarray(read_image(tmp_path / f"a.{suffix}"))
    assert read[0].tolist() == [[0] * 3, [1] * 3, [100] * 3, [255] * 3]


@pytest.mark.parametrize("values", [np.full((2, 2), 0.5, np.float32), np.full((2, 2), 70000, np.int32)])
def test_pixels_of_unknown_range_are_refused(tmp_path: Path, values: NDArray[np.generic]) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"of unknown range; .* save it with 8 or 16 bits"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    undo = {
        2: 0,
        3: 3,
        4: 1,
        5: 5,
        6: 2,
        7: 6,
        8: 4,
    }  # PIL's Transpose that takes the upright image to the stored one
    upright = Image.fromarray(gradient())
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"a.{suffix}"
    lossless = {"quality": 100} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    stored.save(path, exif=exif, **lossless)
    assert np.abs(np.asarray(read_image(path)).astype(int) - gradient()).mean() < 3
    assert read_size(path) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", [b"eXIf", b"iTXt"])
def test_the_orientation_of_a_png_stands_before_or_behind_its_pixels(
    tmp_path: Path, kind: bytes, late: bool
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation='6'/>".replace(b"'", b'"')
    data = exif.tobytes().removeprefix(b"Exif\0\0") if kind == b"eXIf" else xmp
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    place = content.index(b"IEND" if late else b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(content[:place] + chunk + content[place:])
    assert read_size(tmp_path / "a.png") == (WIDTH, HEIGHT)
    assert read_image(tmp_path / "a.png").size == (HEIGHT, WIDTH)


def test_the_size_of_a_png_is_read_without_its_pixels(tmp_path: Path) -> None:
    info = PngInfo()
    info.add(b"tEXt", b"date\0today", after_idat=True)
    Image.fromarray(gradient()).save(tmp_path / "a.png", pnginfo=info)
    with mock.patch.object(PngImageFile, "load", side_effect=AssertionError):
        assert read_size(tmp_path / "a.png") == (HEIGHT, WIDTH)


@pytest.mark.parametrize("mode", ["L", "I;16", "RGBA"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_uncompressed_tiffs_are_turned_upright(tmp_path: Path, orientation: int, mode: str) -> None:
    """Of a file named to it, Pillow 13 reads the pixels of these in rows of the other length."""
    values = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    gray = (values * 100).astype(np.uint16) if mode == "I;16" else (values % 251).astype(np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(gray) if mode == "I;16" else Image.fromarray(gray).convert(mode)
    stored.save(tmp_path / "a.tif", exif=exif)
    stored.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), read_image(tmp_path / "a.png"))


def test_annotations_of_the_stored_pixels_leave_it_unturned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(gradient()).save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png").size == (HEIGHT, WIDTH)
    assert read_image(tmp_path / "a.png", (WIDTH, HEIGHT)).size == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png", (HEIGHT, WIDTH))), gradient())
    with pytest.raises(ImageError, match=r"is 30x20 .* but its annotations say 31x20"):
        read_image(tmp_path / "a.png", (31, 20))


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_the_content_counts_not_the_name(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg").size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes_are_read(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("L", size).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").size == size


@pytest.mark.parametrize("read", [read_image, read_size])
def test_what_is_no_image_is_an_error(tmp_path: Path, read: type) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg: no such image file"):
        read(tmp_path / "gone.jpg")
    for content in (b"", b"<html>not found</html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"):
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(ImageError, match=r"a\.jpg: cannot be read as an image"):
            read(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="is a folder; expected a regular file"):
        read(tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "webp", "bmp"])
def test_a_truncated_image_is_an_error(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match="cannot be read as an image"):
        read_image(path)


@pytest.mark.parametrize("side", [9_460, 20_000])
def test_too_many_pixels_are_refused_from_the_header(tmp_path: Path, side: int) -> None:
    Image.new("1", (side, side)).save(tmp_path / "a.png")
    for read in (read_image, read_size):
        with pytest.raises(ImageError, match=r"a\.png"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("min_side", "factor"), [(None, 1), (101, 1), (100, 2), (60, 2), (50, 4), (25, 8), (5, 8)]
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpegs_are_reduced_to_what_is_needed(
    tmp_path: Path, min_side: int | None, factor: int, orientation: int
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.new("RGB", (304, 200), (10, 200, 30))
    image.paste((250, 10, 10), (0, 0, 152, 200))  # the left half is red
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    size = (304, 200) if orientation == 6 else (200, 304)
    read = read_image(tmp_path / "a.jpg", size, min_side=min_side)
    assert read.size == (size[1] // factor, size[0] // factor)
    if orientation == 6:
        read = read.transpose(Image.Transpose.ROTATE_90)
    pixels = np.asarray(read).astype(int)
    quarter = pixels.shape[1] // 4
    np.testing.assert_allclose(pixels[:, :quarter].mean((0, 1)), (250, 10, 10), atol=3)
    np.testing.assert_allclose(pixels[:, -quarter:].mean((0, 1)), (10, 200, 30), atol=3)


def test_other_formats_are_not_reduced(tmp_path: Path) -> None:
    Image.new("RGB", (304, 200)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", min_side=10).size == (304, 200)


def test_bits_that_a_tiff_states_are_its_range(tmp_path: Path) -> None:
    dark = np.asarray(read_image(DEEP / "12bit.tif"))
    with Image.open(DEEP / "12bit.tif") as image:
        values = np.asarray(image).astype(int)
    assert (values.min(), values.max()) == (0, 30)
    np.testing.assert_array_equal(dark[..., 0], np.round(values * 255 / 4095))
    assert np.asarray(read_image(DEEP / "16bit.tif")).max() == round(694 / 257)


def test_nearly_black_images_of_16_bits_are_found(tmp_path: Path) -> None:
    assert ("narrow_range", f"{DEEP / '16bit.tif'}: values from 291 to 694 of 0 to 65535") in examine_image(
        DEEP / "16bit.tif"
    ).findings
    assert ("narrow_range", f"{DEEP / '12bit.tif'}: values from 0 to 30 of 0 to 4095") in examine_image(
        DEEP / "12bit.tif"
    ).findings
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 16384]], dtype=np.uint16)).save(path)
    assert [kind for kind, _ in examine_image(path).findings] == ["deep_image"]
    Image.fromarray(np.array([[0, 4095]], dtype=np.uint16)).save(path)
    assert [kind for kind, _ in examine_image(path).findings] == ["deep_image", "narrow_range"]


def test_a_range_of_pixel_values_becomes_0_to_255(tmp_path: Path) -> None:
    def read(values: np.ndarray, name: str, pixel_range: tuple[float, float]) -> list[int]:
        Image.fromarray(values).save(tmp_path / name)
        pixels: list[int] = np.asarray(read_image(tmp_path / name, pixel_range=pixel_range))[0, :, 0].tolist()
        return pixels

    deep = np.array([[0, 819, 4095, 65535]], dtype=np.uint16)
    assert read(deep, "12bit.png", (0, 4095)) == [0, 51, 255, 255]
    assert read(deep, "16bit.tif", (0, 4095)) == [0, 51, 255, 255]
    assert read(deep, "thermal.png", (819, 4095)) == [0, 0, 255, 255]
    celsius = np.array([[-20.0, 10.0, 40.0, np.nan, np.inf]], dtype=np.float32)
    assert read(celsius, "thermal.tif", (-20, 40)) == [0, 128, 255, 0, 255]
    assert read(np.array([[-5, 0, 5, 200_000]], dtype=np.int32), "32bit.tif", (-5, 5)) == [0, 128, 255, 255]
    assert examine_image(tmp_path / "thermal.png").deep == DeepValues(0, 65535, 65535)
    assert examine_image(tmp_path / "32bit.tif", pixel_range=(-5, 5)).findings == [
        ("deep_image", str(tmp_path / "32bit.tif"))
    ]
    with pytest.raises(ImageError, match=r"float pixels of unknown range; set data\.depth="):
        examine_image(tmp_path / "thermal.tif")
    gray8 = np.array([[7, 200]], dtype=np.uint8)
    assert read(gray8, "8bit.png", (0, 4095)) == [7, 200]  # 8 bits are what they are


@pytest.mark.parametrize("name", ["a.HEIC", "a.jxl", "a.dcm"])
def test_formats_that_cannot_be_read_are_to_be_converted(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic")
    assert image_files(tmp_path) == [tmp_path / name]
    with pytest.raises(ImageError, match=r"cannot be read as an image .*; convert it to JPEG or PNG"):
        read_image(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n"),
        ("WMF", b"\xd7\xcd\xc6\x9a" + bytes(40)),
        ("PSD", b"8BPS\0\x01" + bytes(40)),
        ("ICO", b"\0\0\x01\0" + bytes(40)),
    ],
)
def test_other_formats_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    """Among them are those that start programs, as EPS does Ghostscript."""
    (tmp_path / "a.png").write_bytes(content)
    for read in (read_image, read_size, examine_image):
        with pytest.raises(
            ImageError, match=rf"a\.png: is {name}, which is not read; convert it to JPEG or PNG"
        ):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("name", sorted(name for name in FORMATS if name != "AVIF" or features.check("avif")))
def test_every_format_is_read_whatever_the_name(tmp_path: Path, name: str) -> None:
    Image.fromarray(gradient()).save(tmp_path / "a.png", name)
    assert read_image(tmp_path / "a.png").size == (WIDTH, HEIGHT)


def test_images_that_may_not_be_read_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 3)).save(path)
    with (
        mock.patch("querybox.data.image.open_binary", side_effect=PermissionError(13, "Permission denied")),
        pytest.raises(
            ImageError, match=r"a\.png: cannot be read \(Permission denied\); check its permissions"
        ),
    ):
        read_image(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    (tmp_path / "c.png").mkdir()
    for name, kind in (("a", "a named pipe"), ("b", "a device"), ("c", "a folder")):
        with pytest.raises(ImageError, match=rf"{name}\.png: is {kind}; expected a regular file"):
            read_image(tmp_path / f"{name}.png")


@pytest.mark.parametrize(
    "header",
    [
        b"P6\n#" + b"x" * 70_000 + b"\n2 2\n255\n",
        b"P5 2 2\n" + b"#x\r" * 40_000 + b"255\n",
        b"P4" + b" " * 70_000 + b"2 2\n",
        b"P3#" + b"x" * 70_000,
        b"PyRGBA" + b"\n" * 70_000 + b"2 2\n255\n",
    ],
)
def test_the_header_of_a_ppm_is_bounded(tmp_path: Path, header: bytes) -> None:
    """Pillow reads it byte by byte: 50 MB took 8 s."""
    (tmp_path / "a.png").write_bytes(header + bytes(12))
    with pytest.raises(
        ImageError, match=r"a\.png: has a header of more than 65,536 bytes; save it without comments"
    ):
        read_size(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("header", "pixel"),
    [
        (b"P6\n# made by hand\n256 256\n255\n", b"\n\n "),
        (b"P4\n256 2560\n", b" "),
        (b"P5 256 256 # gray\n255\n", b"#"),
    ],
)
def test_a_ppm_of_white_space_is_read(tmp_path: Path, header: bytes, pixel: bytes) -> None:
    (tmp_path / "a.ppm").write_bytes(header + pixel * 256 * 320)
    assert read_image(tmp_path / "a.ppm").width == 256
