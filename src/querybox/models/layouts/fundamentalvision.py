"""The layout of fundamentalvision/Deformable-DETR: differences from the layout of facebookresearch/detr."""

from __future__ import annotations

from querybox.models.layouts.facebook import DECODER, FACEBOOK
from querybox.models.layouts.parts import perceptron
from querybox.models.layouts.relatives import PyramidConversion

FUNDAMENTALVISION = FACEBOOK.relative(
    {
        "neck.projections.*": "input_proj.*",
        "encoder.level": "transformer.level_embed",
        "queries.embedding": "query_embed.weight",
        "queries.reference": "transformer.reference_points",
        "queries.proposals.projection": "transformer.enc_output",
        "queries.proposals.norm": "transformer.enc_output_norm",
        "queries.projection": "transformer.pos_trans",
        "queries.norm": "transformer.pos_trans_norm",
        "decoder.layers.*.cross_attention": f"{DECODER}.layers.*.cross_attn",
        # The norms are numbered in the order in which they are created, not used.
        "decoder.layers.*.cross_attention_residual.norm": f"{DECODER}.layers.*.norm1",
        "decoder.layers.*.self_attention_residual.norm": f"{DECODER}.layers.*.norm2",
        "decoder.class_heads.*": "class_embed.*",
        **perceptron("decoder.box_heads.*", "bbox_embed.*"),
    },
    name="fundamentalvision",
    aliases={f"{DECODER}.{head}": head for head in ("bbox_embed", "class_embed")},
    conversion=PyramidConversion(),
    duplicates_in=DECODER,
)
