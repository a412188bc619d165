"""The names of MMDetection 3.x for our modules."""

from __future__ import annotations

from querybox.weights.layout import Layout

MMDET3 = Layout(
    name="MMDetection 3.x",
    modules={
        "backbone.body": "backbone",
        "neck.projections.0": "neck.convs.0.conv",
        "queries.position": "query_embedding.weight",
        "encoder.position.rows": "positional_encoding.row_embed.weight",
        "encoder.position.columns": "positional_encoding.col_embed.weight",
        "encoder.layers.*.self_attention": "encoder.layers.*.self_attn.attn",
        "encoder.layers.*.self_attention_residual.norm": "encoder.layers.*.norms.0",
        "encoder.layers.*.feedforward.0": "encoder.layers.*.ffn.layers.0.0",
        "encoder.layers.*.feedforward.3": "encoder.layers.*.ffn.layers.1",
        "encoder.layers.*.feedforward_residual.norm": "encoder.layers.*.norms.1",
        "decoder.layers.*.self_attention": "decoder.layers.*.self_attn.attn",
        "decoder.layers.*.self_attention_residual.norm": "decoder.layers.*.norms.0",
        "decoder.layers.*.cross_attention": "decoder.layers.*.cross_attn.attn",
        "decoder.layers.*.cross_attention_residual.norm": "decoder.layers.*.norms.1",
        "decoder.layers.*.feedforward.0": "decoder.layers.*.ffn.layers.0.0",
        "decoder.layers.*.feedforward.3": "decoder.layers.*.ffn.layers.1",
        "decoder.layers.*.feedforward_residual.norm": "decoder.layers.*.norms.2",
        "decoder.norm": "decoder.post_norm",
        "decoder.class_head": "bbox_head.fc_cls",
        "decoder.box_head.0": "bbox_head.reg_ffn.layers.0.0",
        "decoder.box_head.2": "bbox_head.reg_ffn.layers.1",
        "decoder.box_head.4": "bbox_head.fc_reg",
    },
    resizing="mmdet",
    clip_boxes=True,
)
