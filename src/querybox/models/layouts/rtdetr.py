"""The layouts of RT-DETR in its authors' PyTorch code (lyuwenyu/RT-DETR) and in transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from querybox.models.layouts.layout import Conversion, Layout
from querybox.models.layouts.parts import huggingface_layers, perceptron, torch_layer
from querybox.models.layouts.relatives import LABEL
from querybox.structures import Preprocessing

PREPROCESSING = Preprocessing(
    mean=(0.0, 0.0, 0.0),
    std=(255.0, 255.0, 255.0),
    short_side=640,
    long_side=640,
    resizing="stretch",
    clip_boxes=False,
)
"""Published models see images stretched to 640 x 640 pixels, with values in 0-1."""
PROPOSAL_CLASSES = "queries.proposals.class_head.weight"
COUNTER = ".num_batches_tracked"


class RTDETRConversion(Conversion):
    """Files have one more denoising label than there are classes, and frozen batch norms without counters."""

    def to_ours(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Drop the last denoising label, which is zero and belongs to no class; add zero labels if there are none."""
        if LABEL in state:
            state[LABEL] = state[LABEL][:-1].clone()
        elif PROPOSAL_CLASSES in state:  # a model that was trained without denoising
            state[LABEL] = torch.zeros_like(state[PROPOSAL_CLASSES])
        return state

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add a denoising label of zeros, and omit counters of the backbone that are zero, because it is frozen."""
        result = {
            name: tensor
            for name, tensor in state.items()
            if not (name.startswith("backbone.") and name.endswith(COUNTER) and not tensor.any())
        }
        if LABEL in result:
            result[LABEL] = torch.cat([result[LABEL], torch.zeros_like(result[LABEL][:1])])
        return result


STEM = {"conv1.0": "conv1.1", "conv1.3": "conv1.4", "conv1.6": "bn1"}
"""Convolutions of the stem of a ResNet-vd in timm, each with its norm."""


def backbone_modules(
    stem: Sequence[str], block: str, convs: Sequence[str], shortcuts: tuple[str, str], leaves: tuple[str, str]
) -> dict[str, str]:
    """Return the modules of a ResNet-vd in another layout by timm's names, which are those of querybox.

    Args:
        stem: Names of the pairs of a convolution and its norm in the stem.
        block: Name of a block, with ``{}`` for the number of its stage from 0.
        convs: Names of the pairs in a block.
        shortcuts: Names of the pair in a shortcut: in the first stage, which does not downsample, and in the others,
            whose shortcuts pool.
        leaves: Names of the convolution and the norm in a pair.
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


def fusion_modules(encoder: str) -> dict[str, str]:
    """Return the convolutions that fuse feature maps; inside they have the same names."""
    return {
        "encoder.laterals": f"{encoder}.lateral_convs",
        "encoder.top_down": f"{encoder}.fpn_blocks",
        "encoder.downs": f"{encoder}.downsample_convs",
        "encoder.bottom_up": f"{encoder}.pan_blocks",
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
        **fusion_modules("encoder"),
        "encoder.outputs": "decoder.input_proj",
        "queries.proposals.projection": "decoder.enc_output.0",
        "queries.proposals.norm": "decoder.enc_output.1",
        "queries.proposals.class_head": "decoder.enc_score_head",
        **perceptron("queries.proposals.box_head", "decoder.enc_bbox_head"),
        **perceptron("decoder.position.layers", "decoder.query_pos_head"),
        **torch_layer(OURS_DECODER, LAYERS, "cross_attn"),
        "decoder.class_heads.*": "decoder.dec_score_head.*",
        **perceptron("decoder.box_heads.*", "decoder.dec_bbox_head.*"),
        "denoising.label": "decoder.denoising_class_embed",
    },
    computed=("decoder.anchors", "decoder.valid_mask", *(f"encoder.pos_embed{level}" for level in range(4))),
    class_rows=80,
    preprocessing=PREPROCESSING,
    conversion=RTDETRConversion(),
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
        **fusion_modules("model.encoder"),
        **pairs("encoder.outputs.*", "model.decoder_input_proj.*"),
        "queries.proposals.projection": "model.enc_output.0",
        "queries.proposals.norm": "model.enc_output.1",
        "queries.proposals.class_head": "model.enc_score_head",
        **perceptron("queries.proposals.box_head", "model.enc_bbox_head"),
        **perceptron("decoder.position.layers", "model.decoder.query_pos_head", layers=2),
        "decoder.class_heads.*": "model.decoder.class_embed.*",
        **perceptron("decoder.box_heads.*", "model.decoder.bbox_embed.*"),
        "denoising.label": "model.denoising_class_embed",
    },
    aliases={
        # Names in memory, which transformers 5 translates when it reads and writes files.
        "model.encoder.aifi.0": "model.encoder.encoder.0",
        f"{HF_ENCODER}.self_attn.o_proj": f"{HF_ENCODER}.self_attn.out_proj",
        f"{HF_DECODER}.self_attn.o_proj": f"{HF_DECODER}.self_attn.out_proj",
        f"{HF_ENCODER}.mlp": HF_ENCODER,
        f"{HF_DECODER}.mlp": HF_DECODER,
        # transformers 4 has the heads outside of the decoder as well.
        "class_embed": "model.decoder.class_embed",
        "bbox_embed": "model.decoder.bbox_embed",
    },
    computed=("model.anchors", "model.valid_mask"),
    fused=False,
    preprocessing=PREPROCESSING,
    conversion=RTDETRConversion(),
)
