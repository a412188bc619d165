"""The layouts of MMDetection 3.x: DETR, and the differences of its relatives."""

from __future__ import annotations

from querybox.models.layouts.layout import Layout
from querybox.models.layouts.parts import perceptron
from querybox.models.layouts.relatives import PUBLISHED_QUERIES, PyramidConversion
from querybox.structures import Preprocessing

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
    class_rows=80,
    preprocessing=Preprocessing(resizing="mmdet"),
)

MMDET3_DEFORMABLE = MMDET3.relative(
    {
        "neck.projections.*.0": "neck.convs.*.conv",
        "neck.projections.*.1": "neck.convs.*.gn",
        "neck.extra.*.0": "neck.extra_convs.*.conv",
        "neck.extra.*.1": "neck.extra_convs.*.gn",
        "encoder.level": "level_embed",
        "encoder.layers.*.self_attention": "encoder.layers.*.self_attn",
        "queries.embedding": "query_embedding.weight",
        "queries.reference": "reference_points_fc",
        "queries.proposals.projection": "memory_trans_fc",
        "queries.proposals.norm": "memory_trans_norm",
        "queries.projection": "pos_trans_fc",
        "queries.norm": "pos_trans_norm",
        "decoder.layers.*.cross_attention": "decoder.layers.*.cross_attn",
        "decoder.class_heads.*": "bbox_head.cls_branches.*",
        "decoder.box_heads.*": "bbox_head.reg_branches.*",
    },
    conversion=PyramidConversion(split_neck=True),
)
MMDET3_DINO = MMDET3_DEFORMABLE.relative(
    {
        "queries.content": "query_embedding.weight",
        **perceptron("decoder.position.layers", "decoder.ref_point_head", layers=2),
        "decoder.norm": "decoder.norm",
        "denoising.label": "dn_query_generator.label_embedding",
    },
    supported=PUBLISHED_QUERIES,
)
