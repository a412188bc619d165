"""The layouts of DETR's relatives: every name and shape of the published ResNet-50 models, there and back.

The names are facts of the public sources: fundamentalvision/Deformable-DETR, IDEA-Research/DINO, MMDetection 3.x and
transformers. Values stand for themselves: two tensors have the same where a model has one tensor under two names.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from references import REFERENCE
from torch import Tensor

from querybox import Category
from querybox.checkpoints.read import count_class_rows, infer_recipe
from querybox.checkpoints.recognise import recognise
from querybox.errors import CheckpointError
from querybox.models import DINO, RECIPES, DeformableDETR, Recipe
from querybox.models.layouts.fundamentalvision import FUNDAMENTALVISION
from querybox.models.layouts.huggingface import HUGGINGFACE_DEFORMABLE
from querybox.models.layouts.idea import IDEA
from querybox.models.layouts.layout import Layout
from querybox.models.layouts.mmdet3 import MMDET3_DEFORMABLE, MMDET3_DINO
from querybox.modules.meta import shapes_only

Names = Iterator[tuple[str, list[int]]]
D, HEADS, POINTS, LAYERS = 256, 8, 4, 6
CHANNELS = {4: 256, 8: 512, 16: 1024, 32: 2048}


def linear(name: str, inputs: int, outputs: int) -> Names:
    yield f"{name}.weight", [outputs, inputs]
    yield f"{name}.bias", [outputs]


def norm(name: str, width: int = D) -> Names:
    yield f"{name}.weight", [width]
    yield f"{name}.bias", [width]


def sampling(name: str, levels: int) -> Names:
    yield from linear(f"{name}.sampling_offsets", D, HEADS * levels * POINTS * 2)
    yield from linear(f"{name}.attention_weights", D, HEADS * levels * POINTS)
    yield from linear(f"{name}.value_proj", D, D)
    yield from linear(f"{name}.output_proj", D, D)


def attention(name: str) -> Names:
    yield f"{name}.in_proj_weight", [3 * D, D]
    yield f"{name}.in_proj_bias", [3 * D]
    yield from linear(f"{name}.out_proj", D, D)


def perceptron(name: str, *widths: int, steps: tuple[int, ...] = (0, 1, 2)) -> Names:
    for step, inputs, outputs in zip(steps, widths, widths[1:], strict=False):
        yield from linear(f"{name}.{step}", inputs, outputs)


def backbone(system: str) -> Names:
    """ResNet-50's names are those of DETR's published checkpoints."""
    prefix = {"facebook": "backbone.0.body.", "mmdet3": "backbone.", "huggingface": "model.backbone."}[system]
    known = json.loads((REFERENCE / f"keys_{system}.json").read_text())
    yield from ((name, shape) for name, shape, *_ in known if name.startswith(prefix))


def convolutions(strides: tuple[int, ...], levels: int) -> Iterator[list[int]]:
    channels = [CHANNELS[stride] for stride in strides]
    yield from ([D, count, 1, 1] for count in channels)
    extra = [channels[-1], *[D] * levels]
    yield from ([D, count, 3, 3] for count in extra[: levels - len(channels)])


def original(
    *,
    classes: int = 91,
    strides: tuple[int, ...] = (8, 16, 32),
    levels: int = 4,
    feedforward: int = 1024,
    refine: bool = False,
    two_stage: bool = False,
    dino: bool = False,
) -> Names:
    """fundamentalvision/Deformable-DETR's, and those of IDEA-Research/DINO."""
    yield from backbone("facebook")
    for level, shape in enumerate(convolutions(strides, levels)):
        yield f"input_proj.{level}.0.weight", shape
        yield f"input_proj.{level}.0.bias", [D]
        yield from norm(f"input_proj.{level}.1")
    yield "transformer.level_embed", [levels, D]
    yield from original_layers(levels, feedforward)
    yield from original_queries(classes, two_stage=two_stage, dino=dino)
    for index in range(LAYERS + two_stage):
        for place in ("", "transformer.decoder.") if two_stage or dino else ("",):
            yield from linear(f"{place}class_embed.{index}", D, classes)
        for place in ("", "transformer.decoder.") if refine or two_stage or dino else ("",):
            yield from perceptron(f"{place}bbox_embed.{index}.layers", D, D, D, 4)


def original_layers(levels: int, feedforward: int) -> Names:
    for index in range(LAYERS):
        layer = f"transformer.encoder.layers.{index}"
        yield from sampling(f"{layer}.self_attn", levels)
        yield from linear(f"{layer}.linear1", D, feedforward)
        yield from linear(f"{layer}.linear2", feedforward, D)
        for number in (1, 2):
            yield from norm(f"{layer}.norm{number}")
        layer = f"transformer.decoder.layers.{index}"
        yield from sampling(f"{layer}.cross_attn", levels)
        yield from attention(f"{layer}.self_attn")
        yield from linear(f"{layer}.linear1", D, feedforward)
        yield from linear(f"{layer}.linear2", feedforward, D)
        for number in (1, 2, 3):
            yield from norm(f"{layer}.norm{number}")


def original_queries(classes: int, *, two_stage: bool, dino: bool) -> Names:
    if two_stage or dino:
        yield from linear("transformer.enc_output", D, D)
        yield from norm("transformer.enc_output_norm")
    if two_stage:
        yield from linear("transformer.pos_trans", 2 * D, 2 * D)
        yield from norm("transformer.pos_trans_norm", 2 * D)
    if not (two_stage or dino):
        yield "query_embed.weight", [300, 2 * D]
        yield from linear("transformer.reference_points", D, 2)
    if dino:
        yield "transformer.tgt_embed.weight", [900, D]
        yield "label_enc.weight", [classes + 1, D]
        yield from norm("transformer.decoder.norm")
        yield from perceptron("transformer.decoder.ref_point_head.layers", 2 * D, D, D)
        yield from linear("transformer.enc_out_class_embed", D, classes)
        yield from perceptron("transformer.enc_out_bbox_embed.layers", D, D, D, 4)


def mmdet3(
    *,
    classes: int = 80,
    levels: int = 4,
    strides: tuple[int, ...] = (8, 16, 32),
    feedforward: int = 1024,
    two_stage: bool = False,
    dino: bool = False,
) -> Names:
    yield from backbone("mmdet3")
    for level, shape in enumerate(convolutions(strides, levels)):
        own = level < len(strides)
        place = f"neck.convs.{level}" if own else f"neck.extra_convs.{level - len(strides)}"
        yield f"{place}.conv.weight", shape  # a convolution before a norm has no bias there
        yield from norm(f"{place}.gn")
    yield "level_embed", [levels, D]
    yield from mmdet3_layers(levels, feedforward)
    yield from mmdet3_queries(classes, two_stage=two_stage, dino=dino)
    for index in range(LAYERS + (two_stage or dino)):
        yield from linear(f"bbox_head.cls_branches.{index}", D, classes)
        yield from perceptron(f"bbox_head.reg_branches.{index}", D, D, D, 4, steps=(0, 2, 4))


def mmdet3_layers(levels: int, feedforward: int) -> Names:
    for side, norms in (("encoder", 2), ("decoder", 3)):
        for index in range(LAYERS):
            layer = f"{side}.layers.{index}"
            if side == "encoder":
                yield from sampling(f"{layer}.self_attn", levels)
            else:
                yield from attention(f"{layer}.self_attn.attn")
                yield from sampling(f"{layer}.cross_attn", levels)
            yield from linear(f"{layer}.ffn.layers.0.0", D, feedforward)
            yield from linear(f"{layer}.ffn.layers.1", feedforward, D)
            for number in range(norms):
                yield from norm(f"{layer}.norms.{number}")


def mmdet3_queries(classes: int, *, two_stage: bool, dino: bool) -> Names:
    if two_stage or dino:
        yield from linear("memory_trans_fc", D, D)
        yield from norm("memory_trans_norm")
    if two_stage:
        yield from linear("pos_trans_fc", 2 * D, 2 * D)
        yield from norm("pos_trans_norm", 2 * D)
    if dino:
        yield "query_embedding.weight", [900, D]
        yield "dn_query_generator.label_embedding.weight", [classes, D]
        yield from norm("decoder.norm")
        yield from perceptron("decoder.ref_point_head.layers", 2 * D, D, D)
    elif not two_stage:
        yield "query_embedding.weight", [300, 2 * D]
        yield from linear("reference_points_fc", D, 2)


def huggingface(
    *, classes: int = 91, levels: int = 4, refine: bool = False, two_stage: bool = False
) -> Names:
    """The files on the hub, of transformers 4, list every name."""
    yield from backbone("huggingface")
    for level, shape in enumerate(convolutions((8, 16, 32), levels)):
        yield f"model.input_proj.{level}.0.weight", shape
        yield f"model.input_proj.{level}.0.bias", [D]
        yield from norm(f"model.input_proj.{level}.1")
    yield "model.level_embed", [levels, D]
    for side in ("encoder", "decoder"):
        for index in range(LAYERS):
            layer = f"model.{side}.layers.{index}"
            yield from sampling(f"{layer}.{'self_attn' if side == 'encoder' else 'encoder_attn'}", levels)
            if side == "decoder":
                for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    yield from linear(f"{layer}.self_attn.{projection}", D, D)
                yield from norm(f"{layer}.encoder_attn_layer_norm")
            yield from norm(f"{layer}.self_attn_layer_norm")
            yield from linear(f"{layer}.fc1", D, 1024)
            yield from linear(f"{layer}.fc2", 1024, D)
            yield from norm(f"{layer}.final_layer_norm")
    if two_stage:
        yield from linear("model.enc_output", D, D)
        yield from norm("model.enc_output_norm")
        yield from linear("model.pos_trans", 2 * D, 2 * D)
        yield from norm("model.pos_trans_norm", 2 * D)
    else:
        yield "model.query_position_embeddings.weight", [300, 2 * D]
        yield from linear("model.reference_points", D, 2)
    for index in range(LAYERS + two_stage):
        for place in ("", "model.decoder.") if two_stage else ("",):
            yield from linear(f"{place}class_embed.{index}", D, classes)
        for place in ("", "model.decoder.") if refine else ("",):
            yield from perceptron(f"{place}bbox_embed.{index}.layers", D, D, D, 4)


def fill(names: Names, *, shared: bool) -> dict[str, Tensor]:
    """Give every tensor a number of its own, but one to all heads of the layers where they are `shared`."""
    state = {}
    for name, shape in names:
        same = re.sub(r"^(?:transformer|model)\.decoder\.(?=bbox_embed|class_embed)", "", name)
        if shared:
            same = re.sub(r"^(\w*_embed|bbox_head\.\w+_branches)\.\d+", r"\1", same)
        value = torch.tensor(1 + zlib.crc32(same.encode()) / 2**32)
        state[name] = value.expand(shape)
    if "label_enc.weight" in state:  # of no class is the last label
        state["label_enc.weight"] = torch.cat([state["label_enc.weight"][:-1], torch.zeros(1, D)])
    return state


Published = tuple[Layout, Names, bool, Recipe]
MODELS: dict[str, Callable[[], Published]] = {
    "fundamentalvision plain": lambda: (
        FUNDAMENTALVISION, original(), True, RECIPES["deformable_detr_r50"],
    ),
    "fundamentalvision, one map": lambda: (
        FUNDAMENTALVISION, original(strides=(32,), levels=1), True, DeformableDETR(strides=(32,), levels=1),
    ),
    "fundamentalvision refine": lambda: (
        FUNDAMENTALVISION, original(refine=True), False, RECIPES["deformable_detr_r50_refine"],
    ),
    "fundamentalvision two-stage": lambda: (
        FUNDAMENTALVISION, original(two_stage=True), False, RECIPES["deformable_detr_r50_two_stage"],
    ),
    "IDEA 4 maps": lambda: (
        IDEA, original(dino=True, feedforward=2048), True, RECIPES["dino_r50"],
    ),
    "IDEA 5 maps": lambda: (
        IDEA, original(dino=True, feedforward=2048, strides=(4, 8, 16, 32), levels=5), True,
        DINO(strides=(4, 8, 16, 32), levels=5),
    ),
    "IDEA, heads of each layer": lambda: (
        IDEA, original(dino=True, feedforward=2048), False, DINO(share_heads=False),
    ),
    "mmdet plain": lambda: (
        MMDET3_DEFORMABLE, mmdet3(), True, RECIPES["deformable_detr_r50"],
    ),
    "mmdet refine": lambda: (
        MMDET3_DEFORMABLE, mmdet3(), False, RECIPES["deformable_detr_r50_refine"],
    ),
    "mmdet two-stage": lambda: (
        MMDET3_DEFORMABLE, mmdet3(two_stage=True), False, RECIPES["deformable_detr_r50_two_stage"],
    ),
    "mmdet DINO": lambda: (
        MMDET3_DINO, mmdet3(dino=True, feedforward=2048), False, DINO(share_heads=False),
    ),
    "Hugging Face plain": lambda: (
        HUGGINGFACE_DEFORMABLE, huggingface(), True, RECIPES["deformable_detr_r50"],
    ),
    "Hugging Face refine": lambda: (
        HUGGINGFACE_DEFORMABLE, huggingface(refine=True), False, RECIPES["deformable_detr_r50_refine"],
    ),
    "Hugging Face two-stage": lambda: (
        HUGGINGFACE_DEFORMABLE, huggingface(refine=True, two_stage=True), False,
        RECIPES["deformable_detr_r50_two_stage"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_published_models_there_and_back(model: str) -> None:
    layout, names, shared, recipe = MODELS[model]()
    theirs = fill(names, shared=shared)
    assert recognise(theirs) == (type(recipe), layout)
    ours = layout.to_ours(theirs)

    inferred, assumed = infer_recipe(ours, type(recipe), {}, {}, Path("model.pth"), {})
    assert inferred == recipe
    assert len(assumed) == (2 if "two-stage" in model else 1)
    rows = count_class_rows(ours, type(recipe))
    assert rows == (80 if "mmdet" in model else 91)
    with shapes_only():
        wanted = recipe.build([Category(id=row, name=str(row)) for row in range(rows)]).state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in wanted.items()
    }

    back = layout.to_theirs(ours)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.items())


def small_dino(**settings: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    recipe = DINO(
        backbone="resnet18.tv_in1k", width=32, feedforward=24, encoder_layers=1, decoder_layers=2, queries=5
    ).replace(**settings)
    state = recipe.build([Category(id=row, name=str(row)) for row in range(3)]).state_dict()
    return {name: torch.randn(each.shape) if each.ndim else each for name, each in state.items()}


def test_norms_of_the_original_are_numbered_as_they_are_made() -> None:
    theirs = IDEA.to_theirs(ours := small_dino())
    for number, part in enumerate(("cross_attention", "self_attention", "feedforward"), 1):
        name = f"decoder.layers.1.{part}_residual.norm.weight"
        assert torch.equal(theirs[f"transformer.decoder.layers.1.norm{number}.weight"], ours[name])


def test_dino_between_the_original_and_mmdetection() -> None:
    """One pair of heads becomes equal ones there, and one again on the way back."""
    ours = small_dino()
    theirs = MMDET3_DINO.to_theirs(IDEA.to_ours(IDEA.to_theirs(ours)))
    assert torch.equal(theirs["bbox_head.cls_branches.0.weight"], theirs["bbox_head.cls_branches.1.weight"])
    assert torch.equal(theirs["bbox_head.cls_branches.2.bias"], ours["queries.proposals.class_head.bias"])
    assert theirs["neck.extra_convs.0.conv.bias"].any()
    back = MMDET3_DINO.to_ours(theirs)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.items())


def test_labels_of_no_class_are_left_out_and_come_back_as_zero() -> None:
    theirs = IDEA.to_theirs(small_dino())
    longer = {**theirs, "label_enc.weight": torch.randn(92, 32)}  # three classes, COCO's labels
    ours = IDEA.to_ours(longer)
    assert torch.equal(ours["denoising.label.weight"], longer["label_enc.weight"][:3])
    assert not IDEA.to_theirs(ours)["label_enc.weight"][3].any()


def test_no_two_parameters_of_ours_share_memory() -> None:
    for layout in (IDEA, MMDET3_DINO):
        held = layout.to_ours(layout.to_theirs(small_dino(share_heads=False)))
        places = [tensor.untyped_storage().data_ptr() for tensor in held.values()]
        assert len(set(places)) == len(places)
        assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in held.values())


def test_one_tensor_under_two_names_has_to_be_one() -> None:
    theirs = IDEA.to_theirs(small_dino())
    name = "transformer.decoder.bbox_embed.1.layers.0.bias"
    with pytest.raises(CheckpointError, match=rf"'{re.escape(name)}' differs from another copy"):
        IDEA.to_ours({**theirs, name: theirs[name] + 1})


def test_strangers_in_a_relative_are_named() -> None:
    theirs = IDEA.to_theirs(small_dino())
    with pytest.raises(CheckpointError, match=r"IDEA-Research does not know refpoint_embed.weight"):
        IDEA.to_ours({**theirs, "refpoint_embed.weight": torch.ones(1)})
