from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import fsspec
import pytest
from shards import memory_storage

from querybox.bulk.find import find
from querybox.bulk.parts import Part
from querybox.bulk.run import PLAN, prepare
from querybox.data import storage
from querybox.errors import ConfigError, DataError, ImageError, MissingExtraError, StorageError
from querybox.urls import is_url


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    with memory_storage() as filesystem:
        yield filesystem


def test_files_of_a_storage_are_found_read_and_written(memory: fsspec.AbstractFileSystem) -> None:
    for name in ("10.jpg", "2.jpg", "notes.txt", "a.tar"):
        storage.write(f"memory://bucket/photos/{name}", name.encode())
    urls = [f"memory:///bucket/photos/{name}" for name in ("2.jpg", "10.jpg", "a.tar")]
    assert find("memory://bucket/photos", [".tar"]) == urls
    assert find("memory://bucket/photos/*.jpg", [".tar"]) == urls[:2]
    assert find("memory://bucket/photos/2.jpg", []) == ["memory://bucket/photos/2.jpg"]
    assert storage.read(urls[1]) == b"10.jpg"
    assert storage.names("memory://bucket/photos") == {"10.jpg", "2.jpg", "notes.txt", "a.tar"}
    assert storage.names("memory://bucket/none") == set()
    with pytest.raises(DataError, match="none: no such file or folder; check the URL"):
        find("memory://bucket/none", [])
    with pytest.raises(DataError, match=r"found no image among 1 file \(.*notes\.txt\)"):
        find("memory://bucket/photos/*.txt", [])
    with pytest.raises(ImageError, match=r"none\.jpg: no such file"):
        storage.read("memory://bucket/none.jpg")


def test_files_of_the_disk_are_found_read_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("10.jpg", "2.jpg", "a.tar"):
        storage.write(storage.join("photos", name), name.encode())
    assert find("photos", [".tar"]) == [
        str(tmp_path / "photos" / name) for name in ("2.jpg", "10.jpg", "a.tar")
    ]
    assert storage.read("photos/2.jpg") == b"2.jpg"
    assert storage.names("photos") == {"10.jpg", "2.jpg", "a.tar"}
    assert storage.names("none") == set()
    with pytest.raises(ImageError, match=r"none\.jpg: no such file"):
        storage.read("none.jpg")
    with pytest.raises(ImageError, match="photos: is a folder; expected a regular file"):
        storage.read("photos")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "simplecache::s3://bucket/a",
        "reference://a.json",
        "ftp://host/a.jpg",
        "S3://bucket",
        "ftp://me:secret@host/a.jpg",
    ],
)
def test_other_schemes_are_refused(url: str) -> None:
    assert is_url(url)
    with pytest.raises(ConfigError, match=r"got the scheme '.*'; expected a path, or one of s3, ") as told:
        storage.connect(url)
    assert "secret" not in str(told.value)


def test_a_malformed_url_is_told() -> None:
    with pytest.raises(ConfigError, match=r"https://\[::1: is not a URL \(Invalid IPv6 URL\)"):
        find("https://[::1", ())
    for url in ("https://me:12/secret@host/a.jpg", "https://me:secret@[::1/a.jpg"):
        with pytest.raises(ConfigError, match=r"is malformed; percent-encode|is not a URL; check it") as told:
            storage.connect(url)
        assert "secret" not in str(told.value)


def test_the_package_of_a_storage_is_named() -> None:
    with (
        mock.patch("fsspec.core.url_to_fs", side_effect=ImportError("Install s3fs to access S3")),
        pytest.raises(MissingExtraError, match="s3://bucket/a: Install s3fs to access S3"),
    ):
        storage.connect("s3://bucket/a")


def test_a_web_server_is_asked_for_a_file_alone() -> None:
    """Its pages have links, which may lead to any host, and a question mark is no pattern."""
    with mock.patch.object(storage, "connect", return_value=(None, "")):
        assert find("https://host/a.tar?key=*", []) == ["https://host/a.tar?key=*"]
    assert storage.suffix("https://host/a.TAR?key=b.jpg") == ".tar"


@pytest.mark.parametrize("name", ["a.jpg", "a.tar", "a.mp4"])
def test_rows_and_errors_have_no_credentials(memory: fsspec.AbstractFileSystem, name: str) -> None:
    part = Part(0, (f"memory://me:secret@bucket/{name}?id=3&token=secret",))
    (picture,) = part.pictures()
    assert picture.name == f"memory://bucket/{name}?id=3&token=***"
    with pytest.raises(ImageError, match=r"id=3&token=\*\*\*: ") as told:
        picture.load()
    assert "secret" not in str(told.value)


def test_a_collection_is_continued_with_a_renewed_signature(
    memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    """Its place is the same, and so is its row."""
    storage.write("memory://bucket/a.tar?sig=first", b"")
    storage.write("memory://bucket/a.tar?sig=second", b"")
    for signature in ("first", "second"):
        prepare([f"memory://bucket/a.tar?sig={signature}"], str(tmp_path), {})
    assert "sig" not in (tmp_path / PLAN).read_text()


@pytest.mark.parametrize(("status", "error"), [(404, ImageError), (403, StorageError), (None, StorageError)])
def test_what_a_web_server_does_not_send_now_may_be_there(
    memory: fsspec.AbstractFileSystem, status: int | None, error: type[Exception]
) -> None:
    """For fsspec there is no such file, whatever the server answers; the cause tells. Rows with errors are final."""
    reason = ConnectionError("https://host/a.jpg?token=secret") if status is None else OSError("refused")
    if status is not None:
        reason.status = status  # type: ignore[attr-defined]
    missing = FileNotFoundError("a.jpg")
    missing.__cause__ = reason
    with (
        mock.patch.object(storage, "WEB", ("memory",)),
        mock.patch.object(type(memory), "open", side_effect=missing),
        pytest.raises(error) as told,
    ):
        storage.read("memory://bucket/a.jpg")
    assert "secret" not in str(told.value)


def test_an_error_of_the_storage_is_no_error_of_the_file(memory: fsspec.AbstractFileSystem) -> None:
    """Expired credentials would otherwise make an error of every image."""
    with (
        mock.patch.object(type(memory), "open", side_effect=PermissionError("expired")),
        pytest.raises(
            StorageError, match=r"memory://bucket/a\.jpg: expired \(PermissionError\); check the URL"
        ),
    ):
        storage.read("memory://bucket/a.jpg")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the file can be read nevertheless")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "a.jpg").chmod(0)
    with pytest.raises(
        ImageError, match=r"a\.jpg: cannot be read \(Permission denied\); check its permissions"
    ):
        storage.read(str(tmp_path / "a.jpg"))


def test_a_file_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MAX_CONTENT", 100)
    (tmp_path / "a.jpg").write_bytes(bytes(100))
    (tmp_path / "b.jpg").write_bytes(bytes(101))
    assert len(storage.read(str(tmp_path / "a.jpg"))) == 100
    with pytest.raises(ImageError, match=r"b\.jpg: is larger than 100 bytes, the limit of an image file"):
        storage.read(str(tmp_path / "b.jpg"))
