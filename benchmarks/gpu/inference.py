"""Inference on a GPU: from normalised images to class logits and boxes; eager, compiled, as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.memory import with_peak_memory
from benchmarks.gpu.models import MODELS, Model, Precision, Run, batch_on, computing_in, ours, theirs
from benchmarks.inference import furthest
from benchmarks.measure import Absent, Row, Side, Work
from benchmarks.peers import TRANSFORMERS
from querybox.structures import ImageBatch

BATCHES = (1, 32)
PIXELS = {"rtdetr": 640, "dfine": 640}
"""Side of the square images in pixels, by the prefix of the model; 800 for all others."""
TOLERANCES: dict[Precision, float] = {"tf32": 0.05, "bf16": 0.5, "float32": 1e-3}
"""How far logits and boxes may be from those of the first side; logits spread over about 3."""
RANKED_TOLERANCES: dict[Precision, float] = {"tf32": 0.02, "bf16": 0.15, "float32": 1e-3}
"""Mean difference of logits and boxes, if queries are ranked by scores of the encoder: rounding decides which are last.

The tolerance of bf16 finds gross errors only."""
OURS = "querybox"
Forward = Callable[[], tuple[Tensor, Tensor]]


def rows(run: Run) -> Iterator[Row]:
    """Yield the rows without a compiler, then those with one, which take longest."""
    for batch in run.some(BATCHES):
        for model in MODELS:
            for precision in run.some(tuple(TOLERANCES)):
                yield row(run, model, batch, precision)
    for model in run.some(MODELS):
        yield memory_row(run, model)
    for batch in run.some(BATCHES):
        for model in run.some(MODELS):
            yield row(run, model, batch, "bf16", compiled=True)


def row(run: Run, model: Model, batch: int, precision: Precision, *, compiled: bool = False) -> Row:
    """Return the row of a model, a batch and a precision."""
    build = partial(forward, run, model, batch, precision)
    names = ("compiled",) if compiled else ("eager", "CUDA graph")
    sides = [
        Side(
            name=f"{library} {name}",
            build=partial(build, library, name),
            tolerance=(RANKED_TOLERANCES if model.ranked else TOLERANCES)[precision],
        )
        for name in names
        for library in (OURS, TRANSFORMERS)
    ]
    if compiled:  # so that the answers are compared with those of the model as it is written
        sides.insert(0, Side(name=f"{OURS} eager", build=partial(build, OURS, "eager")))
    kind = "compiled-" if compiled else ""
    return Row(
        name=f"inference-{kind}{model.name}-{batch}-{precision}",
        title=f"{model.title}, inference, {precision}, {batch} x {described(model)}",
        sides=sides,
        difference=mean_in_any_order if model.ranked else furthest,
        rounds=(1 if run.quick else 3, 15),
        seconds=run.seconds(1.0),
    )


def mean_in_any_order(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Return the mean difference of logits or of boxes, whichever is larger, each sorted over the queries."""
    pairs = zip(a, b, strict=True)
    return max(float((x.sort(1).values - y.sort(1).values).abs().mean()) for x, y in pairs)


def memory_row(run: Run, model: Model) -> Row:
    """Return the row of the peak memory of a model."""
    return Row(
        name=f"memory-inference-{model.name}",
        title=f"{model.title}, peak memory of inference, bf16, 32 x {described(model)}, weights included",
        sides=[
            Side(
                name=library,
                build=partial(
                    with_peak_memory, run, partial(forward, run, model, 32, "bf16", library, "eager")
                ),
            )
            for library in (OURS, TRANSFORMERS)
        ],
        difference=None,
        unit="MiB",
        value=float,
        rounds=(1, 1),
    )


def pixels(model: Model) -> int:
    """Return a side of the images in pixels."""
    return PIXELS.get(model.name, 800)


def described(model: Model) -> str:
    """Return the size of the images in words."""
    return f"{pixels(model)}x{pixels(model)}"


def forward(run: Run, model: Model, batch: int, precision: Precision, library: str, mode: str) -> Work:
    """Return a forward pass that ends when the device has finished.

    Raises:
        Absent: The device has no CUDA graphs, or transformers has no such model.
    """
    if mode == "CUDA graph" and run.device.type != "cuda":
        raise Absent("needs a CUDA device")
    images = batch_on(run, model, run.batch(batch), pixels(model))
    make = our_forward if library == OURS else their_forward
    call = make(run, model, images, precision, compiled=mode == "compiled")

    def eager() -> tuple[Tensor, Tensor]:
        with torch.inference_mode(), computing_in(precision):
            return call()

    within: Forward = eager
    if mode == "CUDA graph":
        within = CUDAGraph(eager)

    def work() -> tuple[Tensor, Tensor]:
        logits, boxes = within()
        run.synchronize()
        return logits, boxes

    for _ in range(1 if run.quick else 3):  # libraries choose their kernels, compilers compile
        work()
    return work


def our_forward(
    run: Run, model: Model, images: ImageBatch, precision: Precision, *, compiled: bool
) -> Forward:
    """Return the pass of the optimised detector."""
    engine = ours(model, run).optimize(
        precision="bf16" if precision == "bf16" else "float32", compile=compiled
    )

    def call() -> tuple[Tensor, Tensor]:
        answer = engine(images).layers[-1]
        return answer.logits, answer.boxes

    return call


def their_forward(
    run: Run, model: Model, images: ImageBatch, precision: Precision, *, compiled: bool
) -> Forward:
    """Return the pass of transformers, with channels last."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    peer: Any = theirs(model, run).to(dtype).to(memory_format=torch.channels_last)
    inputs = images.images.to(dtype, memory_format=torch.channels_last)
    mask = (~images.padding_mask).long()
    if compiled:
        peer.compile(dynamic=True)

    def call() -> tuple[Tensor, Tensor]:
        answer = peer(pixel_values=inputs, pixel_mask=mask)
        return answer.logits.float(), answer.pred_boxes.float()

    return call


class CUDAGraph:
    """Replays a pass as a CUDA graph; the answer is overwritten by the next replay."""

    def __init__(self, call: Forward) -> None:
        """Capture `call`."""
        self.call = call  # the graph reads the memory of its weights and inputs, which have to live as long
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # PyTorch does not leave the stream of a capture that failed.
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(self.graph):
            self.answer = call()

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Replay it."""
        self.graph.replay()
        return self.answer
