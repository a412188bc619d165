"""The layouts of RT-DETRv2, in the same systems as those of RT-DETR."""

from __future__ import annotations

from querybox.models.layouts.rtdetr import (
    HF_DECODER,
    HUGGINGFACE_RTDETR,
    LAYERS,
    LYUWENYU,
    OURS_DECODER,
    SUPPORTED,
)

SCALE = f"{OURS_DECODER}.cross_attention.scale"
"""The factor of each sampling offset, 1 / the points in its level, which files contain although it is computed."""
LYUWENYU_V2 = LYUWENYU.relative(
    {
        SCALE: f"{LAYERS}.cross_attn.num_points_scale",
        "neck.projections": "encoder.input_proj",
        "queries.proposals.projection": "decoder.enc_output.proj",
        "queries.proposals.norm": "decoder.enc_output.norm",
    },
    name="lyuwenyu/RT-DETRv2",
    supported=SUPPORTED,
    computed=(*LYUWENYU.computed, SCALE),
)
HUGGINGFACE_RTDETRV2 = HUGGINGFACE_RTDETR.relative(
    {SCALE: f"{HF_DECODER}.encoder_attn.n_points_scale"},
    computed=(*HUGGINGFACE_RTDETR.computed, SCALE),
)
