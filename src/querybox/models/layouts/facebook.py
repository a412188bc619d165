"""The layout of facebookresearch/detr."""

from __future__ import annotations

from querybox.models.layouts.layout import Layout
from querybox.models.layouts.parts import MASK_HEAD, perceptron, torch_layer
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
        **torch_layer("encoder.layers.*", f"{ENCODER}.layers.*"),
        "encoder.norm": f"{ENCODER}.norm",
        **torch_layer("decoder.layers.*", f"{DECODER}.layers.*", "multihead_attn"),
        "decoder.norm": f"{DECODER}.norm",
        "decoder.class_head": "class_embed",
        **perceptron("decoder.box_head", "bbox_embed"),
    },
    mask_head=MASK_HEAD,
    has_num_batches_tracked=False,
    class_rows=91,
    preprocessing=Preprocessing(resizing="facebook", clip_boxes=False),
)
