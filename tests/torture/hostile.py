"""Files that somebody wrote to do harm: bombs, entities, paths that lead elsewhere, pickles, names that are markup."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from malicious_files import CANARY, HEADERS
from PIL import Image

from querybox import read_dataset
from querybox.checkpoints.files import read_checkpoint_file
from querybox.data.image import read_image, read_size
from querybox.runfile import read_run_file
from torture.case import Case
from torture.malice import pickles, shards
from torture.samples import write_coco, write_pictures, write_voc, write_yolo
from torture.special import disguises, special_files
from torture.watch import SECRET, Attempt, Ending, fresh, watched


def bombs(folder: Path, long: bool) -> Iterator[Attempt]:
    """Small files that say they are large, or become so."""
    inside = fresh(folder, lambda _: None)
    for name, content in images_that_lie().items():
        (inside / name).write_bytes(content)
        yield Attempt(name=name, read=partial(read_image, inside / name), inside=inside)
        yield Attempt(name=f"size of {name}", read=partial(read_size, inside / name), inside=inside)
    (inside / "text.png").write_bytes(text_bomb())
    yield Attempt(name="text in a PNG", read=partial(read_image, inside / "text.png"), inside=inside)
    with zipfile.ZipFile(inside / "model.pth", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("model/data.pkl", bytes(300 << 20))
        archive.writestr("model/version", "3\n")
    yield Attempt(name="zip in .pth", read=partial(read_checkpoint_file, inside / "model.pth"), inside=inside)
    for number, content in enumerate(HEADERS):
        file = inside / "model.safetensors"
        file.write_bytes(content)
        yield Attempt(name=f"header {number}", read=partial(read_checkpoint_file, file), inside=inside)


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, more: bytes = b"") -> bytes:
    """Return a black PNG file that says it has this size, and has its pixels if they are few."""
    rows = zlib.compress(bytes((min(width, 64) + 1) * min(height, 64)))
    parts = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), more, chunk(b"IDAT", rows)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    """Return a PNG file of 8 x 8 pixels whose texts become 400 MiB."""
    bomb = b"x\0\0" + zlib.compress(bytes(200 << 20), 1)
    return png(8, 8, chunk(b"iCCP", bomb) + chunk(b"zTXt", bomb))


def images_that_lie() -> dict[str, bytes]:
    """Return files of a few hundred bytes whose headers state sizes over the cap."""

    def sound(kind: str, **options: Any) -> bytes:
        written = io.BytesIO()
        Image.new("RGB", (300, 200)).save(written, kind, **options)
        return written.getvalue()

    gif, bmp, jpeg = sound("GIF"), sound("BMP")[:200], sound("JPEG")
    side = struct.pack("<H", 65_535)
    size = jpeg.index(struct.pack(">HH", 200, 300))
    # Tags 256 and 257, width and length, of type 3 or 4, once.
    tiff = re.sub(
        rb"(?s)([\x00\x01]\x01)[\x03\x04]\x00\x01\x00{3}.{4}",
        lambda tag: tag[1] + struct.pack("<HII", 4, 1, 100_000),
        sound("TIFF", compression="tiff_lzw"),
        count=2,
    )
    return {
        "wide.png": png(100_000, 100_000),
        "widest.png": png(2**31 - 1, 2**31 - 1),
        "canvas.gif": gif[:6] + side + side + gif[10:],
        "large.bmp": bmp[:18] + struct.pack("<ii", 100_000, 100_000) + bmp[26:],
        "large.jpg": jpeg[:size] + struct.pack(">HH", 65_500, 65_500) + jpeg[size + 4 :],
        "large.tiff": tiff,
        "large.ppm": b"P6 99999 99999 255\n",
        "large.webp": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\xff" * 2 + b"VP8 \0\0\0\0",
    }


def entities(folder: Path, long: bool) -> Iterator[Attempt]:
    """XML that grows, or fetches."""
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    secret = (folder / SECRET / "text.txt").as_uri()
    thing = "<annotation><object><name>{}</name></object></annotation>"
    documents = {
        "billion laughs": f'<!DOCTYPE a [<!ENTITY l0 "ha">{laughs}]>' + thing.format("&l9;"),
        "quadratic": f'<!DOCTYPE a [<!ENTITY l "{"x" * 100_000}">]><annotation>{"&l;" * 100_000}</annotation>',
        "entity of a file": f'<!DOCTYPE a [<!ENTITY s SYSTEM "{secret}">]>' + thing.format("&s;"),
        "entity of a host": '<!DOCTYPE a [<!ENTITY s SYSTEM "http://127.0.0.1:9/s">]><annotation>&s;</annotation>',
        "parameter entity": f'<!DOCTYPE a [<!ENTITY % s SYSTEM "{secret}">%s;]><annotation/>',
        "document type elsewhere": '<!DOCTYPE annotation SYSTEM "http://127.0.0.1:9/a.dtd"><annotation/>',
        "public document type": '<!DOCTYPE annotation PUBLIC "-//A//B" "http://127.0.0.1:9/a.dtd"><annotation/>',
    }
    for name, document in documents.items():
        inside = fresh(folder, write_voc)
        (inside / "Annotations" / "1.xml").write_text(document)
        yield Attempt(name=name, read=partial(read_dataset, inside), inside=inside)
    inside = fresh(folder, write_voc)
    include = f'<i:include xmlns:i="http://www.w3.org/2001/XInclude" href="{secret}" parse="text"/>'
    (inside / "Annotations" / "1.xml").write_text(f"<annotation>{include}</annotation>")
    yield Attempt(name="XInclude", read=partial(read_dataset, inside), inside=inside, ends=("read",))


def tags(folder: Path, long: bool) -> Iterator[Attempt]:
    """YAML that makes objects, or grows."""
    laughs = "a0: &a0 [x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
    )
    maps = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}\n" for n in range(1, 40))
    values = {
        "os.system": f"names: !!python/object/apply:os.system ['touch {CANARY}']\n",
        "subprocess": f"names: !!python/object/apply:subprocess.check_output [['touch', {CANARY}]]\n",
        "a module": "names: !!python/module:antigravity\n",
        "a name": "names: !!python/name:os.system\n",
        "new object": "names: !!python/object/new:os.system [x]\n",
        "aliases of lists": f"{laughs}names: *a9\n",
        "aliases of mappings": f"{maps}names: *a39\n",
        "a list in itself": "names: &a [*a]\n",
        "deep": f"names: {'[' * 1_000}\n",
    }
    for name, text in values.items():
        inside = fresh(folder, write_yolo)
        (inside / "data.yaml").write_text(f"train: images/train\n{text}")
        yield Attempt(name=name, read=partial(read_dataset, inside / "data.yaml"), inside=inside)
        if name != "a list in itself":  # plain values, which settings refuse
            yield Attempt(
                name=f"{name}, run file", read=partial(read_run_file, inside / "data.yaml"), inside=inside
            )


ESCAPES = (f"../{SECRET}/1.png", f"images/../../{SECRET}/1.png", "/etc/passwd", "..")
"""What a dataset may call an image, to have another one read."""
ODD = (
    *(f"..\\{SECRET}\\1.png", f"images/..\\..\\{SECRET}/1.png", "C:\\1.png", "\\\\host\\share\\1.png"),
    *("http://127.0.0.1:9/1.png", "file:///etc/passwd", "1.png\0", "x" * 5000),
)
"""What leads elsewhere only on other systems, or for other readers; here it may also be an image that is missing."""


def paths(folder: Path, long: bool) -> Iterator[Attempt]:
    """Names in a dataset that lead out of its folder, to images that are there."""
    write_pictures(folder / SECRET)
    secret = folder / SECRET / "1.png"
    for name in (*ESCAPES, str(secret), *ODD):
        ends: tuple[Ending, ...] = ("refused", "read")  # an image of that name inside the folder may be read
        inside = fresh(folder, write_coco)
        document = json.loads((inside / "train.json").read_text())
        document["images"][0]["file_name"] = name
        (inside / "train.json").write_text(json.dumps(document))
        yield Attempt(
            name=f"COCO {name!r:.40}",
            read=partial(read_dataset, inside / "train.json"),
            inside=inside,
            ends=ends,
        )
        inside = fresh(folder, write_voc)
        (inside / "ImageSets" / "Main" / "train.txt").write_text(f"1\n{name}\n")
        yield Attempt(name=f"VOC {name!r:.40}", read=partial(read_dataset, inside), inside=inside, ends=ends)
        inside = fresh(folder, write_yolo)
        (inside / "train.txt").write_text(f"images/train/1.png\n{name}\n")
        yield Attempt(
            name=f"YOLO list {name!r:.40}",
            read=partial(read_dataset, inside, "train"),
            inside=inside,
            ends=ends,
        )
    for place in (f"../{SECRET}", str(folder / SECRET)):
        for text in (f"train: {place}", f"path: {place}\ntrain: ."):
            inside = fresh(folder, write_yolo)
            (inside / "data.yaml").write_text(f"{text}\nnames: [cat, dog]\n")
            yield Attempt(
                name=f"YOLO {text!r:.40}", read=partial(read_dataset, inside / "data.yaml"), inside=inside
            )
    inside = fresh(folder, write_coco)
    (inside / "images" / "1.png").unlink()
    (inside / "images" / "1.png").symlink_to(secret)
    # A link is its owner's word, not the dataset's: image folders are often links to larger disks.
    read = partial(read_dataset, inside / "train.json")
    yield Attempt(name="a link is followed", read=read, inside=folder, ends=("read",))


CASES = [
    Case(name=name, required=required, run=partial(watched, attack))
    for name, required, attack in (
        ("bombs", "refused within 2 GiB: images from their headers, archives unpacked never", bombs),
        ("XML entities", "refused; nothing fetched or read", entities),
        ("YAML tags and aliases", "refused; nothing called, nothing grows", tags),
        (
            "paths that lead elsewhere",
            "nothing outside the dataset's folder opened or listed",
            paths,
        ),
        (
            "pipes and devices in place of files",
            "refused, reported or not used; none is waited for or read",
            special_files,
        ),
        (
            "formats that run programs or name files",
            "refused, whatever the name; nothing executed or opened",
            disguises,
        ),
        ("pickles in place of weights", "refused at every entrance; nothing executed", pickles),
        ("shards and data elsewhere", "refused; nothing outside the weights' folder opened", shards),
    )
]
