"""Inference with every engine, from images to class logits and boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import engines, peers
from benchmarks.engines import COMPILED, INT8, ONNX, OPENVINO, OPENVINO_BF16, OPTIMISED, PLAIN, TORCH_BF16
from benchmarks.goals import Goal, faster
from benchmarks.measure import Row, Side, Work
from benchmarks.peers import FACEBOOK, TRANSFORMERS
from benchmarks.setup import Setup, detector, images, pixels
from querybox.structures import ImageBatch

TRANSFORMERS_BF16 = f"{TRANSFORMERS} bf16"
IN_BF16 = {TORCH_BF16, OPENVINO_BF16, TRANSFORMERS_BF16}
SIZES = ((480, 640), (800, 1066))
"""Height and width in pixels."""
GROWTH = ((240, 320), (320, 426), (480, 640), (640, 853), (800, 1066), (1066, 1421))

EXACT, ROUGH, ROUGHER = 1e-4, 0.2, 1.0
"""Tolerances of logits and boxes in float32, in bfloat16 (8 bits) and in int8. Logits have a range of about 3."""


def rows(setup: Setup) -> Iterator[Row]:
    """Yield a row for each precision, batch and size, then the curve over pixels."""
    for batch in (1, 8):
        for size in SIZES:
            yield float32(setup, batch, size)
            yield reduced(setup, batch, size)
    # A separate row, because compiling takes minutes.
    yield row(
        setup, "compiled", 1, (800, 1066), dict.fromkeys([OPTIMISED, COMPILED, TRANSFORMERS], EXACT), []
    )
    for size in GROWTH:
        yield Row(
            name=f"growth-inference-{size[0]}x{size[1]}",
            title="Inference over pixels, float32, one image",
            sides=sides(setup, 1, size, {OPTIMISED: EXACT, FACEBOOK: EXACT, TRANSFORMERS: EXACT}),
            difference=furthest,
            rounds=(2, 7),
            seconds=setup.seconds(2),
            x=size[0] * size[1],
        )


def float32(setup: Setup, batch: int, size: tuple[int, int]) -> Row:
    """Return the row of the engines whose outputs equal the plain model's."""
    names = [PLAIN, OPTIMISED, ONNX, OPENVINO, FACEBOOK, TRANSFORMERS]
    goals = [
        faster([OPTIMISED], TRANSFORMERS, 1.7),
        faster([OPTIMISED], FACEBOOK, 2.0),
        faster([ONNX, OPENVINO], TRANSFORMERS, 2.2),
        faster([ONNX, OPENVINO], FACEBOOK, 2.6),
    ]
    return row(setup, "float32", batch, size, dict.fromkeys(names, EXACT), goals)


def reduced(setup: Setup, batch: int, size: tuple[int, int]) -> Row:
    """Return the row of the engines with reduced precision; the peers are also measured in float32."""
    tolerances = {
        OPTIMISED: EXACT,
        TORCH_BF16: ROUGH,
        OPENVINO_BF16: ROUGH,
        INT8: ROUGHER,
        FACEBOOK: EXACT,
        TRANSFORMERS: EXACT,
        TRANSFORMERS_BF16: ROUGH,
    }
    goals = [
        faster([TORCH_BF16, OPENVINO_BF16], TRANSFORMERS, 4.5),
        faster([TORCH_BF16, OPENVINO_BF16], FACEBOOK, 5.5),
        faster([INT8], TRANSFORMERS, 7.0),
        faster([INT8], FACEBOOK, 8.5),
    ]
    return row(setup, "reduced precision", batch, size, tolerances, goals)


def row(
    setup: Setup,
    precision: str,
    batch: int,
    size: tuple[int, int],
    tolerances: dict[str, float],
    goals: Sequence[Goal],
) -> Row:
    """Return a row for a batch of images of one size."""
    height, width = size
    return Row(
        name=f"inference-{precision.split()[0]}-{batch}x{height}x{width}",
        title=f"Inference, {precision}, batch {batch}, {height}x{width}",
        sides=sides(setup, batch, size, tolerances),
        difference=furthest,
        goals=goals,
        seconds=setup.seconds(25),
    )


def sides(setup: Setup, batch: int, size: tuple[int, int], tolerances: dict[str, float]) -> list[Side]:
    """Return the sides with these names, with their tolerances."""
    theirs: dict[str, Callable[..., Work]] = {
        FACEBOOK: partial(facebook, setup),
        TRANSFORMERS: transformers,
        TRANSFORMERS_BF16: partial(transformers, bf16=True),
    }
    result = []
    for name, tolerance in tolerances.items():
        forward = theirs.get(name) or partial(ours, setup, name)
        result.append(
            Side(
                name=name,
                build=partial(forward, batch, setup.size(*size)),
                tolerance=tolerance,
                precision="bf16" if name in IN_BF16 else "float32",
            )
        )
    return result


def furthest(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Return the largest difference between two logits or boxes."""
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def ours(setup: Setup, name: str, batch: int, size: tuple[int, int]) -> Work:
    """Return a forward pass of one of querybox's engines; exported ones also normalise the images."""
    engine = engines.build(setup, name)
    ready = ImageBatch.from_pixels(*pixels(batch, size), engine.preprocessing)

    def work() -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            answer = engine(ready).layers[-1]
        return answer.logits.float(), answer.boxes.float()

    return work


def facebook(setup: Setup, batch: int, size: tuple[int, int]) -> Work:
    """Return facebookresearch's forward pass."""
    model = facebook_model(setup.facebook)
    nested = peers.nested(images(batch, size))

    def work() -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            answer = model(nested)
        return answer["pred_logits"], answer["pred_boxes"]

    return work


def transformers(batch: int, size: tuple[int, int], *, bf16: bool = False) -> Work:
    """Return transformers' forward pass; with `bf16` in channels-last format, which is faster."""
    model = transformers_model(bf16=bf16)
    ready = images(batch, size)
    inputs = ready.images
    if bf16:
        inputs = inputs.to(torch.bfloat16, memory_format=torch.channels_last)
    mask = (~ready.padding_mask).long()

    def work() -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            answer = model(pixel_values=inputs, pixel_mask=mask)
        return answer.logits.float(), answer.pred_boxes.float()

    return work


@cache
def facebook_model(checkout: Path | None) -> Any:
    """Return facebookresearch's model with our weights."""
    return peers.facebook(checkout, detector())[0].eval()


@cache
def transformers_model(*, bf16: bool) -> Any:
    """Return transformers' model with our weights."""
    model = peers.transformers(detector()).eval()
    return model.to(torch.bfloat16).to(memory_format=torch.channels_last) if bf16 else model
