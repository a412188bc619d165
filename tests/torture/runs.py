"""A tiny training, to be ended in many ways, and what it has to come to all the same.

A run is a process of its own, forked from a server that has imported everything, so that it takes a second.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

import torch
from dataset_writers import write_boxes, write_json
from report_pages import without_charts
from safetensors.torch import save_file

from querybox.checkpoints import files, native
from querybox.errors import QueryboxError
from querybox.evaluation.evaluate import detect_records, measure
from querybox.temporary import leftovers
from querybox.training import RunSettings, loop, processes, train
from querybox.training.checkpoint import RunCheckpoint
from torture.case import require
from torture.data_sets import MODEL
from torture.server import fork_server

SECONDS = 120.0
"""A run that has not ended by then hangs, or the machine is very busy."""
EPOCHS = 3, 2
"""Of two updates each, in the long and in the short form."""
VAL, VALIDATED = "val.json", 2
"""The file and the number of the images, of the eight to train on, that are evaluated on."""
EVALUATES = "evaluates slowly"
"""What a run says when it begins a slow evaluation."""
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "tempfile.mkstemp")
"""What Python tells its audit hooks of: a file is opened, or a folder changes."""
CLOCK = {"seconds", "images_per_second"}
"""What differs between any two runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What happens to a run."""

    kill_before: int | None = None
    """SIGKILL before this operation on a file of its folder, 1, 2, ..."""
    tear: tuple[int, float] | None = None
    """SIGKILL in this save of a weights file, 1, 2, ..., when this share of its bytes is written."""
    signal_in_step: tuple[int, int] | None = None
    """In this update, 0, 1, 2 ..., the process sends itself this signal."""
    fill_before: tuple[int, Path | None, int] | None = None
    """Before this operation on a file of its folder, so many bytes are left free: of the disk on which the path is, by
    a file there; or, without a path, of the size that any file may have."""
    start_method: str = "fork"
    """How workers are started; `forkserver` is what Python does from 3.14 on."""
    timeout: float | None = None
    """Seconds after which a process is given up by the others."""
    count: Path | None = None
    """Where to write down how many operations and saves there were."""
    slow: float = 0.0
    """Seconds that each image of an evaluation takes longer."""
    waits_for: Path | None = None
    """A file without which no evaluation begins."""
    environment: dict[str, str] = field(default_factory=dict)
    stderr: str | None = None
    """What cannot be written to in place of the log: a ``pipe``, a ``terminal`` that is gone, or a ``full disk``."""


def settings_of(folder: Path, output: str, long: bool, *, workers: int = 0, **train: Any) -> RunSettings:
    """Return the settings of a run on the boxes in `folder`, which are written if need be."""
    boxes = folder / "boxes" / "boxes.json"
    if not boxes.exists():
        write_boxes(boxes.parent, (64, 48), sides=(12, 30))
        content = json.loads(boxes.read_text())
        content["images"] = content["images"][:VALIDATED]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [item for item in content["annotations"] if item["image_id"] in kept]
        write_json(boxes.with_name(VAL), content)
    return RunSettings.parse(
        {
            "recipe": "detr_r50",
            "model": {**MODEL, "decoder_layers": 1},
            "data": {
                "train": str(boxes),
                "val": str(boxes.with_name(VAL)),
                "image_size": 48,
                "workers": workers,
            },
            "train": {
                "epochs": EPOCHS[not long],
                "batch_size": 4,
                "lr": 1e-3,
                "ema": 0.9,
                "schedule": "cosine",
                **train,
            },
            "output": str(folder / output),
        }
    )


def start(settings: RunSettings, plan: Plan | None = None, *, resume: bool = False) -> ForkServerProcess:
    """Begin, or resume, a run; what it says goes to a file beside its folder."""
    process = fork_server().Process(
        target=run, args=(settings.model_dump(mode="json"), plan or Plan(), resume)
    )
    process.start()
    return process


def wait_for_server() -> None:
    """Wait until the server of the processes has started."""
    process = fork_server().Process()
    process.start()
    process.join()


def run(values: dict[str, Any], plan: Plan, resume: bool) -> None:
    """Train in this process, to which `plan` happens."""
    os.setsid()  # so that the processes it starts can be found
    settings = RunSettings.parse(values)
    os.environ.update(plan.environment)
    log = log_of(settings, plan.environment.get("RANK", "0"))
    sys.stderr = log.open("a", buffering=1) if plan.stderr is None else broken_stream(plan.stderr)
    multiprocessing.set_start_method(plan.start_method, force=True)
    torch.set_num_threads(1)
    loop.MIN_CHECKPOINT_SECONDS = 0.0  # a checkpoint an epoch
    carry_out(plan, str(settings.folder))
    try:
        train(settings, resume=resume)
        sys.stderr = log.open("a", buffering=1)  # multiprocessing flushes it
    except QueryboxError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(2)


def broken_stream(kind: str) -> TextIO:
    """Return a stream that cannot be written to; see `Plan.stderr`."""
    if kind == "full disk":
        return Path("/dev/full").open("w", buffering=1)
    reader, writer = os.pipe() if kind == "pipe" else os.openpty()
    os.close(reader)
    return os.fdopen(writer, "w", buffering=1)


def carry_out(plan: Plan, folder: str) -> None:
    """Prepare what `plan` says."""
    watch_files(plan, folder)
    make_up_ap()
    ExitStack().enter_context(without_charts())  # until this process ends
    mock.patch.object(os, "fsync", return_value=None).start()  # a killed process loses nothing that it wrote
    if plan.timeout is not None:
        mock.patch.object(processes, "TIMEOUT", timedelta(seconds=plan.timeout)).start()
    if plan.slow or plan.waits_for is not None:
        evaluate_slowly(plan.slow, plan.waits_for)
    if plan.signal_in_step is not None:
        signal_in_step(*plan.signal_in_step)


def watch_files(plan: Plan, folder: str) -> None:
    """Count what is done to the files of the run's `folder`, and do what `plan` says of it."""
    seen = {"operations": 0, "saves": 0}
    process = os.getpid()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or not str(arguments[0]).startswith(folder) or os.getpid() != process:
            return
        seen["operations"] += 1
        if seen["operations"] == plan.kill_before:
            os.kill(process, signal.SIGKILL)
        if plan.fill_before is not None and seen["operations"] == plan.fill_before[0]:
            fill(*plan.fill_before[1:])

    def saving(tensors: Any, path: Path, metadata: Any) -> None:
        seen["saves"] += 1
        save_file(tensors, path, metadata=metadata)
        if plan.tear is not None and seen["saves"] == plan.tear[0]:
            os.truncate(path, int(path.stat().st_size * plan.tear[1]))
            os.kill(process, signal.SIGKILL)
        if plan.count is not None:
            plan.count.write_text(json.dumps(seen))

    mock.patch.object(files, "save_file", saving).start()
    sys.addaudithook(watch)


def make_up_ap() -> None:
    """Let AP follow from the detections in another way: six updates find nothing, and the best would be the first."""

    def measured(data: Any, detections: Any, *rest: Any) -> Any:
        scores = torch.cat([found.scores for found in detections.values()]).double()
        ap = float(scores.sum()) * 1e3 % 1
        evaluation = measure(data, detections, *rest)
        return dataclasses.replace(evaluation, metrics={**evaluation.metrics, "AP": ap})

    mock.patch.object(processes, "measure", measured).start()


def evaluate_slowly(seconds: float, waits_for: Path | None) -> None:
    """Make each image of an evaluation take longer, and let no evaluation begin before there is a file."""

    def slowly(engine: Any, images: Any, *, callback: Callable[[Any], object], **options: Any) -> Any:
        sys.stderr.write(f"{EVALUATES}\n")
        begun = time.monotonic()
        while waits_for is not None and not waits_for.exists():
            require(time.monotonic() - begun < SECONDS, f"{waits_for} has not appeared")
            time.sleep(0.02)

        def late(found: Any) -> None:
            time.sleep(seconds)
            callback(found)

        return detect_records(engine, images, callback=late, **options)

    mock.patch.object(processes, "detect_records", slowly).start()


def signal_in_step(step: int, number: int) -> None:
    """Make the process send itself a signal in an update."""
    update = loop.Trainer.update

    def updating(self: loop.Trainer, *arguments: Any) -> Any:
        if self.progress.step == step:
            os.kill(os.getpid(), number)
        return update(self, *arguments)

    mock.patch.object(loop.Trainer, "update", updating).start()


def fill(disk: Path | None, left: int) -> None:
    """Leave `left` bytes free on a disk; or, without one, let no file grow beyond that."""
    if disk is None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (left, resource.RLIM_INFINITY))
        return
    size = shutil.disk_usage(disk).free - left
    if size > 0:
        (disk / "filler").write_bytes(b"x" * size)


def end_of(process: ForkServerProcess, seconds: float = SECONDS) -> int:
    """Wait for a process and return its exit code: negative where a signal ended it.

    Raises:
        NotSurvivedError: It does not end.
    """
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        require(False, f"a process has not ended after {seconds:.0f} s")
    assert process.exitcode is not None
    return process.exitcode


def finish(settings: RunSettings, plan: Plan | None = None, *, resume: bool = False) -> None:
    """Let a run go to its end.

    Raises:
        NotSurvivedError: It does not get there.
    """
    code = end_of(start(settings, plan, resume=resume))
    require(code == 0, f"a {'resumed' if resume else 'new'} run ended with {code}: {last_words(settings)}")


def log_of(settings: RunSettings, rank: str = "0") -> Path:
    """Return the file for what a process of a run says: beside its dataset."""
    assert settings.data.train is not None
    return Path(settings.data.train).parent / f"{settings.folder.name}.{rank}.log"


def last_words(settings: RunSettings, rank: str = "0") -> str:
    """Return the last line that a run has said."""
    path = log_of(settings, rank)
    lines = path.read_text().splitlines() if path.exists() else []
    return lines[-1] if lines else "nothing"


def result_of(settings: RunSettings) -> dict[str, Any]:
    """Return all that a run has come to, less what the clock tells."""
    folder = settings.folder
    checkpoint = RunCheckpoint.read(folder / "checkpoint.safetensors")
    progress = checkpoint.progress
    with (folder / "metrics.csv").open(newline="") as file:
        metrics = [without_clock(row) for row in csv.DictReader(file)]
    return {
        "weights": bits(checkpoint.tensors),
        "progress": [progress.step, progress.epoch, progress.epoch_sums, progress.best, progress.best_step],
        "patience": progress.evaluations_since_best,
        "rows": [without_clock(row) for row in progress.rows],
        "metrics.csv": metrics,
        "record.json": (folder / "record.json").read_text(),
        "last": detector_in(folder / "last.safetensors"),
        "best": detector_in(folder / "best.safetensors"),
        "files": sorted(path.name for path in folder.iterdir()),
        "left over": leftovers(folder),
    }


def detector_in(path: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the weights and the settings of a detector."""
    tensors, card = native.read(path)
    return bits(tensors), card


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """Return the memory of tensors by their names."""
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def without_clock(row: dict[str, str]) -> dict[str, str]:
    """Return a row of metrics without its times."""
    return {name: value for name, value in row.items() if name not in CLOCK}


def require_equal(settings: RunSettings, expected: dict[str, Any], what: str) -> None:
    """Raise NotSurvivedError unless a run has come to what is expected, bit for bit."""
    got = result_of(settings)
    unlike = [name for name in expected if got[name] != expected[name]]
    require(not unlike, f"{what}: unlike the run that was left alone in {', '.join(unlike)}")


def members(session: int) -> list[int]:
    """Return the living processes that a run, which leads the `session`, consists of."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = entry.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue  # it has just ended
        if int(its_session) == session and state not in "ZX":
            found.append(int(entry.parent.name))
    return found


def wait_for_none(sessions: Iterable[int], seconds: float) -> float:
    """Wait until no process of these runs lives, and return how long that took.

    Raises:
        NotSurvivedError: Some live on.
    """
    begun = time.monotonic()
    for session in sessions:
        while left := members(session):
            require(
                time.monotonic() - begun < seconds, f"{len(left)} processes live on after {seconds:.0f} s"
            )
            time.sleep(0.1)
    return time.monotonic() - begun
