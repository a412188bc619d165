"""Name what a folder or file contains that cannot be read as a dataset, and what to do about it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from querybox.data.image import SUFFIXES
from querybox.data.layout import PARTS
from querybox.data.locate import find_files, iterate_files
from querybox.data.parsing import csv_columns, read_head
from querybox.data.splits import SPLITS, split_name
from querybox.data.storage import opened
from querybox.data.tar import read_members
from querybox.text import listed

_MAX_FILES = 10_000
"""Number of files in a folder that are looked at."""
_CONVERT, _EXPORT = "convert them to COCO JSON", "export the dataset as COCO JSON"

_KINDS = (
    (r"\.(tfrecords?|record)(-\d+-of-\d+)?$", "TFRecords", _EXPORT),
    (r"[/\\]labelTxt[/\\][^/\\]+\.txt$", "DOTA labels", _CONVERT),
    (r"[/\\]gt[/\\]gt\.txt$", "tracks of the MOT Challenge", _CONVERT),
    (r"[/\\](?-i:Label)[/\\][^/\\]+\.txt$", "labels of OIDv4_ToolKit", _CONVERT),
    (r"-export\.json$", "exports of VoTT", "export the project as Pascal VOC"),
    (r"\.manifest$", "manifests of SageMaker Ground Truth", _CONVERT),
    (r"[/\\]_annotations\.[^/\\]*\.jsonl$", "Roboflow's format for language models", _EXPORT),
    (r"[/\\]_classes\.csv$", "classes or masks without boxes of Roboflow", _EXPORT),
    (r"[/\\]_annotations\.txt$", "Roboflow's text format for Keras", _EXPORT),
    (r"\.mat$", "MATLAB files", _CONVERT),
    (r"\.(zip|tar|tgz|gz|bz2|xz|7z|rar)$", "archives", "unpack them"),
    (r"\.(h5|hdf5|npy|npz|lmdb|mdb|db|sqlite)$", "binary tables", _EXPORT),
    (
        r"\.(parquet|arrow)$",
        "tables without a column of boxes (`bbox`), or Arrow tables",
        "load them with `datasets`, save each image as a file, and write `file_name` and `objects` to metadata.jsonl",
    ),
    (r"\.(xlsx|xls|ods)$", "spreadsheets", "save them as CSV"),
    (r"\.tsv$", "tables with tabs", "rename them to .csv"),
    (r"\.(rec|idx|lst)$", "MXNet RecordIO files", _EXPORT),
    (r"\.(pkl|pickle|pt|pth)$", "pickled objects, which may execute code", _EXPORT),
    (r"\.(jsonl|ndjson|manifest)$", "JSON lines other than a `metadata.jsonl` with boxes", _EXPORT),
    (
        r"\.(geojson|shp|kml|gpkg)$",
        "geographical data",
        "cut it into image tiles with boxes in pixels, as COCO JSON",
    ),
)
_CONTENTS = (
    (r'"categories"\s*:\s*\{\s*"label"', "Datumaro annotations", _EXPORT),
    (r'"box2d"\s*:', "BDD100K labels", _CONVERT),
    (
        r'^\s*\[\s*\{[^}]*"score"\s*:',
        "detections in COCO's format of results",
        "pass the annotations instead",
    ),
    (r"<dataset>.*<images>", "annotations of dlib's imglab", _CONVERT),
)
"""Patterns of the beginning of JSON and XML files, with what such a file is, and the cure."""
_MAX_READ = 100
"""Number of such files that are read."""
_MAX_MEMBERS = 1000
"""Number of members of a tar that are looked at."""
_MAX_TARS = 10
"""Number of tars that are looked at."""


def describe_unsupported(path: Path) -> str | None:
    """Return what kind of data is at `path`, and the cure; None if it is nothing that is known."""
    files = [str(path)] if path.is_file() else list(islice(iterate_files(path), _MAX_FILES))
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for file in files:
        for pattern, kind, cure in _KINDS:
            if re.search(pattern, file, re.IGNORECASE):
                found[kind, cure].append(Path(file).name)
    documents = [file for file in files if file.lower().endswith((".json", ".xml"))]
    for file in documents[:_MAX_READ]:
        head = read_head(Path(file))
        for pattern, kind, cure in _CONTENTS:
            if re.search(pattern, head, re.DOTALL):
                found[kind, cure].append(Path(file).name)
    if found:
        (kind, cure), names = max(found.items(), key=lambda item: len(item[1]))
        return f"contains {kind} ({min(names)}), which are not read: {cure}"
    images = _describe_images(files) if path.is_dir() else None
    return "; ".join(filter(None, (images, _describe_table(files)))) or None


def _describe_images(files: Sequence[str]) -> str | None:
    """Return where images without annotations are; None if there are none."""
    folders = {Path(file).parent for file in files if Path(file).suffix.lower() in SUFFIXES}
    classes = {folder.name for folder in folders}
    if len(classes) > 1 and not any(name.lower() in PARTS or split_name(name) in SPLITS for name in classes):
        return (
            f"contains images in folders such as {listed(sorted(classes), 3)}, but no recognised annotations; "
            "if these are classes, as for image classification, annotate the objects with boxes"
        )
    return "contains images, but no recognised annotations" if folders else None


def _describe_table(files: Sequence[str]) -> str | None:
    """Return which columns of a CSV file are not known, and the cure; None if there is none."""
    tables = sorted(file for file in files if file.lower().endswith(".csv"))
    if not tables:
        return None
    columns = listed([name[:40] for name in csv_columns(Path(tables[0]))], 8)
    return (
        f"the columns of {Path(tables[0]).name} are not those of boxes ({columns}): if it has boxes, name them "
        "filename, class, xmin, ymin, xmax and ymax, in pixels"
    )


def require_whole_tars(path: Path) -> None:
    """Check the beginning of the tars at a path, in which no images with annotations were found.

    Raises:
        DataError: One of the first is compressed, damaged or cut off.
    """
    files = [path] if path.is_file() else find_files(path, {".tar"})
    for file in files[:_MAX_TARS]:
        if file.suffix.lower() == ".tar":
            with opened(str(file)) as stream:
                for _ in islice(read_members(str(file), stream), _MAX_MEMBERS):
                    pass
