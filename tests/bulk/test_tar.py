from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import NamedTuple

import pytest
from shards import jpeg, write_tar

from querybox.bulk.parts import Part
from querybox.bulk.pictures import decode
from querybox.data import storage
from querybox.data.storage import MAX_CONTENT


class Found(NamedTuple):
    """What is found of a picture."""

    name: str
    error: str | None


def found(path: Path) -> list[Found]:
    """Return the images and the errors of a shard, with names and errors relative to its folder."""
    decoded = [decode(picture, None) for picture in Part(0, (str(path),)).pictures()]
    assert all((image.pixels is None) == (image.error is not None) for image in decoded)
    folder = f"{path.parent}{os.sep}"
    return [
        Found(image.name.replace(folder, ""), (image.error or "").replace(folder, "") or None)
        for image in decoded
    ]


def test_images_are_read_and_other_members_passed_over(tmp_path: Path) -> None:
    members = {
        "a/": None,
        "a/000.JPG": jpeg(),
        "a/000.json": b"{}",
        "000.left.jpg": jpeg(),
        "a/000.cls": b"1",
    }
    assert found(write_tar(tmp_path / "a.tar", members)) == [
        ("a.tar#a/000.JPG", None),
        ("a.tar#000.left.jpg", None),
    ]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_those_of_other_encodings(tmp_path: Path, kind: int) -> None:
    names = ["x" * 90 + ".jpg"] if kind == tarfile.USTAR_FORMAT else ["x" * 300 + ".jpg", "ünï/日.jpg"]
    path = write_tar(tmp_path / "a.tar", dict.fromkeys(names, jpeg()), kind)
    assert [image.name for image in found(path)] == [f"a.tar#{name}" for name in names]


def test_names_of_members_are_no_paths(tmp_path: Path) -> None:
    """Nothing is written, whatever a member is called, and no link is followed."""
    inside = tmp_path / "inside"
    inside.mkdir()
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(jpeg())
    names = ["../evil.jpg", str(tmp_path / "evil.jpg"), "C:\\evil.jpg", "a\n.jpg"]
    path = inside / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(jpeg())
            tar.addfile(member, io.BytesIO(jpeg()))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo("link.jpg")
            member.type, member.linkname = kind, str(secret)
            tar.addfile(member)
    images = found(path)
    assert [(image.name, image.error) for image in images[:4]] == [(f"a.tar#{name}", None) for name in names]
    refused = "a.tar#link.jpg: is a link, a device or sparse; expected a regular member"
    assert images[4:] == [("a.tar#link.jpg", refused)] * 4
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["a.tar", "inside", "secret.jpg"]


def test_a_tar_that_is_cut_off_keeps_its_beginning(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{number}.jpg": jpeg() for number in range(3)})
    content = path.read_bytes()
    step = 512 + len(jpeg()) + -len(jpeg()) % 512
    assert len(found(path)) == 3
    for end in range(0, 3 * step, 256):
        path.write_bytes(content[:end])
        images = found(path)
        assert [image.name for image in images if image.error is None] == [
            f"a.tar#{number}.jpg" for number in range(3) if number * step + 512 + len(jpeg()) <= end
        ]
        assert images[-1].name == "a.tar"
        error = str(images[-1].error)
        assert "damaged or cut off" in error or "cannot be read as a tar" in error


def test_a_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    """Python's tarfile takes it for the end, without a word."""
    path = write_tar(tmp_path / "a.tar", {f"{number}.jpg": jpeg() for number in range(3)})
    content = bytearray(path.read_bytes())
    content[content.index(b"1.jpg")] ^= 1
    path.write_bytes(content)
    images = found(path)
    assert [image.name for image in images] == ["a.tar#0.jpg", "a.tar"]
    assert "a.tar: the tar is damaged or cut off at byte" in str(images[1].error)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", r"cannot be read as a tar from byte 0 on"),
        (b"x" * 2000, "cannot be read as a tar from byte 0 on"),
        (bytes(10240), "the tar has no image"),
        (
            b"\x1f\x8b" + bytes(2000),
            "is compressed by gzip; expected a tar without compression: decompress it",
        ),
    ],
)
def test_what_is_no_tar_is_an_error(tmp_path: Path, content: bytes, error: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    (image,) = found(tmp_path / "a.tar")
    assert image.name == "a.tar"
    assert error in str(image.error)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a header that states any size."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("start", "error"),
    [
        (header("a.jpg", 1 << 40), f"a.jpg: is larger than {MAX_CONTENT:,} bytes"),
        (
            header("a", 1 << 40, tarfile.XHDTYPE),
            "1,099,511,627,776 bytes, of which at most 1,048,576",
        ),
        (header("a", 1 << 40, tarfile.GNUTYPE_LONGNAME), "of which at most 1,048,576 are read"),
        (header("a.jpg", 1 << 40, tarfile.GNUTYPE_SPARSE), "is a link, a device or sparse"),
        (header("a.jpg", -1), "a.tar"),
    ],
)
def test_sizes_that_a_tar_states_are_bounded(tmp_path: Path, start: bytes, error: str) -> None:
    (tmp_path / "a.tar").write_bytes(start + bytes(10_000))
    images = found(tmp_path / "a.tar")
    assert images[0].error is not None
    assert error in images[0].error


def test_an_error_of_the_storage_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", {"0.jpg": jpeg()})

    def fail(file: storage.StoredFile, size: int = -1) -> bytes:
        file.failure = ConnectionError("gone")
        raise file.failure

    monkeypatch.setattr(storage.StoredFile, "read", fail)
    with pytest.raises(ConnectionError, match="gone"):
        found(path)
