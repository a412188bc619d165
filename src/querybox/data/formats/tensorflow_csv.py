"""TensorFlow CSV: a row for each object, `filename,width,height,class,xmin,ymin,xmax,ymax` in pixels.

The tutorials of TensorFlow's Object Detection API write it (`data/train_labels.csv`), and Roboflow exports it
(`<split>/_annotations.csv`). Only images with objects are in it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from querybox.data.annotated import AnnotatedImage, AnnotatedObject, splits_by_file
from querybox.data.findings import FindingCollector
from querybox.data.parsing import csv_columns, read_csv, stated_size, to_numbers
from querybox.data.splits import Format

_BOX = ("xmin", "ymin", "xmax", "ymax")


def _is_tensorflow_csv(file: Path) -> bool:
    return csv_columns(file) >= {"filename", "class", *_BOX}


def _parse(file: Path, findings: FindingCollector) -> list[AnnotatedImage]:
    images: dict[str, AnnotatedImage] = {}
    for where, row in read_csv(file, findings):
        name, category = row["filename"], row["class"]
        box = to_numbers([row[side] for side in _BOX])
        size = stated_size(row.get("height"), row.get("width"))
        if not name or not category:
            findings.add("malformed", f"{where}: has no {'class' if name else 'filename'}; expected both")
            continue
        image = images.setdefault(name, AnnotatedImage(name=name, where=where, size=size))
        if box is None:
            texts = [row[side][:40] for side in _BOX]
            findings.add("malformed", f"{where}: got the box {texts}; expected numbers in {', '.join(_BOX)}")
        elif size != image.size:
            what = (
                f"{where}: the size of {name[:200]!r} differs from that in {image.where}; correct one of them"
            )
            findings.add("malformed", what)
        else:
            image.objects.append(AnnotatedObject(where, category, (box[0], box[1], box[2], box[3])))
    return list(images.values())


TENSORFLOW_CSV = Format(
    name="TensorFlow CSV",
    expected="TensorFlow CSV: a .csv file with the columns filename, class, xmin, ymin, xmax and ymax",
    splits=partial(splits_by_file, suffix=".csv", recognises=_is_tensorflow_csv, parse=_parse),
    made_from="Pascal VOC",  # by the tutorials' xml_to_csv.py
)
