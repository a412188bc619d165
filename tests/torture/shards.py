"""Tars and Parquet files of images that are cut, damaged, or made to do harm."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from shards import jpeg, write_parquet, write_tar

from querybox.bulk.parts import Part
from querybox.bulk.pictures import Decoded, decode
from torture.case import Case, require
from torture.watch import SECRET, Attempt, fresh, watched

IMAGES = 5
MEMBERS = {f"{number}.jpg": jpeg((60 + number, 40)) for number in range(IMAGES)}


def read(path: Path) -> list[Decoded]:
    """Return all images and errors of a shard."""
    return [decode(picture, None) for picture in Part(0, (str(path),)).pictures()]


def readable(images: list[Decoded]) -> list[str]:
    """Return the names of the images that are read, relative to their shard."""
    return [image.name.partition("#")[2] for image in images if image.error is None]


def cut_tars(folder: Path, long: bool) -> str:
    """Cut a tar off at many places."""
    path = write_tar(folder / "a.tar", MEMBERS)
    content = path.read_bytes()
    require(readable(read(path)) == [*MEMBERS], "the whole tar")
    ends, end = [], 0
    for member in MEMBERS.values():
        ends.append(end + tarfile.BLOCKSIZE + len(member))
        end = ends[-1] + -ends[-1] % tarfile.BLOCKSIZE
    places = range(0, end, 64 if long else 500)
    for place in places:
        path.write_bytes(content[:place])
        images = read(path)
        require(readable(images) == [*MEMBERS][: sum(each <= place for each in ends)], f"cut at {place}")
        require(images[-1].name == str(path) and images[-1].error is not None, f"cut at {place}: not told")
    return f"{len(places)} cut tars: the images before the cut are read, and all are told"


def damaged_tars(folder: Path, long: bool) -> str:
    """Change a few bytes of a tar at random."""
    path = write_tar(folder / "a.tar", MEMBERS)
    content = path.read_bytes()
    chance = random.Random(0)
    count, told = 2000 if long else 50, 0
    for _ in range(count):
        damaged = bytearray(content)
        for place in chance.choices(range(IMAGES * 2048), k=3):
            damaged[place % len(damaged)] = chance.randrange(256)
        path.write_bytes(damaged)
        images = read(path)
        told += any(image.error for image in images)
        require(len(images) > 0, "nothing is read, and nothing told")
        require(len(images) >= IMAGES or images[-1].error is not None, "an image is missing untold")
    return f"{count:,} damaged tars: read, or told as errors of images ({told:,}); no image missing untold"


def cut_parquet(folder: Path, long: bool) -> str:
    """Cut a Parquet file off at many places."""
    path = write_parquet(folder / "a.parquet", [*MEMBERS.values()])
    content = path.read_bytes()
    require(readable(read(path)) == [str(row) for row in range(IMAGES)], "the whole file")
    places = range(0, len(content), 20 if long else 200)
    for place in places:
        path.write_bytes(content[:place])
        images = read(path)
        require(len(images) == 1 and "as Parquet" in str(images[0].error), f"cut at {place}: {images!r:.200}")
    return f"{len(places)} cut files: told, one row each"


def tars_that_harm(folder: Path, long: bool) -> Iterator[Attempt]:
    """Names that lead elsewhere, links and devices, and headers that state sizes without content."""
    secret = folder / SECRET / "secret.jpg"
    secret.parent.mkdir()
    secret.write_bytes(jpeg())
    names = (
        "../evil.jpg",
        str(folder / "evil.jpg"),
        "/etc/evil.jpg",
        "a/../../evil.jpg",
        "C:\\evil.jpg",
        "\x1b[2J.jpg",
    )
    for name in names:
        inside = fresh(folder, lambda _: None)
        write_tar(inside / "a.tar", {name: jpeg()})
        yield Attempt(
            name=f"name {name!r}", read=partial(read, inside / "a.tar"), inside=inside, ends=("read",)
        )
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    for kind in kinds:
        for target in (str(secret), f"../{SECRET}/secret.jpg", "/dev/zero"):
            inside = fresh(folder, lambda _: None)
            member = tarfile.TarInfo("link.jpg")
            member.type, member.linkname = kind, target
            (inside / "a.tar").write_bytes(member.tobuf() + bytes(tarfile.BLOCKSIZE * 2))
            yield Attempt(
                name=f"{kind!r} {target}", read=partial(read, inside / "a.tar"), inside=inside, ends=("read",)
            )
    for name, content in bombs().items():
        inside = fresh(folder, lambda _: None)
        (inside / "a.tar").write_bytes(content)
        yield Attempt(name=name, read=partial(read, inside / "a.tar"), inside=inside, ends=("read",))


def bombs() -> dict[str, bytes]:
    """Return small tars whose headers state sizes of 1 TiB, and one that is compressed."""
    found = {}
    for kind in (
        tarfile.REGTYPE,
        tarfile.GNUTYPE_SPARSE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
    ):
        member = tarfile.TarInfo("a.jpg")
        member.type, member.size = kind, 1 << 40
        found[f"size of {kind!r}"] = member.tobuf(tarfile.GNU_FORMAT) + bytes(2048)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        member = tarfile.TarInfo("a.jpg")
        member.size = 8 << 20
        tar.addfile(member, io.BytesIO(bytes(8 << 20)))
    return found | {"compressed": file.getvalue()}


CASES = [
    Case(name="cut tars", required="the images before the cut are read; told", run=cut_tars),
    Case(name="damaged tars", required="read or told, image by image", run=damaged_tars),
    Case(name="cut Parquet files of images", required="told", run=cut_parquet),
    Case(
        name="tars with names that lead elsewhere, links, devices; bombs",
        required="nothing executed, sent, or touched outside their folder; little memory",
        run=partial(watched, tars_that_harm),
    ),
]
