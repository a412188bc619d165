"""Files of D-FINE in the layout of its authors, whose names are facts of the public source (Peterande/D-FINE)."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from public_files import Names, attention, conv, layer_norms, linear, norm, random_file

from querybox.checkpoints.blueprint import restore
from querybox.checkpoints.read import read_checkpoint
from querybox.models import find
from querybox.models.layouts.dfine import PETERANDE
from querybox.models.layouts.rtdetr import PREPROCESSING

Stage = tuple[int, int, int, int, bool, bool, int, int]
B0: tuple[Stage, ...] = (
    (16, 16, 64, 1, False, False, 3, 3),
    (64, 32, 256, 1, True, False, 3, 3),
    (256, 64, 512, 2, True, True, 5, 3),
    (512, 128, 1024, 1, True, True, 5, 3),
)
B5: tuple[Stage, ...] = (
    (64, 64, 128, 1, False, False, 3, 6),
    (128, 128, 512, 2, True, False, 3, 6),
    (512, 256, 1024, 5, True, True, 5, 6),
    (1024, 512, 2048, 2, True, True, 5, 6),
)
"""Channels before, within and after each stage, its blocks, whether it halves the map, whether its layers are light,
side of the kernel, and layers of a block."""


def unit(name: str, inputs: int, outputs: int, side: int, *, groups: int = 1, affine: bool) -> Names:
    """A convolution of the backbone, in smaller models with a learnable affine block."""
    yield f"{name}.conv.weight", [outputs, inputs // groups, side, side]
    yield from norm(f"{name}.bn", outputs)
    if affine:
        yield f"{name}.lab.scale", [1]
        yield f"{name}.lab.bias", [1]


def hgnetv2(stem: tuple[int, int], stages: tuple[Stage, ...], *, affine: bool) -> Names:
    first, last = stem
    steps = {"1": (3, first, 3), "2a": (first, first // 2, 2), "2b": (first // 2, first, 2)}
    for step, shape in (steps | {"3": (2 * first, first, 3), "4": (first, last, 1)}).items():
        yield from unit(f"backbone.stem.stem{step}", *shape, affine=affine)
    for index, (inputs, middle, outputs, blocks, halved, light, side, layers) in enumerate(stages):
        stage = f"backbone.stages.{index}"
        if halved:
            yield from unit(f"{stage}.downsample", inputs, inputs, 3, groups=inputs, affine=False)
        for number in range(blocks):
            block, before = f"{stage}.blocks.{number}", outputs if number else inputs
            for place in range(layers):
                layer, given = f"{block}.layers.{place}", middle if place else before
                if light:
                    yield from unit(f"{layer}.conv1", given, middle, 1, affine=False)
                    yield from unit(f"{layer}.conv2", middle, middle, side, groups=middle, affine=affine)
                else:
                    yield from unit(layer, given, middle, side, affine=affine)
            total = before + layers * middle
            yield from unit(f"{block}.aggregation.0", total, outputs // 2, 1, affine=affine)
            yield from unit(f"{block}.aggregation.1", outputs // 2, outputs, 1, affine=affine)


def perceptron(name: str, *widths: int) -> Names:
    for step, (inputs, outputs) in enumerate(pairwise(widths)):
        yield from linear(f"{name}.layers.{step}", inputs, outputs)


def csp(name: str, inputs: int, outputs: int, blocks: int) -> Names:
    yield from conv(f"{name}.conv1", inputs, outputs, 1)
    yield from conv(f"{name}.conv2", inputs, outputs, 1)
    for number in range(blocks):
        yield from conv(f"{name}.bottlenecks.{number}.conv1", outputs, outputs, 3)
        yield from conv(f"{name}.bottlenecks.{number}.conv2", outputs, outputs, 1)


def encoder(inputs: list[int], width: int, feedforward: int, hidden: int, blocks: int) -> Names:
    for level, channels in enumerate(inputs):
        yield from conv(f"encoder.input_proj.{level}", channels, width, 1)
    layer = "encoder.encoder.0.layers.0"
    yield from attention(f"{layer}.self_attn", width)
    yield from linear(f"{layer}.linear1", width, feedforward)
    yield from linear(f"{layer}.linear2", feedforward, width)
    yield from layer_norms(width, f"{layer}.norm1", f"{layer}.norm2")
    for step in range(len(inputs) - 1):
        yield from conv(f"encoder.lateral_convs.{step}", width, width, 1)
        yield from conv(f"encoder.downsample_convs.{step}.0.cv1", width, width, 1)
        yield from conv(f"encoder.downsample_convs.{step}.0.cv2", width, width, 3, groups=width)
        for block in (f"encoder.fpn_blocks.{step}", f"encoder.pan_blocks.{step}"):
            yield from conv(f"{block}.cv1", 2 * width, 2 * width, 1)
            yield from csp(f"{block}.cv2.0", width, hidden, blocks)
            yield from conv(f"{block}.cv2.1", hidden, hidden, 3)
            yield from csp(f"{block}.cv3.0", hidden, hidden, blocks)
            yield from conv(f"{block}.cv3.1", hidden, hidden, 3)
            yield from conv(f"{block}.cv4", 2 * width + 2 * hidden, width, 1)


def decoder(width: int, feedforward: int, layers: int, points: int) -> Names:
    for constant in ("up", "reg_scale"):
        yield f"decoder.{constant}", [1]
        yield f"decoder.decoder.{constant}", [1]
    yield "decoder.denoising_class_embed.weight", [81, width]
    yield from perceptron("decoder.query_pos_head", 4, 2 * width, width)
    yield from linear("decoder.enc_output.proj", width, width)
    yield from layer_norms(width, "decoder.enc_output.norm")
    yield from linear("decoder.enc_score_head", width, 80)
    yield from perceptron("decoder.enc_bbox_head", width, width, width, 4)
    yield from perceptron("decoder.pre_bbox_head", width, width, width, 4)
    for index in range(layers):
        yield from linear(f"decoder.dec_score_head.{index}", width, 80)
        yield from perceptron(f"decoder.dec_bbox_head.{index}", width, width, width, 4 * 33)
        yield from perceptron(f"decoder.decoder.lqe_layers.{index}.reg_conf", 20, 64, 1)
        layer = f"decoder.decoder.layers.{index}"
        yield from attention(f"{layer}.self_attn", width)
        yield from linear(f"{layer}.cross_attn.sampling_offsets", width, 8 * points * 2)
        yield from linear(f"{layer}.cross_attn.attention_weights", width, 8 * points)
        yield f"{layer}.cross_attn.num_points_scale", [points]
        yield from linear(f"{layer}.gateway.gate", 2 * width, 2 * width)
        yield from linear(f"{layer}.linear1", width, feedforward)
        yield from linear(f"{layer}.linear2", feedforward, width)
        yield from layer_norms(width, *(f"{layer}.{each}" for each in ("norm1", "gateway.norm", "norm3")))


def nano() -> Names:
    yield from hgnetv2((16, 16), B0, affine=True)
    yield from encoder([512, 1024], 128, 512, 21, 2)
    yield from decoder(128, 512, 3, 12)


def extra_large() -> Names:
    yield from hgnetv2((32, 64), B5, affine=False)
    yield from encoder([512, 1024, 2048], 384, 2048, 192, 3)
    for level in range(3):
        yield from conv(f"decoder.input_proj.{level}", 384, 256, 1)
    yield from decoder(256, 1024, 6, 12)


FILES: dict[str, tuple[Any, int, list[int]]] = {
    "dfine_n": (nano, 4, [6, 6]),
    "dfine_x": (extra_large, 8, [3, 6, 3]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_authors_is_read_and_written_bit_for_bit(name: str, tmp_path: Path) -> None:
    names, scale, points = FILES[name]
    shares = torch.tensor([1 / count for count in points for _ in range(count)])
    state = random_file(names(), {"num_points_scale": shares, ".up": 0.5})
    state |= {key: torch.tensor([scale]) for key in state if key.endswith("reg_scale")}
    computed = {"decoder.anchors": torch.rand(1, 8400, 4), "decoder.valid_mask": torch.ones(1, 8400, 1)}
    average = {"module": {**state, **computed}, "updates": 5}
    torch.save({"ema": average, "last_epoch": 71}, tmp_path / "model.pth")
    checkpoint = read_checkpoint(tmp_path / "model.pth")
    blueprint = checkpoint.blueprint
    assert checkpoint.layout == "Peterande/D-FINE"
    assert blueprint.recipe == find(name)
    assert blueprint.preprocessing == PREPROCESSING
    restore(blueprint, checkpoint.state)  # every tensor fits
    written = PETERANDE.to_theirs({**checkpoint.state, **blueprint.recipe.computed_tensors()})
    # What the authors have twice is written once.
    assert written.keys() == {
        key for key in state if key not in ("decoder.decoder.up", "decoder.decoder.reg_scale")
    }
    # The curvature is written as a floating-point number.
    assert all(torch.equal(tensor, state[key].float()) for key, tensor in written.items())


def test_what_the_authors_code_cannot_have_is_refused() -> None:
    recipe = find("dfine_n").replace(token_content=False, position_layers=3)
    assert recipe.unsupported_settings(PETERANDE) == ["token_content", "position_layers"]
