"""Predictions on files with strange names, and predictions that are killed."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from querybox.cli import main
from querybox.temporary import leftovers
from torture.case import Case, require
from torture.data_sets import tiny_detector
from torture.fuzz import silence
from torture.server import fork_server

NAMES = (
    *(b"a.jpg", b"\xff\xe4.jpg", b"esc\x1b[2J\x07.jpg", b"line\nbreak\r.jpg", "line\u2028.jpg".encode()),
    *("next\u0085.jpg".encode(), "\u202egpj.jpg".encode(), b"\"quoted\", 'and' comma.jpg", b"=1+1.jpg"),
)
CLASSES = ("red\r\u2028\u2029\u0085", "\x1b]0;title\x07\x9b31m<b>&amp;\u202e")
TABLES = ("detections.json", "detections.csv")
CHANGES = ("open", "os.rename", "os.remove", "shutil.rmtree")
"""Audit events that may change files."""


def images(folder: Path, names: tuple[bytes, ...]) -> Path:
    """Write an image of each name."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in names:
        pixels = random.integers(0, 256, (32, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(os.fsencode(folder) + b"/" + name, format="JPEG")
    return folder


def weights(path: Path, names: tuple[str, ...], seed: int = 0) -> Path:
    """Write a detector with random weights."""
    torch.manual_seed(seed)
    tiny_detector(names).save(path)
    return path


def predict(model: Path, source: Path, output: Path) -> tuple[int, str]:
    """Run the command; return its code and what it prints."""
    printed = io.StringIO()
    words = ["predict", model, source, "--output", output, "--threshold", "0", "--overwrite"]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main([str(word) for word in words])
    return code, printed.getvalue()


def odd_names(folder: Path, long: bool) -> str:
    """Predict on files, with classes, whose names are not UTF-8, have control characters or line separators."""
    source = images(folder / os.fsdecode(b"in\xe4\x1b"), NAMES)
    output = folder / os.fsdecode(b"out\xff\r")
    code, printed = predict(weights(folder / "model.safetensors", CLASSES), source, output)
    require(code == 0, f"code {code}: {printed}")
    odd = [character for character in printed if not character.isprintable() and character != "\n"]
    require(not odd, f"printed {odd}")
    content = json.loads((output / TABLES[0]).read_text(encoding="utf-8"))
    expected = {str(path) for path in source.iterdir()}
    require({image["file_name"] for image in content["images"]} == expected, "other names in the JSON")
    require([each["name"] for each in content["categories"]] == list(CLASSES), "other classes in the JSON")
    with (output / TABLES[1]).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    require(len({row["source"] for row in rows}) == len(NAMES), "other names in the CSV")
    require({row["name"] for row in rows} <= set(CLASSES), "other classes in the CSV")
    drawn = {path.name for path in output.iterdir()} - {*TABLES}
    require(drawn == {os.fsdecode(name) for name in NAMES}, f"other drawings: {drawn}")
    return (
        f"{len(NAMES)} files and {len(CLASSES)} classes: in drawings and tables; no control character printed"
    )


def killed(model: Path, source: Path, output: Path, operation: int) -> None:
    """Predict in this process, which is killed before an operation on a file of the output."""
    silence()
    inside, count = os.path.realpath(output), 0

    def count_down(event: str, values: tuple[object, ...]) -> None:
        nonlocal count
        if event in CHANGES and isinstance(values[0], str | os.PathLike):
            count += os.path.abspath(values[0]).startswith(inside)  # noqa: PTH100 - a string
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count_down)
    sys.exit(predict(model, source, output)[0])


def interrupt(folder: Path, long: bool) -> str:
    """Kill predictions over older results, before every operation on a file in the long form."""
    source = images(folder / "images", (b"a.jpg", b"b.jpg", b"c.jpg"))
    model = weights(folder / "model.safetensors", ("red", "blue"), seed=2)
    older, expected, output = folder / "older", folder / "expected", folder / "output"
    for each, place in (
        (weights(folder / "former.safetensors", ("red", "blue"), seed=1), older),
        (model, expected),
    ):
        require(predict(each, source, place)[0] == 0, "a prediction failed")
    former, whole = (
        {path.name: path.read_bytes() for path in place.iterdir()} for place in (older, expected)
    )
    kills = 0
    for operation in range(1, 1000) if long else (2, 5, 8):
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(older, output)
        process = fork_server().Process(target=killed, args=(model, source, output, operation))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        require(process.exitcode == -signal.SIGKILL, f"the process ended with {process.exitcode}")
        kills += 1
        content = {path.name: path.read_bytes() for path in output.iterdir() if path not in leftovers(output)}
        tables = {name: content[name] for name in TABLES if name in content}
        partial = [name for name, table in tables.items() if table not in (whole[name], former[name])]
        newer = [name for name, each in content.items() if each == whole.get(name) != former.get(name)]
        mixed = [name for name, table in tables.items() if newer and table != whole[name]]
        require(
            not partial and not mixed, f"before {operation}: partial {partial}, older {mixed} beside newer"
        )
    require(kills > 2, f"killed {kills} times")
    require(predict(model, source, output)[0] == 0, "the prediction cannot be repeated")
    require(
        {path.name: path.read_bytes() for path in output.iterdir()} == whole, "repeated, it is another one"
    )
    return f"killed before {kills} operations on files: no table of older results beside newer ones; repeated, equal"


CASES = [
    Case(
        name="names that are not UTF-8, with control characters and separators",
        required="predicted on, written as they are, printed with escapes",
        run=odd_names,
    ),
    Case(
        name="SIGKILL of `querybox predict --overwrite`",
        required="no table of older results beside newer ones; repeated, the same",
        run=interrupt,
    ),
]
