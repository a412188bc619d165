"""The layouts of D-FINE in its authors' code (Peterande/D-FINE) and in transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from querybox.models.layouts.parts import perceptron
from querybox.models.layouts.rtdetr import HF_DECODER, HF_ENCODER, OURS_DECODER, RTDETRConversion
from querybox.models.layouts.rtdetrv2 import HUGGINGFACE_RTDETRV2, LYUWENYU_V2, SCALE

GATE = f"{OURS_DECODER}.cross_attention_residual"
UP, REG_SCALE = "decoder.distances.up", "decoder.distances.scale"
SUPPORTED = {"distinct": False, "token_content": True, "position_layers": 2}
"""Settings of all published models, also those of DEIM."""
LEAVES = ("conv", "bn")
"""Names of a convolution and its norm in HGNetv2 of timm."""
FUSION = ("conv1", "rep1", "conv2", "rep2", "conv3", "conv4")
"""Modules of a fusion block (`SplitFusion`), in the order in which they are run."""


@dataclass(frozen=True)
class DFINEConversion(RTDETRConversion):
    """In files of the authors' code the curvature is an integer; in transformers, parts of the backbone are renamed."""

    leaves: tuple[str, str]
    """Names of a convolution and its norm in the backbone."""

    def to_ours(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert the curvature, and rename modules; see `RTDETRConversion`."""
        if REG_SCALE in state:
            state[REG_SCALE] = state[REG_SCALE].float()
        return super().to_ours(rename_leaves(state, dict(zip(self.leaves, LEAVES, strict=True))))

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename modules; see `RTDETRConversion`."""
        return rename_leaves(super().to_theirs(state), dict(zip(LEAVES, self.leaves, strict=True)))


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


def fusion_modules(encoder: str, *names: str) -> dict[str, str]:
    """Return the modules of the fusion blocks, whose `FUSION` have these names in the other layout."""
    return {
        f"{ours}.*.{name}": f"{encoder}.{theirs}.*.{other}"
        for ours, theirs in (("encoder.top_down", "fpn_blocks"), ("encoder.bottom_up", "pan_blocks"))
        for name, other in zip(FUSION, names, strict=True)
    }


def decoder_modules(outer: str, inner: str) -> dict[str, str]:
    """Return the modules that D-FINE adds: those of distributions are in `outer`, the layers and theirs in `inner`."""
    return {
        UP: f"{outer}.up",
        REG_SCALE: f"{outer}.reg_scale",
        **perceptron("decoder.first_box", f"{outer}.pre_bbox_head"),
        **perceptron("decoder.quality.*.layers", f"{inner}.lqe_layers.*.reg_conf", layers=2),
        f"{GATE}.gate": f"{inner}.layers.*.gateway.gate",
        f"{GATE}.norm": f"{inner}.layers.*.gateway.norm",
    }


PETERANDE = LYUWENYU_V2.relative(
    {
        **backbone_modules("backbone.stem", "backbone.stages"),
        **fusion_modules("encoder", "cv1", "cv2.0", "cv2.1", "cv3.0", "cv3.1", "cv4"),
        "encoder.downs.*.0": "encoder.downsample_convs.*.0.cv1",
        "encoder.downs.*.1": "encoder.downsample_convs.*.0.cv2",
        **decoder_modules("decoder", "decoder.decoder"),
    },
    name="Peterande/D-FINE",
    aliases={f"decoder.decoder.{name}": f"decoder.{name}" for name in ("up", "reg_scale")},
    computed=(*LYUWENYU_V2.computed, "decoder.decoder.project"),
    conversion=DFINEConversion(LEAVES),
    supported=SUPPORTED,
)
HUGGINGFACE_DFINE = HUGGINGFACE_RTDETRV2.relative(
    {
        SCALE: f"{HF_DECODER}.encoder_attn.num_points_scale",
        **backbone_modules("model.backbone.model.embedder", "model.backbone.model.encoder.stages"),
        **fusion_modules("model.encoder", "conv1", "csp_rep1", "conv2", "csp_rep2", "conv3", "conv4"),
        "encoder.downs.*.0": "model.encoder.downsample_convs.*.conv1",
        "encoder.downs.*.1": "model.encoder.downsample_convs.*.conv2",
        **decoder_modules("model.decoder", "model.decoder"),
    },
    aliases={
        **HUGGINGFACE_RTDETRV2.aliases,
        **{
            f"{layer}.layers.{step}": f"{layer}.fc{step + 1}"
            for layer in (HF_ENCODER, HF_DECODER)
            for step in range(2)
        },
    },
    conversion=DFINEConversion(("convolution", "normalization")),
    supported={**SUPPORTED, "inference_layers": None, "activation": "relu"},
)
