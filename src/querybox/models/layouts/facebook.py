"""The layout of facebookresearch/detr."""

from __future__ import annotations

from querybox.models.layouts.layout import Layout
from querybox.structures import Preprocessing

ENCODER, DECODER = "transformer.encoder", "transformer.decoder"

FACEBOOK = Layout(
    name="facebookresearch",
    modules={
        "backbone.body": "backbone.0.body",
        "neck.projections.0": "input_proj",
        "queries.position": "query_embed.weight",
        "encoder.position.rows": "backbone.1.row_embed.weight",
        "encoder.position.columns": "backbone.1.col_embed.weight",
        "encoder.layers.*.self_attention": f"{ENCODER}.layers.*.self_attn",
        "encoder.layers.*.self_attention_residual.norm": f"{ENCODER}.layers.*.norm1",
        "encoder.layers.*.feedforward.0": f"{ENCODER}.layers.*.linear1",
        "encoder.layers.*.feedforward.3": f"{ENCODER}.layers.*.linear2",
        "encoder.layers.*.feedforward_residual.norm": f"{ENCODER}.layers.*.norm2",
        "encoder.norm": f"{ENCODER}.norm",
        "decoder.layers.*.self_attention": f"{DECODER}.layers.*.self_attn",
        "decoder.layers.*.self_attention_residual.norm": f"{DECODER}.layers.*.norm1",
        "decoder.layers.*.cross_attention": f"{DECODER}.layers.*.multihead_attn",
        "decoder.layers.*.cross_attention_residual.norm": f"{DECODER}.layers.*.norm2",
        "decoder.layers.*.feedforward.0": f"{DECODER}.layers.*.linear1",
        "decoder.layers.*.feedforward.3": f"{DECODER}.layers.*.linear2",
        "decoder.layers.*.feedforward_residual.norm": f"{DECODER}.layers.*.norm3",
        "decoder.norm": f"{DECODER}.norm",
        "decoder.class_head": "class_embed",
        "decoder.box_head.0": "bbox_embed.layers.0",
        "decoder.box_head.2": "bbox_embed.layers.1",
        "decoder.box_head.4": "bbox_embed.layers.2",
    },
    has_num_batches_tracked=False,
    class_rows=91,
    preprocessing=Preprocessing(resizing="facebook", clip_boxes=False),
)
