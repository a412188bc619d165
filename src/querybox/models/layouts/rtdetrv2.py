"""The layouts of RT-DETRv2, in the same systems as those of RT-DETR."""

from __future__ import annotations

from querybox.models.layouts import rtdetr
from querybox.models.layouts.rtdetr import HUGGINGFACE_RTDETR, LYUWENYU

SCALE = f"{rtdetr.OURS_DECODER}.cross_attention.scale"
"""The factor of each sampling offset, 1 / the points in its level, which files contain although it is computed."""
LYUWENYU_V2 = LYUWENYU.relative(
    {
        SCALE: f"{rtdetr.LAYERS}.cross_attn.num_points_scale",
        "neck.projections": "encoder.input_proj",
        "queries.proposals.projection": "decoder.enc_output.proj",
        "queries.proposals.norm": "decoder.enc_output.norm",
    },
    name="lyuwenyu/RT-DETRv2",
    supported=rtdetr.SUPPORTED,
    computed=(*LYUWENYU.computed, SCALE),
)
HUGGINGFACE_RTDETRV2 = HUGGINGFACE_RTDETR.relative(
    {SCALE: f"{rtdetr.HF_DECODER}.encoder_attn.n_points_scale"},
    computed=(*HUGGINGFACE_RTDETR.computed, SCALE),
)
