"""Images in memory are read as those on the disk, and refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from querybox.data.encoded import EncodedImage
from querybox.data.image import read_image
from querybox.errors import ImageError
from querybox.pixels import ORIENTATION

DEEP = sorted((Path(__file__).parent.parent / "data" / "deep16").glob("*.tif"))


def encoded(path: Path) -> EncodedImage:
    return EncodedImage(name="images[0]", content=path.read_bytes())


@pytest.mark.parametrize("path", DEEP, ids=lambda path: path.name)
def test_images_of_16_bits_are_read_as_from_the_disk(path: Path) -> None:
    np.testing.assert_array_equal(np.asarray(read_image(encoded(path))), np.asarray(read_image(path)))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_images_are_turned_upright(tmp_path: Path, name: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.linear_gradient("L").crop((0, 0, 30, 20)).save(tmp_path / name, exif=exif)
    read = read_image(encoded(tmp_path / name))
    assert read.size == (20, 30)
    assert read == read_image(tmp_path / name)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_image_is_refused_without_addresses(content: bytes) -> None:
    with pytest.raises(ImageError, match=r"^images\[0\]: ") as error:
        read_image(EncodedImage(name="images[0]", content=content))
    assert "0x" not in str(error.value)


def test_the_limit_of_pixels_can_be_lower(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    assert read_image(encoded(tmp_path / "a.png"), max_pixels=600).size == (30, 20)
    with pytest.raises(
        ImageError, match=r"images\[0\]: 20x30 is 600 pixels; expected at most 599: make it smaller$"
    ):
        read_image(encoded(tmp_path / "a.png"), max_pixels=599)
