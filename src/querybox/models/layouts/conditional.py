"""Conditional DETR in its authors' code, Hugging Face and MMDetection 3.x: differences from the layouts of DETR."""

from __future__ import annotations

from querybox.models.layouts.facebook import FACEBOOK
from querybox.models.layouts.huggingface import HUGGINGFACE
from querybox.models.layouts.mmdet3 import MMDET3
from querybox.models.layouts.parts import perceptron

OURS, THEIRS = "decoder.layers.*", "transformer.decoder.layers.*"
HF = "model.decoder.layers.*"
PARTS = {
    "self_attention.query.content": "sa_qcontent_proj",
    "self_attention.query.position": "sa_qpos_proj",
    "self_attention.key.content": "sa_kcontent_proj",
    "self_attention.key.position": "sa_kpos_proj",
    "self_attention.v_proj": "sa_v_proj",
    "cross_attention.query.content": "ca_qcontent_proj",
    "cross_attention.query.position": "ca_qpos_proj",  # only in the first layer
    "cross_attention.query.spatial": "ca_qpos_sine_proj",
    "cross_attention.key.content": "ca_kcontent_proj",
    "cross_attention.key.position": "ca_kpos_proj",
    "cross_attention.v_proj": "ca_v_proj",
}
"""Projections of a decoder layer in querybox, and in the authors' code and the files on the Hugging Face Hub."""


def name_in_memory(name: str) -> str:
    """Return the name of a projection in transformers 5: ``self_attn.q_content_proj`` for ``sa_qcontent_proj``."""
    attention, short = name.split("_", 1)
    module = {"sa": "self_attn", "ca": "encoder_attn"}[attention]
    return f"{module}.{short if short == 'v_proj' else f'{short[0]}_{short[1:]}'}"


ATTEN4VIS = FACEBOOK.relative(
    {
        **perceptron("queries.reference", "transformer.decoder.ref_point_head", layers=2),
        **perceptron("decoder.query_scale", "transformer.decoder.query_scale", layers=2),
        **{f"{OURS}.{ours}": f"{THEIRS}.{theirs}" for ours, theirs in PARTS.items()},
        f"{OURS}.cross_attention": f"{THEIRS}.cross_attn",
    },
    name="Atten4Vis",
)

HUGGINGFACE_CONDITIONAL = HUGGINGFACE.relative(
    {
        **perceptron("queries.reference", "model.decoder.ref_point_head", layers=2),
        **perceptron("decoder.query_scale", "model.decoder.query_scale", layers=2),
        **{f"{OURS}.{ours}": f"{HF}.{theirs}" for ours, theirs in PARTS.items()},
    },
    aliases={
        **HUGGINGFACE.aliases,
        **{f"{HF}.{name_in_memory(theirs)}": f"{HF}.{theirs}" for theirs in PARTS.values()},
    },
)

MMDET3_CONDITIONAL = MMDET3.relative(
    {
        **perceptron("queries.reference", "decoder.ref_point_head", layers=2),
        **perceptron("decoder.query_scale", "decoder.query_scale", layers=2),
        f"{OURS}.self_attention.query.content": f"{OURS}.self_attn.qcontent_proj",
        f"{OURS}.self_attention.query.position": f"{OURS}.self_attn.qpos_proj",
        f"{OURS}.self_attention.key.content": f"{OURS}.self_attn.kcontent_proj",
        f"{OURS}.self_attention.key.position": f"{OURS}.self_attn.kpos_proj",
        f"{OURS}.self_attention": f"{OURS}.self_attn",
        f"{OURS}.cross_attention.query.content": f"{OURS}.cross_attn.qcontent_proj",
        f"{OURS}.cross_attention.query.position": f"{OURS}.cross_attn.qpos_proj",
        f"{OURS}.cross_attention.query.spatial": f"{OURS}.cross_attn.qpos_sine_proj",
        f"{OURS}.cross_attention.key.content": f"{OURS}.cross_attn.kcontent_proj",
        f"{OURS}.cross_attention.key.position": f"{OURS}.cross_attn.kpos_proj",
        f"{OURS}.cross_attention": f"{OURS}.cross_attn",
    },
)
