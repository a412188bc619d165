"""The layout of IDEA-Research/DINO: differences from the layout of Deformable DETR."""

from __future__ import annotations

from querybox.models.layouts.facebook import DECODER
from querybox.models.layouts.fundamentalvision import FUNDAMENTALVISION
from querybox.models.layouts.parts import perceptron
from querybox.models.layouts.relatives import PUBLISHED_QUERIES, PyramidConversion

IDEA = FUNDAMENTALVISION.relative(
    {
        "queries.content": "transformer.tgt_embed.weight",
        "queries.proposals.class_head": "transformer.enc_out_class_embed",
        **perceptron("queries.proposals.box_head", "transformer.enc_out_bbox_embed"),
        **perceptron("decoder.position.layers", f"{DECODER}.ref_point_head", layers=2),
        "denoising.label": "label_enc",
    },
    name="IDEA-Research",
    conversion=PyramidConversion(proposals_after_layers=False, extra_label=True),
    class_settings=("num_classes", "dn_labelbook_size"),
    supported=PUBLISHED_QUERIES,
)
