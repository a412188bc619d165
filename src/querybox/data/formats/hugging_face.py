"""Hugging Face `imagefolder` with boxes: a `metadata.jsonl` or `metadata.csv` in the folder of each split.

A line has `file_name` and `objects` (https://huggingface.co/docs/datasets/image_dataset#object-detection); see
`querybox.data.formats.hugging_face_objects`. Names of numbers are in the `class_label` of the YAML head of `README.md`.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path

from querybox.data.annotated import AnnotatedImage, splits_by_file
from querybox.data.class_names import note_repeated_names
from querybox.data.findings import FindingCollector
from querybox.data.formats.hugging_face_objects import EXPECTED, categories, names_in_readme, parse_image
from querybox.data.parsing import csv_columns, parse_json, partial_json, read_csv, read_head
from querybox.data.splits import SPLITS, Format, Reader, split_name
from querybox.data.text import read_text
from querybox.errors import DataError
from querybox.structures import Category


def _splits(path: Path) -> dict[str, Reader]:
    root = path
    if path.is_file():
        root = path.parent.parent if split_name(path.parent.name) in SPLITS else path.parent
    categorize = partial(_categories, root)
    return splits_by_file(
        path, ".jsonl", _is_json_lines, partial(_parse_json_lines, root), categorize
    ) or splits_by_file(path, ".csv", _is_csv, partial(_parse_csv, root), categorize)


def _categories(root: Path, names: Collection[str]) -> tuple[Category, ...]:
    return categories(root, names_in_readme(root), names)


def _names(root: Path, findings: FindingCollector) -> dict[int, str]:
    names = names_in_readme(root)
    note_repeated_names(names, findings)
    return names


def _is_json_lines(file: Path) -> bool:
    first = partial_json(read_head(file).partition("\n")[0])
    return isinstance(first, dict) and first.keys() >= {"file_name", "objects"}


def _is_csv(file: Path) -> bool:
    return set(csv_columns(file)) >= {"file_name", "objects"}


def _parse_json_lines(root: Path, file: Path, findings: FindingCollector) -> list[AnnotatedImage]:
    names = _names(root, findings)
    text = read_text(file, findings)
    images = []
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"{file}, line {number}"
        if line.strip():
            try:
                content = parse_json(line, where, f"an object with {EXPECTED}")
                images.append(parse_image(where, content, names))
            except DataError as error:
                findings.add("malformed", str(error))
    return images


def _parse_csv(root: Path, file: Path, findings: FindingCollector) -> list[AnnotatedImage]:
    names = _names(root, findings)
    images = []
    for where, row in read_csv(file, findings):
        try:
            objects = parse_json(row["objects"] or "null", where, "JSON in 'objects'")
            stated = {column: value or None for column, value in row.items()}
            images.append(parse_image(where, {**stated, "objects": objects}, names))
        except DataError as error:
            findings.add("malformed", str(error))
    return images


HUGGING_FACE = Format(
    name="Hugging Face imagefolder",
    expected="Hugging Face: a folder with metadata.jsonl or metadata.csv that have 'file_name' and 'objects'",
    splits=_splits,
)
