"""Images in memory: the pixels that a PIL image, an array and a tensor stand for."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from querybox.data.image import read_image
from querybox.errors import ImageError
from querybox.pixels import as_pixels

UNDO = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
"""By EXIF orientation, how an upright image becomes the stored one (`PIL.Image.Transpose`)."""
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def gradient() -> UInt8[np.ndarray, "20 30 3"]:
    rows, columns = np.mgrid[:20, :30]
    return np.stack([np.zeros_like(rows), 8 * columns, 12 * rows], -1).astype(np.uint8)


def stored(orientation: int) -> tuple[Image.Image, Image.Exif]:
    """Return the picture as a camera that was held like this stores it, and its EXIF data."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image, method = Image.fromarray(gradient()), UNDO[orientation]
    return image if method is None else image.transpose(Image.Transpose(method)), exif


def hwc(image: object) -> UInt8[np.ndarray, "h w 3"]:
    return as_pixels(image).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", UNDO)
def test_a_pil_image_has_the_pixels_of_its_file(tmp_path: Path, orientation: int, suffix: str) -> None:
    image, exif = stored(orientation)
    path = tmp_path / f"a.{suffix}"
    image.save(path, exif=exif, lossless=True)  # without effect but for WebP
    with Image.open(path) as opened:
        np.testing.assert_array_equal(hwc(opened), hwc(read_image(path)))
        assert np.abs(hwc(opened).astype(int) - gradient()).mean() < 3  # once more, and the same


def test_an_upright_image_is_not_turned(tmp_path: Path) -> None:
    image, exif = stored(6)
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        turned = ImageOps.exif_transpose(opened)
        without_exif = Image.fromarray(np.array(opened))
    np.testing.assert_array_equal(hwc(turned), gradient())
    np.testing.assert_array_equal(hwc(without_exif), np.array(image))


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_what_was_read_is_never_turned_again(tmp_path: Path, mode: str) -> None:
    """Neither an upright image nor one whose annotations are those of the stored pixels."""
    image, exif = stored(6)
    image.convert(mode).save(tmp_path / "a.png", exif=exif)
    for size, expected in ((None, (20, 30)), ((20, 30), (20, 30)), ((30, 20), (30, 20))):
        assert hwc(read_image(tmp_path / "a.png", size)).shape[:2] == expected


def test_an_orientation_in_xmp_is_applied_once() -> None:
    file = BytesIO()
    stored(6)[0].save(file, "webp", xmp=XMP, lossless=True)
    with Image.open(file) as image:
        np.testing.assert_array_equal(hwc(image), gradient())


def test_a_part_of_a_turned_image_is_turned(tmp_path: Path) -> None:
    """Crops and resized copies keep the EXIF data."""
    image, exif = stored(6)
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        assert hwc(opened.crop((0, 0, 20, 10))).shape == (20, 10, 3)
        assert hwc(opened.convert("L")).shape == (20, 30, 3)


def test_damaged_exif_data_is_an_error_of_the_library() -> None:
    image = Image.new("RGB", (30, 20))
    image.info["exif"] = b"Exif\0\0nonsense"
    with pytest.raises(ImageError, match="got a PIL image of mode RGB that cannot be decoded"):
        as_pixels(image)


def test_palettes_with_transparency_are_resolved_without_a_warning() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    image.info["transparency"] = bytes([0, 128])
    assert hwc(image).tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_tensors_stay_as_they_are() -> None:
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    assert as_pixels(image) is image
