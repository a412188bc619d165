"""The layout of MMDetection 2.x."""

from __future__ import annotations

from querybox.models.layouts.layout import Layout
from querybox.structures import Preprocessing

HEAD = "bbox_head.transformer"
ENCODER, DECODER = f"{HEAD}.encoder", f"{HEAD}.decoder"

MMDET2 = Layout(
    name="MMDetection 2.x",
    modules={
        "backbone.body": "backbone",
        "neck.projections.0": "bbox_head.input_proj",
        "queries.position": "bbox_head.query_embedding.weight",
        "encoder.position.rows": "bbox_head.positional_encoding.row_embed.weight",
        "encoder.position.columns": "bbox_head.positional_encoding.col_embed.weight",
        "encoder.layers.*.self_attention": f"{ENCODER}.layers.*.attentions.0.attn",
        "encoder.layers.*.self_attention_residual.norm": f"{ENCODER}.layers.*.norms.0",
        "encoder.layers.*.feedforward.0": f"{ENCODER}.layers.*.ffns.0.layers.0.0",
        "encoder.layers.*.feedforward.3": f"{ENCODER}.layers.*.ffns.0.layers.1",
        "encoder.layers.*.feedforward_residual.norm": f"{ENCODER}.layers.*.norms.1",
        "encoder.norm": f"{ENCODER}.post_norm",
        "decoder.layers.*.self_attention": f"{DECODER}.layers.*.attentions.0.attn",
        "decoder.layers.*.self_attention_residual.norm": f"{DECODER}.layers.*.norms.0",
        "decoder.layers.*.cross_attention": f"{DECODER}.layers.*.attentions.1.attn",
        "decoder.layers.*.cross_attention_residual.norm": f"{DECODER}.layers.*.norms.1",
        "decoder.layers.*.feedforward.0": f"{DECODER}.layers.*.ffns.0.layers.0.0",
        "decoder.layers.*.feedforward.3": f"{DECODER}.layers.*.ffns.0.layers.1",
        "decoder.layers.*.feedforward_residual.norm": f"{DECODER}.layers.*.norms.2",
        "decoder.norm": f"{DECODER}.post_norm",
        "decoder.class_head": "bbox_head.fc_cls",
        "decoder.box_head.0": "bbox_head.reg_ffn.layers.0.0",
        "decoder.box_head.2": "bbox_head.reg_ffn.layers.1",
        "decoder.box_head.4": "bbox_head.fc_reg",
    },
    aliases={  # of the first releases
        f"{ENCODER}.layers.*.self_attn": f"{ENCODER}.layers.*.attentions.0",
        f"{ENCODER}.layers.*.ffn": f"{ENCODER}.layers.*.ffns.0",
        f"{ENCODER}.norm": f"{ENCODER}.post_norm",
        f"{DECODER}.layers.*.self_attn": f"{DECODER}.layers.*.attentions.0",
        f"{DECODER}.layers.*.multihead_attn": f"{DECODER}.layers.*.attentions.1",
        f"{DECODER}.layers.*.ffn": f"{DECODER}.layers.*.ffns.0",
        f"{DECODER}.norm": f"{DECODER}.post_norm",
    },
    class_rows=80,
    preprocessing=Preprocessing(resizing="mmdet"),
)
