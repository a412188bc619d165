"""The layouts of D-FINE in its authors' code (Peterande/D-FINE) and in transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from querybox.models.layouts.parts import box_head
from querybox.models.layouts.rtdetr import (
    HF_DECODER,
    HF_ENCODER,
    LAYERS,
    OURS_DECODER,
    RTDETRConversion,
)
from querybox.models.layouts.rtdetrv2 import HUGGINGFACE_RTDETRV2, LYUWENYU_V2, SCALE

GATE = f"{OURS_DECODER}.cross_attention_residual"
UP, REG_SCALE = "decoder.distances.up", "decoder.distances.scale"
HF_LEAVES = {"conv": "convolution", "bn": "normalization"}
"""Names of the modules of a convolution in the backbone, and in transformers."""


class HGNetConversion(RTDETRConversion):
    """In transformers the convolutions of the backbone have other names."""

    def to_ours(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename convolutions and norms, and drop the last denoising label; see `RTDETRConversion`."""
        ours = {theirs: ours for ours, theirs in HF_LEAVES.items()}
        return super().to_ours(rename_leaves(state, ours))

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename convolutions and norms, and add a denoising label; see `RTDETRConversion`."""
        return rename_leaves(super().to_theirs(state), HF_LEAVES)


def rename_leaves(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename the modules of the backbone that contain tensors."""
    leaf = re.compile(rf"(?<=^backbone\.)(.*\.)({'|'.join(names)})(?=\.\w+$)")
    return {leaf.sub(lambda match: match[1] + names[match[2]], name): each for name, each in state.items()}


def backbone_modules(stem: str, stages: str) -> dict[str, str]:
    """Return the modules of HGNetv2; timm joins the name and the number of a stage."""
    return {
        "backbone.body.stem": stem,
        **{f"backbone.body.stages_{stage}": f"{stages}.{stage}" for stage in range(4)},
    }


def fusion_modules(encoder: str, names: Mapping[str, str]) -> dict[str, str]:
    """Return the modules of the fusion blocks; `names` are those of the other layout by ours."""
    return {
        f"{ours}.*.{name}": f"{encoder}.{theirs}.*.{other}"
        for ours, theirs in (("encoder.top_down", "fpn_blocks"), ("encoder.bottom_up", "pan_blocks"))
        for name, other in names.items()
    }


def decoder_modules(decoder: str) -> dict[str, str]:
    """Return the modules of distributions, which are part of `decoder`."""
    return {
        UP: f"{decoder}.up",
        REG_SCALE: f"{decoder}.reg_scale",
        **box_head("decoder.first_box", f"{decoder}.pre_bbox_head"),
    }


def quality_modules(decoder: str) -> dict[str, str]:
    """Return the layers of the quality predictors."""
    return {
        f"decoder.quality.*.layers.{2 * layer}": f"{decoder}.lqe_layers.*.reg_conf.layers.{layer}"
        for layer in range(2)
    }


PETERANDE = LYUWENYU_V2.relative(
    {
        **backbone_modules("backbone.stem", "backbone.stages"),
        **fusion_modules(
            "encoder",
            {
                "conv1": "cv1",
                "rep1": "cv2.0",
                "conv2": "cv2.1",
                "rep2": "cv3.0",
                "conv3": "cv3.1",
                "conv4": "cv4",
            },
        ),
        "encoder.downs.*.0": "encoder.downsample_convs.*.0.cv1",
        "encoder.downs.*.1": "encoder.downsample_convs.*.0.cv2",
        **decoder_modules("decoder"),
        **quality_modules("decoder.decoder"),
        f"{GATE}.gate": f"{LAYERS}.gateway.gate",
        f"{GATE}.norm": f"{LAYERS}.gateway.norm",
    },
    name="Peterande/D-FINE",
    aliases={f"decoder.decoder.{name}": f"decoder.{name}" for name in ("up", "reg_scale")},
    computed=(*LYUWENYU_V2.computed, "decoder.decoder.project"),
)
HUGGINGFACE_DFINE = HUGGINGFACE_RTDETRV2.relative(
    {
        SCALE: f"{HF_DECODER}.encoder_attn.num_points_scale",
        **backbone_modules("model.backbone.model.embedder", "model.backbone.model.encoder.stages"),
        **fusion_modules(
            "model.encoder",
            {
                "conv1": "conv1",
                "rep1": "csp_rep1",
                "conv2": "conv2",
                "rep2": "csp_rep2",
                "conv3": "conv3",
                "conv4": "conv4",
            },
        ),
        "encoder.downs.*.0": "model.encoder.downsample_convs.*.conv1",
        "encoder.downs.*.1": "model.encoder.downsample_convs.*.conv2",
        **decoder_modules("model.decoder"),
        **quality_modules("model.decoder"),
        f"{GATE}.gate": f"{HF_DECODER}.gateway.gate",
        f"{GATE}.norm": f"{HF_DECODER}.gateway.norm",
    },
    aliases={
        # Names in memory, which transformers 5 translates when it reads and writes files.
        "model.encoder.aifi.0": "model.encoder.encoder.0",
        **{
            f"{layer}.mlp.layers.{step}": f"{layer}.fc{step + 1}"
            for layer in (HF_ENCODER, HF_DECODER)
            for step in range(2)
        },
        **HUGGINGFACE_RTDETRV2.aliases,
    },
    computed=(*HUGGINGFACE_RTDETRV2.computed, f"{HF_DECODER}.encoder_attn.num_points_scale"),
    conversion=HGNetConversion(),
)
