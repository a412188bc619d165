"""Files of RT-DETR and RT-DETRv2 in the layouts of their authors, whose names are facts of the public source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from public_files import Names, attention, conv, layer_norms, linear, norm, random_file

from querybox import Category, Detector, QueryboxError
from querybox.checkpoints.blueprint import restore
from querybox.checkpoints.read import read_checkpoint
from querybox.models import RTDETR, find
from querybox.models.layouts.rtdetr import LYUWENYU, PREPROCESSING
from querybox.models.layouts.rtdetrv2 import LYUWENYU_V2


def presnet(*, basic: bool) -> Names:
    """The backbone. In larger models its batch norms are frozen, and have no counters."""
    bottleneck, depths = not basic, (2, 2, 2, 2) if basic else (3, 4, 6, 3)
    for number, (inputs, outputs) in enumerate(((3, 32), (32, 32), (32, 64)), 1):
        yield from conv(f"backbone.conv1.conv1_{number}", inputs, outputs, 3, frozen=bottleneck)
    before = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        after = 4 * width if bottleneck else width
        for number in range(depth):
            block = f"backbone.res_layers.{stage}.blocks.{number}"
            if number == 0:
                pooled = ".conv" if stage else ""
                yield from conv(f"{block}.short{pooled}", before, after, 1, frozen=bottleneck)
            sides = (1, 3, 1) if bottleneck else (3, 3)
            widths = (before, *[width] * (len(sides) - 1), after)
            for step, side in enumerate(sides):
                name = f"{block}.branch2{'abc'[step]}"
                yield from conv(name, widths[step], widths[step + 1], side, frozen=bottleneck)
            before = after


def lyuwenyu(
    *,
    basic: bool,
    layers: int,
    width: int = 256,
    hidden: int = 256,
    feedforward: int = 1024,
    second: bool = False,
) -> Names:
    """The tensors of the published models of the first or the second version, with 80 classes."""
    yield from presnet(basic=basic)
    for level, channels in enumerate((128, 256, 512) if basic else (512, 1024, 2048)):
        projection, follower = ("conv", "norm") if second else ("0", "1")
        yield f"encoder.input_proj.{level}.{projection}.weight", [width, channels, 1, 1]
        yield from norm(f"encoder.input_proj.{level}.{follower}", width)
        yield from conv(f"decoder.input_proj.{level}", width, 256, 1)
    layer = "encoder.encoder.0.layers.0"
    yield from attention(f"{layer}.self_attn", width)
    yield from linear(f"{layer}.linear1", width, feedforward)
    yield from linear(f"{layer}.linear2", feedforward, width)
    yield from layer_norms(width, f"{layer}.norm1", f"{layer}.norm2")
    for step in range(2):
        yield from conv(f"encoder.lateral_convs.{step}", width, width, 1)
        yield from conv(f"encoder.downsample_convs.{step}", width, width, 3)
        for block in (f"encoder.fpn_blocks.{step}", f"encoder.pan_blocks.{step}"):
            yield from conv(f"{block}.conv1", 2 * width, hidden, 1)
            yield from conv(f"{block}.conv2", 2 * width, hidden, 1)
            if hidden != width:
                yield from conv(f"{block}.conv3", hidden, width, 1)
            for number in range(3):
                yield from conv(f"{block}.bottlenecks.{number}.conv1", hidden, hidden, 3)
                yield from conv(f"{block}.bottlenecks.{number}.conv2", hidden, hidden, 1)
    yield from decoder(layers, second=second)


def decoder(layers: int, *, second: bool) -> Names:
    yield "decoder.denoising_class_embed.weight", [81, 256]
    yield from linear("decoder.query_pos_head.layers.0", 4, 512)
    yield from linear("decoder.query_pos_head.layers.1", 512, 256)
    yield from linear(f"decoder.enc_output.{'proj' if second else 0}", 256, 256)
    yield from layer_norms(256, f"decoder.enc_output.{'norm' if second else 1}")
    yield from linear("decoder.enc_score_head", 256, 80)
    yield from box_layers("decoder.enc_bbox_head")
    for index in range(layers):
        yield from linear(f"decoder.dec_score_head.{index}", 256, 80)
        yield from box_layers(f"decoder.dec_bbox_head.{index}")
        layer = f"decoder.decoder.layers.{index}"
        yield from attention(f"{layer}.self_attn", 256)
        yield from linear(f"{layer}.cross_attn.sampling_offsets", 256, 8 * 3 * 4 * 2)
        yield from linear(f"{layer}.cross_attn.attention_weights", 256, 8 * 3 * 4)
        if second:
            yield f"{layer}.cross_attn.num_points_scale", [12]
        yield from linear(f"{layer}.cross_attn.value_proj", 256, 256)
        yield from linear(f"{layer}.cross_attn.output_proj", 256, 256)
        yield from linear(f"{layer}.linear1", 256, 1024)
        yield from linear(f"{layer}.linear2", 1024, 256)
        yield from layer_norms(256, *(f"{layer}.norm{number}" for number in (1, 2, 3)))


def box_layers(name: str) -> Names:
    for step, outputs in enumerate((256, 256, 4)):
        yield from linear(f"{name}.layers.{step}", 256, outputs)


PUBLISHED: dict[str, tuple[dict[str, Any], str]] = {
    "r18": ({"basic": True, "layers": 3, "hidden": 128}, "rtdetr_r18"),
    "r50": ({"basic": False, "layers": 6}, "rtdetr_r50"),
    "r50-m": ({"basic": False, "layers": 6, "hidden": 128}, "rtdetr_r50_m"),
    "v2-s": ({"basic": True, "layers": 3, "hidden": 128, "second": True}, "rtdetrv2_s"),
    "v2-m": ({"basic": False, "layers": 6, "hidden": 128, "second": True}, "rtdetrv2_m"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_of_the_authors_is_read_and_written_bit_for_bit(name: str, tmp_path: Path) -> None:
    sizes, recipe = PUBLISHED[name]
    state = random_file(lyuwenyu(**sizes), {"num_points_scale": 0.25})
    computed = {"decoder.anchors": torch.rand(1, 8400, 4), "decoder.valid_mask": torch.ones(1, 8400, 1)}
    average = {"module": {**state, **computed}, "updates": 5}
    other = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
    torch.save({"ema": average, "model": other, "last_epoch": 71}, tmp_path / "model.pth")
    checkpoint = read_checkpoint(tmp_path / "model.pth")
    blueprint = checkpoint.blueprint
    second = sizes.get("second", False)
    layout = LYUWENYU_V2 if second else LYUWENYU
    assert checkpoint.layout == layout.name
    assert blueprint.recipe == find(recipe)
    assert blueprint.preprocessing == PREPROCESSING
    assert [category.name for category in blueprint.categories[:2]] == ["person", "bicycle"]
    restore(blueprint, checkpoint.state)  # every tensor fits
    written = layout.to_theirs({**checkpoint.state, **blueprint.recipe.computed_tensors()})
    assert written.keys() == state.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in state.items())
    told = " ".join(checkpoint.assumptions)
    assert ("3 decoder layers, as in RT-DETR-R50-M" in told) == (name in ("r50-m", "v2-m"))
    assert ("sampling with interpolation" in told) == second
    assert "300 queries" in told


def test_files_of_relatives_are_refused(tmp_path: Path) -> None:
    state = random_file(lyuwenyu(basic=True, layers=3, hidden=128), {"num_points_scale": 0.25})
    state["decoder.decoder.layers.0.cross_attn.scale"] = torch.ones(12)
    torch.save({"model": state}, tmp_path / "v3.pth")
    with pytest.raises(QueryboxError, match=r"cross_attention.scale: expected none"):
        Detector.load(tmp_path / "v3.pth")


def test_a_file_without_denoising_is_read(tmp_path: Path) -> None:
    state = random_file(lyuwenyu(basic=True, layers=3, hidden=128), {"num_points_scale": 0.25})
    del state["decoder.denoising_class_embed.weight"]
    torch.save({"model": state}, tmp_path / "model.pth")
    labels = Detector.load(tmp_path / "model.pth").get_parameter("denoising.label.weight")
    assert torch.equal(labels, torch.zeros(80, 256))


def test_two_levels_are_inferred_and_stated() -> None:
    recipe = find("rtdetr_r18").replace(strides=(16, 32), levels=2)
    assert [recipe.unsupported_settings(layout) for layout in recipe.layouts.values()] == [[], []]
    with torch.device("meta"):
        state = recipe.build([Category(id=1, name="cat")]).state_dict()
    config = recipe.huggingface_config()
    assert config["backbone_config"]["out_features"] == ["stage3", "stage4"]
    assert config["encode_proj_layers"] == [1]
    known = RTDETR.infer(state, RTDETR.settings_from_config(config))
    assert (known["levels"], known["strides"], known["queries"]) == (2, (16, 32), 300)
