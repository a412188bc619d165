"""Tars and Parquet files of images that are cut, damaged, or made to do harm."""

from __future__ import annotations

import io
import os
import random
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from shards import ANNOTATED, jpeg, write_parquet, write_tar

from querybox.bulk.parts import Part
from querybox.bulk.pictures import Decoded, decode
from querybox.data import DataSettings, parquet_rows, read_dataset, read_pixels
from querybox.data.formats.tar_index import tar_index
from querybox.data.read import read_split
from querybox.data.shard_index import FOLDER
from querybox.data.training_images import TrainingImages, UnreadableImage
from querybox.errors import DataError
from torture.case import Case, require
from torture.watch import SECRET, Attempt, Ending, fresh, watched

IMAGES = 5
MEMBERS = {f"{number}.jpg": jpeg((60 + number, 40)) for number in range(IMAGES)}
ANNOTATION = ANNOTATED["0.json"] or b""
SAMPLES = {
    name: content
    for image in MEMBERS
    for name, content in ((image, MEMBERS[image]), (f"{image[:-4]}.json", ANNOTATION))
}


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
        require(
            images[-1].name == str(path) and images[-1].error is not None, f"cut at {place}: not reported"
        )
    return f"{len(places)} cut tars: the images before the cut are read, and all are reported"


def damaged_tars(folder: Path, long: bool) -> str:
    """Change a few bytes of a tar at random."""
    path = write_tar(folder / "a.tar", MEMBERS)
    content = path.read_bytes()
    chance = random.Random(0)
    count, reported = 2000 if long else 50, 0
    for _ in range(count):
        damaged = bytearray(content)
        for place in chance.choices(range(IMAGES * 2048), k=3):
            damaged[place % len(damaged)] = chance.randrange(256)
        path.write_bytes(damaged)
        images = read(path)
        reported += any(image.error for image in images)
        require(len(images) > 0, "nothing is read, and nothing reported")
        require(len(images) >= IMAGES or images[-1].error is not None, "an image is missing unreported")
    return f"{count:,} damaged tars: read, or reported as errors of images ({reported:,}); no image missing unreported"


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
    return f"{len(places)} cut files: reported, one row each"


def read_samples(path: Path) -> None:
    """Read a shard to train on, and its images; the bombs have no annotations."""
    tar_index(str(path), "")
    for image in read_split(path, None).images:
        with suppress(DataError):
            read_pixels(image)


def tars_that_harm(folder: Path, read: Callable[[Path], object], *ends: Ending) -> Iterator[Attempt]:
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
        write_tar(inside / "a.tar", {name: jpeg(), f"{name[:-4]}.json": ANNOTATION})
        yield Attempt(
            name=f"name {name!r}",
            read=partial(read, inside / "a.tar"),
            inside=inside,
            ends=ends,
        )
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    for kind in kinds:
        for target in (str(secret), f"../{SECRET}/secret.jpg", "/dev/zero"):
            inside = fresh(folder, lambda _: None)
            member = tarfile.TarInfo("link.jpg")
            member.type, member.linkname = kind, target
            (inside / "a.tar").write_bytes(member.tobuf() + bytes(tarfile.BLOCKSIZE * 2))
            yield Attempt(
                name=f"{kind!r} {target}",
                read=partial(read, inside / "a.tar"),
                inside=inside,
                ends=ends,
            )
    for name, content in bombs().items():
        inside = fresh(folder, lambda _: None)
        (inside / "a.tar").write_bytes(content)
        yield Attempt(name=name, read=partial(read, inside / "a.tar"), inside=inside, ends=ends)


def read_tars_that_harm(folder: Path, long: bool) -> Iterator[Attempt]:
    """Read the images of tars that harm, of which each that cannot be read is reported by itself."""
    return tars_that_harm(folder, read, "read")


def train_on_tars_that_harm(folder: Path, long: bool) -> Iterator[Attempt]:
    """Read tars that harm as datasets to train on."""
    return tars_that_harm(folder, read_samples, "read", "refused")


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


def cut_samples(folder: Path, long: bool) -> str:
    """Cut a tar to train on off at many places."""
    path = write_tar(folder / "train.tar", SAMPLES)
    content = path.read_bytes()
    require(trained(path) == IMAGES, "the whole tar")
    end = len(content.rstrip(b"\0"))
    places = range(0, end, 64 if long else 500)
    for place in places:
        path.write_bytes(content[:place])
        try:
            kinds = {finding.kind for finding in read_split(path, None).findings}
        except DataError:
            continue  # nothing in it looks like a dataset
        require("malformed" in kinds, f"cut at {place}: not reported")
    return f"{len(places)} cut tars: refused, as a whole"


def damaged_samples(folder: Path, long: bool) -> str:
    """Change a few bytes of a tar to train on at random, or of its index."""
    path = write_tar(folder / "train.tar", SAMPLES)
    content, status = path.read_bytes(), path.stat()
    require(trained(path) == IMAGES, "the whole tar")
    (index,) = (folder / FOLDER).glob("*.json")
    indexed = index.read_bytes()
    chance = random.Random(0)
    count = 2000 if long else 50
    reported = 0
    for number in range(count):
        damaged = bytearray(indexed if number % 2 else content)
        for place in chance.choices(range(len(damaged)), k=3):
            damaged[place] = chance.randrange(256)
        index.write_bytes(damaged if number % 2 else b"")
        path.write_bytes(content if number % 2 else damaged)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        try:
            images = trained(path)
        except DataError:
            reported += 1
        else:
            require(images == IMAGES, f"number {number}: {images} of {IMAGES} images, and nothing reported")
    return f"{count:,} damaged tars and indices: all images are read, or it is reported ({reported:,})"


def damaged_row_groups(folder: Path, long: bool) -> str:
    """Change a few bytes of a Parquet file that is read where it is, before or after its index is made."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    boxes = {"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": ["cat"]}
    rows = [
        {"image": {"bytes": content, "path": name}, "objects": boxes} for name, content in MEMBERS.items()
    ]
    path, named = folder / "train.parquet", folder / "train.yaml"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    named.write_text(f"train: {path.name}\n", encoding="utf-8")
    content = path.read_bytes()
    require(trained(named) == IMAGES, "the whole file")
    records = read_dataset(named).images
    chance = random.Random(0)
    count = 2000 if long else 50
    reported = 0
    for number in range(count):
        damaged = bytearray(content)
        for place in chance.choices(range(len(damaged)), k=3):
            damaged[place] = chance.randrange(256)
        path.write_bytes(damaged)
        parquet_rows._held.clear()
        try:
            if number % 2:
                trained(named)
            for image in records:
                read_pixels(image)
        except DataError:
            reported += 1
    return f"{count:,} damaged files: read, or it is reported ({reported:,})"


def trained(path: Path) -> int:
    """Return the number of images of a shard, all of which can be read; raise DataError if something is reported."""
    data = read_split(path, None)
    findings = [finding for finding in data.findings if finding.severity != "note"]
    if findings:
        raise DataError(findings[0].summary(1))
    for image in data.images:
        read_pixels(image)
    return len(data.images)


def into_folder(path: Path) -> None:
    """Replace a file by a folder."""
    path.unlink()
    path.mkdir()


def vanishing_shards(folder: Path, long: bool) -> str:
    """Remove, cut and replace shards between their index and the reading of their images."""
    others = {f"{number}.jpg": b"x" * 2000 for number in range(IMAGES)}
    changes: dict[str, Callable[[Path], object]] = {
        "removed": Path.unlink,
        "emptied": lambda path: path.write_bytes(b""),
        "cut": lambda path: path.write_bytes(path.read_bytes()[:1000]),
        "a folder": into_folder,
        "replaced": lambda path: write_tar(path, others),
    }
    lost = 0
    for name, change in changes.items():
        place = folder / name
        write_tar(place / "train-0.tar", SAMPLES)
        write_tar(place / "train-1.tar", SAMPLES)
        images = TrainingImages(read_dataset(place), DataSettings(image_size=64), seed=0)
        change(place / "train-0.tar")
        read = [images[index, 0] for index in range(len(images))]
        unreadable = [isinstance(image, UnreadableImage) for image in read]
        require(any(unreadable[:IMAGES]) and not any(unreadable[IMAGES:]), f"{name}: {unreadable}")
        require(name == "cut" or all(unreadable[:IMAGES]), f"{name}: {unreadable}")
        lost += sum(unreadable)
    return f"{len(changes)} changes: {lost} images unreadable and reported, those of other shards read"


CASES = [
    Case(name="cut tars", required="the images before the cut are read; reported", run=cut_tars),
    Case(name="damaged tars", required="read or reported, image by image", run=damaged_tars),
    Case(name="cut Parquet files of images", required="reported", run=cut_parquet),
    Case(
        name="tars with names that lead elsewhere, links, devices; bombs",
        required="nothing executed, sent, or touched outside their folder; little memory",
        run=partial(watched, read_tars_that_harm),
    ),
    Case(name="cut tars to train on", required="refused, with their place", run=cut_samples),
    Case(
        name="damaged tars to train on, and damaged indices",
        required="all images, or it is reported; no other error",
        run=damaged_samples,
    ),
    Case(
        name="damaged Parquet files to train on where they are",
        required="read, or it is reported; no other error",
        run=damaged_row_groups,
    ),
    Case(
        name="shards that are removed, cut or replaced during a training",
        required="their images are unreadable, and reported",
        run=vanishing_shards,
    ),
    Case(
        name="tars to train on with names that lead elsewhere, links, devices; bombs",
        required="nothing executed, sent, or touched outside their folder; little memory",
        run=partial(watched, train_on_tars_that_harm),
    ),
]
