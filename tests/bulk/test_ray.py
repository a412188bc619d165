"""Two processes of Ray, of which one is killed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from shards import jpeg, write_parquet, write_tar
from tiny_models import TINY

from querybox import Detector, Preprocessing, predict
from querybox.bulk.parts import Part, divide
from querybox.bulk.worker import Worker
from querybox.cli import main
from querybox.inference.optimized_model import as_optimized
from querybox.inference.options import Options
from querybox.temporary import temporary_name

IMAGES = 60
BROKEN = range(7, IMAGES, 10)
THRESHOLD = 0.2


class Killer(threading.Thread):
    """Kills a process that predicts once it has begun, and notes what Ray listens on."""

    def __init__(self, output: Path, before: int) -> None:
        super().__init__(daemon=True)
        self.output, self.before = output, before
        self.killed_at: int | None = None
        self.listening: set[str] = set()
        self.over = threading.Event()

    def run(self) -> None:
        """Look for the processes below this one until one has been killed."""
        while not self.over.wait(0.02) and self.killed_at is None:
            done = len(list(self.output.glob("*.parquet")))
            if done <= self.before:
                continue
            children = psutil.Process().children(recursive=True)
            workers = [child for child in children if "MapWorker" in command(child)]
            if workers:
                workers[0].kill()
                (self.output / temporary_name(workers[0].pid)).mkdir()  # as if it had been writing
                self.killed_at = done
            for child in [psutil.Process(), *children]:
                with suppress(psutil.Error):
                    self.listening |= {
                        each.laddr.ip
                        for each in child.net_connections("inet")
                        if each.status == psutil.CONN_LISTEN
                    }


def command(process: psutil.Process) -> str:
    """Return the command line of a process; empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def killing(output: Path, before: int) -> Iterator[Killer]:
    """Context manager in which a process that predicts is killed."""
    killer = Killer(output, before)
    killer.start()
    yield killer
    killer.over.set()
    killer.join()


def write_collection(folder: Path) -> list[str]:
    """Write images, a tar and a Parquet file; return the names of all rows."""
    folder.mkdir()
    for number in range(IMAGES):
        (folder / f"{number}.jpg").write_bytes(b"broken" if number in BROKEN else jpeg((40 + number, 40)))
    tar = write_tar(folder / "a.tar", {f"{number}.jpg": jpeg((50 + number, 40)) for number in range(3)})
    parquet = write_parquet(folder / "b.parquet", [jpeg((60, 40 + number)) for number in range(3)])
    return [
        *(str(folder / f"{number}.jpg") for number in range(IMAGES)),
        *(f"{tar}#{number}.jpg" for number in range(3)),
        *(f"{parquet}#{row}" for row in range(3)),
    ]


def begin(words: list[str], detector: Detector, parts: list[Part], output: Path) -> None:
    """Predict some parts, as a call that is interrupted."""
    with pytest.MonkeyPatch.context() as patch:  # without Ray
        patch.setattr("querybox.bulk.run.predict_parts", lambda *_: iter(()))
        patch.setattr("querybox.bulk.cluster.cluster", lambda *_: nullcontext())
        patch.setattr("querybox.cli.collection.resources", lambda *_: (2, 0))
        assert main(words) == 0
    worker = Worker(lambda: detector, Options(threshold=THRESHOLD), str(output), lambda _: 1)
    for part in parts:
        worker(pa.Table.from_pylist([{"number": part.number, "places": list(part.places)}]))


def times(output: Path) -> dict[str, int]:
    """Return when each part was written."""
    return {path.name: path.stat().st_mtime_ns for path in output.glob("*.parquet")}


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.skipif(sys.platform == "win32", reason="Ray is a beta on Windows")
@pytest.mark.filterwarnings("ignore")  # of Ray
def test_a_collection_with_a_killed_process(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No row is missing or twice, also those of an earlier call; one Ray, whose start takes seconds, serves all."""
    torch.manual_seed(0)
    detector = Detector.from_recipe("detr_r18", num_classes=2, **TINY)
    detector.preprocessing = Preprocessing(short_side=32, long_side=64)
    detector.save(tmp_path / "model.safetensors")
    photos, output = tmp_path / "photos", tmp_path / "found"
    names = write_collection(photos)
    words = ["predict", str(tmp_path / "model.safetensors"), str(photos), "--output", str(output)]
    words += ["--threshold", str(THRESHOLD), "--ray", "local", "--workers", "2"]
    parts = divide([str(photos)])
    begin(words, detector, parts[:5], output)
    before, others = times(output), {*psutil.Process().children(recursive=True)}
    assert len(before) == 5
    capfd.readouterr()

    with killing(output, before=5) as killer:
        assert main(words) == 1
    assert killer.killed_at is not None
    assert killer.killed_at < len(parts)
    assert before.items() <= times(output).items()
    assert {path.name for path in output.iterdir()} == {"_plan.json", *(part.file_name for part in parts)}
    rows = pq.read_table(output).to_pylist()
    assert [row["name"] for row in rows] == names
    assert [row["name"] for row in rows if row["error"]] == [names[number] for number in BROKEN]
    readable = [photos / f"{number}.jpg" for number in range(IMAGES) if number not in BROKEN]
    expected = predict(as_optimized(detector), readable, threshold=THRESHOLD)
    for row, found in zip((row for row in rows if not row["error"]), expected, strict=False):
        assert (row["name"], row["scores"]) == (found.source, found.scores.tolist())
    objects = sum(len(row["scores"] or ()) for row in rows)
    told = f"Found {objects} objects in {len(rows) - len(BROKEN)} images, {len(BROKEN)} could not be read; "
    out, err = capfd.readouterr()
    assert (f"{told}5 of {len(parts)} parts had been done before" in out, err) == (True, "")
    assert main(words) == 1  # as before, though nothing is left, so that Ray is not started
    assert f"{told}{len(parts)} of {len(parts)} parts had been done before" in capfd.readouterr().out

    assert killer.listening
    assert all(ip_address(address.removeprefix("::ffff:")).is_loopback for address in killer.listening)
    assert {*psutil.Process().children(recursive=True)} <= others
