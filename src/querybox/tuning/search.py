"""The search for the fastest engine, precision and number of threads for a model on this machine.

All engines are timed in turns in one process, so that other work on the machine affects all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

from querybox.arguments import require_size
from querybox.benchmark import photo_size, take_samples
from querybox.checkpoints.find import EXPORTED, Format
from querybox.checkpoints.read import load_detector
from querybox.errors import ConfigError, QueryboxError
from querybox.exporting import export, load_exported
from querybox.exporting.card import ExportedPrecision
from querybox.files import cache_folder
from querybox.inference.detections import Detections
from querybox.inference.engine import Engine, default_device
from querybox.inference.optimized_model import OptimizedModel
from querybox.inference.predict import Input, detect
from querybox.machine import available_cpus
from querybox.modules.detector import DetectionTransformer
from querybox.pixels import smooth_image
from querybox.precision import is_native
from querybox.temporary import temporary_folder
from querybox.tuning.choice import Candidate, Choice, folder_of, remember

SECONDS = 30.0
"""Seconds for which the engines are measured, and again for the numbers of threads."""
GAIN = 1.05
"""Minimum speedup over the default for another engine or number of threads to be chosen; less could be noise."""
BEST = 10
"""Number of highest-scoring detections that are compared."""
LIMITS: dict[ExportedPrecision, float] = {"float32": 1e-3, "bf16": 0.1, "fp16": 0.1, "int8": 0.25}
"""Maximum difference of scores and boxes (both 0-1) for an engine to be chosen, by precision."""
PRECISIONS: tuple[ExportedPrecision, ...] = ("float32", "bf16")
"""Precisions in which PyTorch is measured."""
EXPORTS: tuple[tuple[Format, ExportedPrecision], ...] = (
    ("onnx", "float32"),
    ("openvino", "float32"),
    ("openvino", "bf16"),
)
"""Engines, and precisions in which a model is exported for them."""
ENGINES: dict[str, Format] = {".onnx": "onnx", ".xml": "openvino"}
"""Engines of exported models, by suffix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The result of a candidate."""

    candidate: Candidate
    seconds: float | None = None
    """Median time of an image in seconds; None if it was not measured."""
    ratio: float | None = None
    """How many times as long the default takes: the median over the rounds."""
    scores: float | None = None
    """Largest difference of a score (0-1) from the detector in float32, among its best detections."""
    boxes: float | None = None
    """Largest difference of an edge of a box from the detector in float32, in 0-1 of the longer side of the image."""
    note: str = ""
    """Why it was not measured, or cannot be chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The result of `tune`."""

    measurements: tuple[Measurement, ...]
    """The first is the default: PyTorch in float32 with its own number of threads."""
    choice: Choice


def tune(
    weights: Path,
    exported: Sequence[Path] = (),
    *,
    size: tuple[int, int] | None = None,
    callback: Callable[[str], object] = lambda _: None,
) -> Tuning:
    """Find the fastest way to run a model on this machine, and remember it for `load_tuned`.

    PyTorch is measured, and ONNX Runtime and OpenVINO if they are installed, in float32 and, where the CPU computes it
    natively, in bf16; then the fastest of them with other numbers of threads.

    Args:
        weights: The weights file.
        exported: Exported models of these weights to measure as well, such as one in int8: .onnx or .xml.
        size: (height, width) of the images in pixels; by default those of a 4:3 photo as resized for the model.
        callback: Called with a description of the current step, e.g. to show progress.

    Raises:
        CheckpointError: A file cannot be read.
        ConfigError: An exported model is of another kind, or of other classes than the model; `size` is out of range;
            or the choice cannot be kept.
    """
    if size is not None:
        require_size("tune", size)
    detector = load_detector(weights).to(default_device())
    size = size or photo_size(detector.preprocessing)
    threads = torch.get_num_threads()
    given = [given_candidate(path, detector, threads) for path in exported]
    with drafts_folder(weights) as drafts, restoring_threads():
        bench = Bench(detector, size, callback)
        engines = bench.measure([*candidates(detector.device, drafts, threads), *given])
        best = fastest(engines)
        others = [replace(best.candidate, threads=each) for each in thread_counts() if each != threads]
        counts = bench.measure([best.candidate, *others]) if others else [best]
        choice = remember(fastest(counts).candidate, size, weights, drafts)
    assert best.ratio is not None
    rescaled = [replace(each, ratio=each.ratio and each.ratio * best.ratio) for each in counts[1:]]
    return Tuning(measurements=(*engines, *rescaled), choice=choice)


@contextmanager
def drafts_folder(weights: Path) -> Iterator[Path]:
    """Context manager that yields a folder for models that are being measured, beside that of the choice.

    Raises:
        ConfigError: It cannot be created.
    """
    with ExitStack() as stack:
        try:
            drafts = stack.enter_context(temporary_folder(folder_of(weights)))
        except OSError as error:
            raise ConfigError(
                f"{cache_folder()}: cannot be written to ({error.strerror}), and keeps what tuning finds; set "
                "XDG_CACHE_HOME to another folder, for --tuned as well"
            ) from error
        yield drafts


def candidates(device: torch.device, drafts: Path, threads: int) -> list[Candidate]:
    """Return the engines to measure, the default first; those of exported models run on the CPU alone."""
    found = [Candidate(engine="torch", precision=each, threads=threads) for each in PRECISIONS]
    if device.type == "cpu":
        found += [
            Candidate(
                engine=engine,
                precision=precision,
                threads=threads,
                file=drafts / f"{precision}{EXPORTED[engine]}",
            )
            for engine, precision in EXPORTS
        ]
    return found


def given_candidate(path: Path, detector: DetectionTransformer, threads: int) -> Candidate:
    """Return the candidate for an exported model, after comparing it with the detector.

    Raises:
        CheckpointError: The file cannot be read.
        ConfigError: It is of another kind, or has other classes or image sizes than the detector.
    """
    if path.suffix.lower() not in ENGINES:
        raise ConfigError(
            f"{path}: --tune got a file of this kind; expected models exported as .onnx or .xml"
        )
    model = load_exported(path)
    ours, theirs = detector.preprocessing, model.preprocessing
    resizings = {(each.short_side, each.long_side, each.resizing) for each in (ours, theirs)}
    if model.categories != detector.categories or len(resizings) > 1:
        raise ConfigError(
            f"{path}: has other classes than the first model, or resizes images in another way; expected a model that "
            "was exported from it, for images of any size"
        )
    engine = ENGINES[path.suffix.lower()]
    return Candidate(engine=engine, precision=model.card.precision, threads=threads, file=path.resolve())


def thread_counts() -> list[int]:
    """Return the numbers of threads to measure: all CPUs of this process, half of them, and so on."""
    counts = [available_cpus()]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    return counts


@contextmanager
def restoring_threads() -> Iterator[None]:
    """Restore PyTorch's number of threads on exit."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fastest(measurements: Sequence[Measurement]) -> Measurement:
    """Return the fastest, or the first unless another one is at least `GAIN` times as fast."""
    usable = [each for each in measurements if each.ratio is not None and not each.note]
    best = max(usable, key=lambda each: each.ratio or 0)
    return best if (best.ratio or 0) >= GAIN else measurements[0]


def largest_differences(expected: Detections, found: Detections) -> tuple[float, float]:
    """Return the largest differences of scores and of boxes between the best detections and the closest ones found.

    Both are in 0-1, boxes in that of the longer side of the image. A detection without one of the same class counts
    as 1.
    """
    first = slice(min(BEST, len(expected)))
    other_class = expected.labels[first, None] != found.labels  # [10, N]
    scores = (expected.scores[first, None] - found.scores).abs().masked_fill(other_class, 1.0)
    edges = (expected.boxes_xyxy[first, None] - found.boxes_xyxy).abs().amax(2) / max(expected.size)
    boxes = edges.masked_fill(other_class, 1.0)
    closest = torch.maximum(scores, boxes).argmin(1, keepdim=True)
    return scores.gather(1, closest).max().item(), boxes.gather(1, closest).max().item()


class Bench:
    """Builds candidates and measures them in turns.

    Attributes:
        detector: The model.
        size: (height, width) of the images in pixels.
        callback: Called with a description of the current step.
    """

    def __init__(
        self, detector: DetectionTransformer, size: tuple[int, int], callback: Callable[[str], object]
    ) -> None:
        self.detector = detector
        self.size = size
        self.callback = callback
        pixels = smooth_image(*size, generator=torch.Generator().manual_seed(0))
        self.batch = [Input(position=0, source="", size=size, pixels=pixels)]
        (self.expected,) = detect(detector, self.batch, top_k=100)

    def measure(self, candidates: Sequence[Candidate]) -> list[Measurement]:
        """Measure the candidates; the first is the one that ratios are relative to, and has to work.

        One that cannot be run, or whose detections differ, has a note that says why.
        """
        found: list[Measurement] = []
        works: dict[int, Callable[[], Sequence[Detections]]] = {}
        for place, candidate in enumerate(candidates):
            try:
                torch.set_num_threads(candidate.threads)
                work = partial(self.run, self.build(candidate), candidate.threads)
                scores, boxes = largest_differences(self.expected, work()[0])
            except QueryboxError as error:
                found.append(Measurement(candidate=candidate, note=str(error)))
                continue
            limit = LIMITS[candidate.precision]
            note = "" if max(scores, boxes) <= limit else f"its detections differ by more than {limit:g}"
            found.append(Measurement(candidate=candidate, scores=scores, boxes=boxes, note=note))
            works[place] = work
        samples = take_samples(list(works.values()), SECONDS, self.show_time)
        for place, times in zip(works, samples, strict=True):
            ratio = median(first / each for first, each in zip(samples[0], times, strict=True))
            found[place] = replace(found[place], seconds=median(times), ratio=ratio)
        return found

    def show_time(self, seconds: float) -> None:
        """Report how long has been measured."""
        self.callback(f"measuring, {seconds:.0f} of {SECONDS:.0f} s")

    def run(self, engine: Engine, threads: int) -> list[Detections]:
        """Detect objects with a number of threads."""
        torch.set_num_threads(threads)
        return detect(engine, self.batch, top_k=100)

    def build(self, candidate: Candidate) -> Engine:
        """Return the engine of a candidate; its model is exported if its file does not exist.

        Raises:
            QueryboxError: It cannot be run on this machine.
        """
        if candidate.precision == "bf16" and not is_native("bf16", self.detector.device):
            raise ConfigError("this device does not compute bf16 natively")
        if candidate.file is None:
            assert candidate.precision != "int8"
            return OptimizedModel(self.detector, precision=candidate.precision)
        if not candidate.file.exists():
            preprocessing = self.detector.preprocessing
            # All images of such a detector have this size, for which the model is faster.
            fixed = preprocessing.resizing == "stretch" and self.size == photo_size(preprocessing)
            export(
                self.detector,
                candidate.file,
                to=candidate.engine,
                precision=candidate.precision,
                size=self.size if fixed else None,
                callback=lambda stage: self.callback(f"{candidate}: {stage}"),
            )
        return load_exported(candidate.file)
