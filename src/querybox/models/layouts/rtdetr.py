"""The layouts of RT-DETR in its authors' PyTorch code (lyuwenyu/RT-DETR) and in transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from querybox.models.layouts.layout import Conversion, Layout
from querybox.models.layouts.parts import huggingface_layers, names_in_memory, perceptron, torch_layer
from querybox.models.layouts.relatives import LABEL, with_extra_label
from querybox.structures import Preprocessing

BLACK, WHITE = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)
PREPROCESSING = Preprocessing(
    mean=BLACK, std=WHITE, short_side=640, long_side=640, resizing="stretch", clip_boxes=False
)
"""Published models see images stretched to 640 x 640 pixels, with values in 0-1."""
SUPPORTED = {"fusion_blocks": 3, "share_heads": False, "distinct": False, "token_content": True}
"""Settings of all published models, also those of DEIM."""
COUNTER = r"backbone\..*\.num_batches_tracked"


class RTDETRConversion(Conversion):
    """Files have one more denoising label than there are classes, and frozen batch norms without counters."""

    def to_ours(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Drop the last denoising label, which is zero and belongs to no class; add zero labels if there are none."""
        if LABEL in state:
            state[LABEL] = state[LABEL][:-1].clone()
        elif (head := state.get("queries.proposals.class_head.weight")) is not None:
            state[LABEL] = torch.zeros_like(head)  # trained without denoising
        return state

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add a denoising label of zeros, and omit counters of the backbone that are zero, because it is frozen."""
        frozen = {name for name in state if re.fullmatch(COUNTER, name) and not state[name].any()}
        return with_extra_label({name: state[name] for name in state if name not in frozen})


STEM = {"conv1.0": "conv1.1", "conv1.3": "conv1.4", "conv1.6": "bn1"}
"""Convolutions of the stem of a ResNet-vd in timm, each with its norm."""


def backbone_modules(
    stem: Sequence[str], block: str, convs: Sequence[str], shortcuts: tuple[str, str], leaves: tuple[str, str]
) -> dict[str, str]:
    """Return the modules of a ResNet-vd in another layout, where a pair of convolution and norm is one module.

    The pairs are those of the `stem`, of a `block` (with ``{}`` for the number of its stage from 0), and of its
    shortcut, which pools except in the first stage; `leaves` are the names in a pair.
    """
    modules = dict(zip(STEM.items(), stem, strict=True))
    for stage in range(4):
        ours, theirs = f"layer{stage + 1}.*", block.format(stage)
        for step, conv in enumerate(convs, 1):
            modules[f"{ours}.conv{step}", f"{ours}.bn{step}"] = f"{theirs}.{conv}"
        modules[f"{ours}.downsample.1", f"{ours}.downsample.2"] = f"{theirs}.{shortcuts[stage > 0]}"
    return {
        f"backbone.body.{ours}": f"{theirs}.{leaf}"
        for both, theirs in modules.items()
        for ours, leaf in zip(both, leaves, strict=True)
    }


def pairs(ours: str, theirs: str) -> dict[str, str]:
    """Return the modules of a `ConvNorm` that is a numbered sequence in the other layout."""
    return {f"{ours}.conv": f"{theirs}.0", f"{ours}.norm": f"{theirs}.1"}


def common_modules(encoder: str, outer: str, decoder: str) -> dict[str, str]:
    """Return the modules whose names differ in that of the module alone that contains them."""
    return {
        "encoder.laterals": f"{encoder}.lateral_convs",
        "encoder.top_down": f"{encoder}.fpn_blocks",
        "encoder.downs": f"{encoder}.downsample_convs",
        "encoder.bottom_up": f"{encoder}.pan_blocks",
        "queries.proposals.projection": f"{outer}.enc_output.0",
        "queries.proposals.norm": f"{outer}.enc_output.1",
        "queries.proposals.class_head": f"{outer}.enc_score_head",
        **perceptron("queries.proposals.box_head", f"{outer}.enc_bbox_head"),
        **perceptron("decoder.position.layers", f"{decoder}.query_pos_head"),
        "denoising.label": f"{outer}.denoising_class_embed",
    }


LAYERS, OURS_DECODER = "decoder.decoder.layers.*", "decoder.layers.*"

LYUWENYU = Layout(
    name="lyuwenyu/RT-DETR",
    modules={
        **backbone_modules(
            stem=[f"backbone.conv1.conv1_{step}" for step in (1, 2, 3)],
            block="backbone.res_layers.{}.blocks.*",
            convs=("branch2a", "branch2b", "branch2c"),
            shortcuts=("short", "short.conv"),
            leaves=("conv", "norm"),
        ),
        **pairs("neck.projections.*", "encoder.input_proj.*"),
        **torch_layer("encoder.layers.*", "encoder.encoder.0.layers.*"),
        **common_modules("encoder", "decoder", "decoder"),
        "encoder.outputs": "decoder.input_proj",
        **torch_layer(OURS_DECODER, LAYERS, "cross_attn"),
        "decoder.class_heads.*": "decoder.dec_score_head.*",
        **perceptron("decoder.box_heads.*", "decoder.dec_bbox_head.*"),
    },
    computed=("decoder.anchors", "decoder.valid_mask", *(f"encoder.pos_embed{level}" for level in range(4))),
    class_rows=80,
    preprocessing=PREPROCESSING,
    conversion=RTDETRConversion(),
    supported={**SUPPORTED, "activation": "relu", "position_layers": 2},
)

HF_ENCODER, HF_DECODER = "model.encoder.encoder.0.layers.*", "model.decoder.layers.*"

HUGGINGFACE_RTDETR = Layout(
    name="Hugging Face",
    modules={
        **backbone_modules(
            stem=[f"model.backbone.model.embedder.embedder.{step}" for step in range(3)],
            block="model.backbone.model.encoder.stages.{}.layers.*",
            convs=("layer.0", "layer.1", "layer.2"),
            shortcuts=("shortcut", "shortcut.1"),
            leaves=("convolution", "normalization"),
        ),
        **pairs("neck.projections.*", "model.encoder_input_proj.*"),
        **huggingface_layers(HF_ENCODER, HF_DECODER),
        **common_modules("model.encoder", "model", "model.decoder"),
        **pairs("encoder.outputs.*", "model.decoder_input_proj.*"),
        "decoder.class_heads.*": "model.decoder.class_embed.*",
        **perceptron("decoder.box_heads.*", "model.decoder.bbox_embed.*"),
    },
    aliases={
        "model.encoder.aifi.0": "model.encoder.encoder.0",  # in memory
        **names_in_memory(HF_ENCODER, HF_DECODER),
        # transformers 4 has the heads outside of the decoder as well.
        "class_embed": "model.decoder.class_embed",
        "bbox_embed": "model.decoder.bbox_embed",
    },
    computed=("model.anchors", "model.valid_mask"),
    fused=False,
    preprocessing=PREPROCESSING,
    conversion=RTDETRConversion(),
    supported={**LYUWENYU.supported, "inference_layers": None},
)
