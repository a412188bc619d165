"""Benchmarks of models on this machine: time, FLOPs, memory."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median, quantiles

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from querybox.arguments import require_number, require_size
from querybox.checkpoints.find import EXPORTED, is_exported
from querybox.checkpoints.read import load_detector
from querybox.data.transforms import resized_shape
from querybox.errors import ConfigError
from querybox.exporting import load_exported
from querybox.exporting.telemetry import without_telemetry
from querybox.inference.engine import Engine, default_device
from querybox.inference.optimized_model import OptimizedModel
from querybox.inference.predict import Input, detect
from querybox.memory import peak_memory, reset_peak
from querybox.modules.detector import DetectionTransformer
from querybox.structures import ImageBatch, Preprocessing

ENGINES = ("plain", "optimised", "bf16")
"""How a checkpoint is run: the plain detector, the optimised copy as in `predict`, and that in bfloat16."""
MIN_SECONDS, MIN_REPEATS = 2.0, 5
"""Minimum duration of the timing, and minimum number of timed calls."""
PAUSE = 0.05
"""Seconds to wait before another engine is timed, because thread pools spin for a while after their work is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineResult:
    """Time and memory of one engine for a batch, from resized pixels in memory to detections."""

    name: str
    load_seconds: float
    seconds: float
    """Median time of a batch in seconds."""
    quartiles: tuple[float, float]
    """Lower and upper quartile of the time in seconds."""
    images_per_second: float
    peak_memory: int | None
    """Peak memory in bytes beyond that in use before loading, on the GPU if there is one; None if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkResult:
    """The result of `benchmark`."""

    device: str
    threads: int
    size: tuple[int, int]
    """(height, width) of the images in pixels."""
    batch_size: int
    parameters: int | None
    """Number of parameters; None for an exported model."""
    flops: int | None
    """FLOPs per image; a multiply-add counts as two, though many papers count it as one."""
    engines: tuple[EngineResult, ...]


def benchmark(
    models: Sequence[str | Path],
    *,
    size: tuple[int, int] | None = None,
    batch_size: int = 1,
    trusted: bool = False,
) -> BenchmarkResult:
    """Measure every engine, each in a separate process, one after the other.

    Args:
        models: Checkpoints of any layout and exported models; parameters and FLOPs are those of the first checkpoint.
        size: (height, width) of the images in pixels; by default those of a 4:3 photo as resized for the first model.
        batch_size: Images per forward pass.
        trusted: Whether ``.pt2`` and ``.pte`` files may execute code.

    Raises:
        CheckpointError: A model cannot be read.
        ConfigError: There is no model, or a number is out of range.
    """
    if not models:
        raise ConfigError("benchmark got 0 models; expected at least 1")
    require_number("benchmark", "batch_size", batch_size, 1, whole=True)
    if size is not None:
        require_size("benchmark", size)
    paths = [Path(model) for model in models]
    jobs = [(path, name) for path in paths for name in engines_of(path)]
    checkpoints = [path for path in paths if not is_exported(path)]
    detector = load_detector(checkpoints[0]) if checkpoints else None
    size = size or photo_size((detector or load_exported(paths[0], trusted=trusted)).preprocessing)
    parameters = None if detector is None else sum(parameter.numel() for parameter in detector.parameters())
    flops = None if detector is None else count_flops(detector, size)
    del detector
    results = []
    for path, name in jobs:  # a new process each, so that no engine reuses the memory of another
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            job = pool.submit(measure, path, name, size, batch_size, seconds=MIN_SECONDS, trusted=trusted)
            results.append(job.result())
    return BenchmarkResult(
        device=str(default_device()),
        threads=torch.get_num_threads(),
        size=size,
        batch_size=batch_size,
        parameters=parameters,
        flops=flops,
        engines=tuple(results),
    )


def engines_of(path: Path) -> tuple[str, ...]:
    """Return the names of the engines that a file is run as."""
    return ("exported",) if is_exported(path) else ENGINES


def photo_size(preprocessing: Preprocessing) -> tuple[int, int]:
    """Return the (height, width) that a 4:3 photo is resized to."""
    return resized_shape(
        1536, 2048, preprocessing.short_side, preprocessing.long_side, preprocessing.resizing
    )


def count_flops(detector: DetectionTransformer, size: tuple[int, int]) -> int:
    """Return the FLOPs of convolutions and matrix products per image, which are nearly all.

    They depend on shapes alone, so the model runs on the meta device.
    """
    shapes = copy.deepcopy(detector).eval().to("meta").requires_grad_(requires_grad=False)
    batch = ImageBatch(
        images=torch.zeros(1, 3, *size, device="meta"),
        padding_mask=torch.zeros(1, *size, dtype=torch.bool, device="meta"),
        sizes=torch.zeros(1, 2, dtype=torch.int64, device="meta"),
    )
    # Fused attention is not counted.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        shapes(batch)
    return int(counter.get_total_flops())


def measure(
    path: Path, name: str, size: tuple[int, int], batch_size: int, *, seconds: float, trusted: bool = False
) -> EngineResult:
    """Load an engine and time detection in random images, for at least this many `seconds` in all."""
    with suppress(ImportError), without_telemetry():  # the time of loading is that of the model alone
        packages = {EXPORTED["onnx"]: "onnxruntime", EXPORTED["openvino"]: "openvino"}
        import_module(packages.get(path.suffix.lower(), "querybox.checkpoints"))
    before = reset_peak(default_device())
    start = time.perf_counter()
    engine = load(path, name, trusted=trusted)
    load_seconds = time.perf_counter() - start
    gc.collect()
    pixels = torch.randint(256, (3, *size), dtype=torch.uint8)
    batch = [Input(position=place, source="", size=size, pixels=pixels) for place in range(batch_size)]
    (samples,) = take_samples([partial(detect, engine, batch, top_k=100)], seconds)
    low, _, high = quantiles(samples, n=4, method="inclusive")
    return EngineResult(
        name=f"{path.name} {name}" if name in ENGINES else path.name,
        load_seconds=load_seconds,
        seconds=median(samples),
        quartiles=(low, high),
        images_per_second=batch_size / median(samples),
        peak_memory=peak_memory(default_device(), before),
    )


def take_samples(
    works: Sequence[Callable[[], object]],
    seconds: float,
    callback: Callable[[float], object] = lambda _: None,
) -> list[list[float]]:
    """Return the durations of works that are called in turns, after one call each that is not timed.

    Args:
        works: What is timed.
        seconds: Minimum duration of all rounds, with the pauses in them; each work is called `MIN_REPEATS` times at
            least.
        callback: Called after each round with the seconds that have passed.
    """
    for work in works:
        work()
    samples: list[list[float]] = [[] for _ in works]
    begin, passed = time.perf_counter(), 0.0
    while len(samples[0]) < MIN_REPEATS or passed < seconds:
        for work, times in zip(works, samples, strict=True):
            if len(works) > 1:
                time.sleep(PAUSE)
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        passed = time.perf_counter() - begin
        callback(passed)
    return samples


def load(path: Path, name: str, *, trusted: bool) -> Engine:
    """Load an engine onto its device."""
    if name == "exported":
        return load_exported(path, trusted=trusted)
    detector = load_detector(path).to(default_device())
    if name == "plain":
        return detector
    return OptimizedModel(detector, precision="bf16" if name == "bf16" else "float32")
