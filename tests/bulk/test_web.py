"""Web servers: their pages in place of folders, and servers that refuse, cut off, or send whole files alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from dataset_writers import write_boxes
from shards import ANNOTATED, jpeg, same_records, write_images_and_boxes, write_tar

from querybox.bulk.find import find
from querybox.bulk.parts import Part, divide
from querybox.bulk.pictures import decode
from querybox.data import parquet_rows, read_dataset, read_pixels, storage
from querybox.data.web import linked_files
from querybox.errors import DataError, ImageError, StorageError

FOLDER = "https://host:8443/my%20photos/"
NGINX = b'<a href="../">../</a><a href="10.jpg">10.jpg</a> 28-Nov-2026 9821\n<a href="2.jpg">2.jpg</a>'
APACHE = b'<a href="?C=N;O=D">Name</a><a href="/">Parent</a><a href="/my%20photos/a&amp;b.jpg">a&b.jpg</a>'


@pytest.mark.parametrize(
    ("page", "names"),
    [
        (NGINX, ["10.jpg", "2.jpg"]),
        (APACHE, ["a&b.jpg"]),
        (b'<A HREF="./1%23.jpg#top">1</A><a href="1%23.jpg">again</a><a>none</a>', ["1%23.jpg"]),
        (b'<a href="HTTPS://host:8443/my photos/1.jpg?v=2">', ["1.jpg?v=2"]),
        (b"\xff<a href=1.jpg", []),
    ],
)
def test_the_files_of_a_folder_are_those_that_its_page_links_to(page: bytes, names: list[str]) -> None:
    found = linked_files(FOLDER, page)
    assert [url.replace("/my photos/", "/my%20photos/") for url in found] == [FOLDER + name for name in names]


@pytest.mark.parametrize(
    "link",
    [
        "http://169.254.169.254/1.jpg",
        "https://host/my%20photos/1.jpg",
        "https://host:8443@other/my%20photos/1.jpg",
        "//other/my%20photos/1.jpg",
        "file:///my%20photos/1.jpg",
        "data:image/png;base64,AAAA",
        "../secret.jpg",
        "/secret.jpg",
        "below/1.jpg",
        "..%2Fsecret.jpg",
        "..%5Csecret.jpg",
        "https://[::1/1.jpg",
    ],
)
def test_links_to_elsewhere_are_not_followed(link: str) -> None:
    assert linked_files(FOLDER, f'<a href="{link}">photo</a>'.encode()) == []


@dataclass
class Web:
    """A web server, and what it answers."""

    files: dict[str, bytes] = field(default_factory=dict)
    """Content by path."""
    status: dict[str, int] = field(default_factory=dict)
    """Status by path, if it is no 200."""
    asked: list[str] = field(default_factory=list)
    """Method and path of each request."""
    ranges: bool = True
    """Whether parts of files are sent."""
    sizes: bool = True
    """Whether answers state their size."""
    moved: dict[str, str] = field(default_factory=dict)
    """Where paths redirect to."""
    url: str = ""


@contextmanager
def web() -> Iterator[Web]:
    """Run a web server in a thread."""
    served = Web()

    class Handler(BaseHTTPRequestHandler):
        """Answers from `served`."""

        def do_GET(self) -> None:
            served.asked.append(f"{self.command} {self.path}")
            content = served.files.get(self.path)
            status = served.status.get(self.path, 404 if content is None else 200)
            body, stated = content or b"", self.headers.get("Range")
            if status == 200 and served.ranges and stated is not None:
                first, _, last = stated.removeprefix("bytes=").partition("-")
                status, body = 206, body[int(first) : int(last) + 1]
            if (target := served.moved.get(self.path)) is not None:
                status = 301
            self.send_response(status)
            if target is not None:
                self.send_header("Location", target)
            if body.startswith(b"<"):
                self.send_header("Content-Type", "text/html; charset=utf-8")
            if served.sizes:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the name that the standard library calls

        def log_message(self, *words: object) -> None:
            """Write nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def served() -> Iterator[Web]:
    pytest.importorskip("aiohttp")
    with web() as started:
        yield started


def test_a_folder_of_a_web_server_is_predicted(served: Web, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"1.jpg": jpeg()}).read_bytes()
    page = b'<a href="10.jpg">a</a><a href="2.jpg">b</a><a href="a.tar">c</a><a href="notes.txt">d</a>'
    served.files = {
        "/photos/": page,
        "/photos/10.jpg": jpeg(),
        "/photos/2.jpg": b"no image",
        "/photos/a.tar": tar,
    }
    photos = f"{served.url}/photos/"
    parts = divide([photos])
    images = [decode(picture, None) for part in parts for picture in part.pictures()]
    assert [image.name for image in images] == [photos + name for name in ("2.jpg", "10.jpg", "a.tar#1.jpg")]
    assert [image.error is None for image in images] == [False, True, True]
    assert {request.partition(" ")[2] for request in served.asked} == {*served.files}
    assert divide([f"{photos}10.jpg?size=1"]) == [Part(0, (f"{photos}10.jpg?size=1",))]


def test_a_folder_of_a_web_server_may_be_written_without_its_slash(served: Web) -> None:
    """Servers redirect to the URL with it; without a page there, it is a file that has no extension."""
    served.files = {"/photos/": NGINX, "/a/gallery": NGINX, "/a/gallery/": NGINX, "/image": jpeg()}
    served.moved = {"/photos": "/photos/"}
    for folder in ("photos", "a/gallery"):
        names = [f"{served.url}/{folder}/{name}" for name in ("2.jpg", "10.jpg")]
        assert find(f"{served.url}/{folder}", [".tar"]) == names
    for name in ("image", "none", "none.jpg"):
        assert find(f"{served.url}/{name}", [".tar"]) == [f"{served.url}/{name}"]


def test_a_folder_without_images_or_page_is_told(served: Web) -> None:
    served.files = {"/photos/": b'<a href="notes.txt">a</a>', "/empty/": b""}
    with pytest.raises(
        DataError, match=r"found no image among 1 file \(http://.*/photos/notes\.txt\); expected"
    ):
        find(f"{served.url}/photos/", [".tar"])
    with pytest.raises(
        DataError, match=r"found no image among 0 files; expected images, or shards \(\.tar\)"
    ):
        find(f"{served.url}/empty/", [".tar"])
    with pytest.raises(DataError, match=r"/none/: no such file"):
        find(f"{served.url}/none/", [".tar"])


def test_a_server_that_refuses_is_told_from_a_missing_file(served: Web) -> None:
    """fsspec calls all of them a missing file, of which the row would be an error for ever."""
    served.status = {"/forbidden.jpg": 403, "/broken.jpg": 500, "/gone.jpg": 410}
    for name in ("none", "gone"):
        with pytest.raises(ImageError, match=rf"{name}\.jpg: no such file"):
            storage.read(f"{served.url}/{name}.jpg")
    for name, status in (("forbidden", 403), ("broken", 500)):
        with pytest.raises(StorageError, match=rf"/{name}\.jpg: {status}, .*check the URL, the credentials"):
            storage.read(f"{served.url}/{name}.jpg")


def test_a_server_that_cannot_be_reached_is_told() -> None:
    pytest.importorskip("aiohttp")
    with web() as served:
        pass
    with pytest.raises(StorageError, match=r"a\.jpg: Cannot connect to host 127\.0\.0\.1"):
        storage.read(f"{served.url}/a.jpg")


def test_a_file_of_unstated_size_is_read_as_a_whole(served: Web) -> None:
    """Its stream gives what has arrived, in many pieces."""
    served.sizes = False
    served.files = {"/a.jpg": bytes(range(256)) * 8192}
    assert storage.read(f"{served.url}/a.jpg") == served.files["/a.jpg"]


def test_a_server_without_ranges_has_no_tars_that_are_read_in_parts(served: Web, tmp_path: Path) -> None:
    """The tar is not damaged, so that this is an error of the server, not an image with an error."""
    served.ranges = False
    members = {f"{number}.jpg": jpeg() + bytes(1 << 20) for number in range(8)}
    served.files = {"/a.tar": write_tar(tmp_path / "a.tar", members).read_bytes()}
    with pytest.raises(StorageError, match=r"a\.tar: .*range requests"):
        list(Part(0, (f"{served.url}/a.tar",)).pictures())


def test_shards_to_train_on_are_read_in_parts(served: Web, tmp_path: Path) -> None:
    members = {**ANNOTATED, "1.jpg": jpeg((30, 20)), "1.json": ANNOTATED["0.json"]}
    served.files = {"/a.tar": write_tar(tmp_path / "a.tar", members).read_bytes()}
    file = tmp_path / "shards.yaml"
    file.write_text(f"train: {served.url}/a.tar\n")
    data = read_dataset(file, allow_network=True)
    assert [read_pixels(image).shape for image in data.images] == [(3, 40, 60), (3, 20, 30)]
    served.ranges = False
    with pytest.raises(ImageError, match=r"a\.tar: got .*; expected a storage that reads parts of files"):
        read_pixels(data.images[0])
    served.status = {"/a.tar": 503}
    with pytest.raises(StorageError, match=r"a\.tar: 503"):
        read_pixels(data.images[0])
    with pytest.raises(StorageError, match=r"a\.tar: 503"):
        read_dataset(file, allow_network=True)


@pytest.mark.parametrize("ranges", [True, False])
def test_row_groups_to_train_on_are_read_one_by_one(
    served: Web, tmp_path: Path, ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = read_dataset(write_boxes(tmp_path / "files", (96, 64), sides=(16, 40)))
    folder = write_images_and_boxes(files, tmp_path / "rows", 8, rows_a_group=2)
    served.files = {"/train.parquet": (folder / "train-000.parquet").read_bytes()}
    data = read_dataset(f"{served.url}/train.parquet", allow_network=True)
    same_records(data, files)
    served.ranges = ranges
    parquet_rows._held.clear()
    served.asked.clear()
    if ranges:
        for record, other in zip(data.images, files.images, strict=True):
            assert torch.equal(read_pixels(record), read_pixels(other))
        assert len([each for each in served.asked if each.startswith("GET")]) <= 4 * 3  # of row groups
    else:
        with pytest.raises((StorageError, ImageError), match=r"train\.parquet: "):
            read_pixels(data.images[0])
