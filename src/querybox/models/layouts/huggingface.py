"""The layouts of DETR and Deformable DETR in transformers: names of files on the Hub and of other versions."""

from __future__ import annotations

from querybox.models.layouts.layout import Layout
from querybox.models.layouts.parts import MASK_HEAD, huggingface_layers, names_in_memory, perceptron
from querybox.models.layouts.relatives import PyramidConversion
from querybox.structures import Preprocessing

ENCODER, DECODER = "model.encoder.layers.*", "model.decoder.layers.*"
BACKBONE = "model.backbone.conv_encoder.model"


def mask_head_in_memory() -> dict[str, str]:
    """Return the names of DETR's mask head in memory (transformers 5), with the corresponding names in files."""
    blocks = ["conv1", "conv2", *(f"fpn_stages.{stage}.refine" for stage in range(3))]
    names = {
        "bbox_attention.q_proj": "bbox_attention.q_linear",
        "bbox_attention.k_proj": "bbox_attention.k_linear",
        "mask_head.output_conv": "mask_head.out_lay",
    }
    for number, block in enumerate(blocks, 1):
        names[f"mask_head.{block}.conv"] = f"mask_head.lay{number}"
        names[f"mask_head.{block}.norm"] = f"mask_head.gn{number}"
    for stage in range(3):
        names[f"mask_head.fpn_stages.{stage}.fpn_adapter"] = f"mask_head.adapter{stage + 1}"
    return names


def without_timm() -> dict[str, str]:
    """Return the tensor names of transformers' own ResNet backbone, with the corresponding names of timm's."""
    names = {
        f"{BACKBONE}.embedder.embedder.convolution": f"{BACKBONE}.conv1",
        f"{BACKBONE}.embedder.embedder.normalization": f"{BACKBONE}.bn1",
    }
    for stage in range(4):
        theirs, timm = f"{BACKBONE}.encoder.stages.{stage}.layers.*", f"{BACKBONE}.layer{stage + 1}.*"
        names[f"{theirs}.shortcut.convolution"] = f"{timm}.downsample.0"
        names[f"{theirs}.shortcut.normalization"] = f"{timm}.downsample.1"
        for step in range(3):
            names[f"{theirs}.layer.{step}.convolution"] = f"{timm}.conv{step + 1}"
            names[f"{theirs}.layer.{step}.normalization"] = f"{timm}.bn{step + 1}"
    return names


HUGGINGFACE = Layout(
    name="Hugging Face",
    modules={
        "backbone.body": BACKBONE,
        "neck.projections.0": "model.input_projection",
        "queries.position": "model.query_position_embeddings.weight",
        "encoder.position.rows": "model.position_embedding.row_embeddings.weight",
        "encoder.position.columns": "model.position_embedding.column_embeddings.weight",
        **huggingface_layers(ENCODER, DECODER),
        "decoder.norm": "model.decoder.layernorm",
        "decoder.class_head": "class_labels_classifier",
        **perceptron("decoder.box_head", "bbox_predictor"),
    },
    mask_head=MASK_HEAD,
    aliases={
        "model.backbone.position_embedding": "model.position_embedding",  # transformers 4
        "model.backbone.model": BACKBONE,  # in memory, as what follows
        **names_in_memory(ENCODER, DECODER),
        **without_timm(),
        **mask_head_in_memory(),
    },
    fused=False,
    has_num_batches_tracked=False,
    preprocessing=Preprocessing(resizing="huggingface", clip_boxes=False),
)

HUGGINGFACE_DEFORMABLE = HUGGINGFACE.relative(
    {
        "neck.projections.*": "model.input_proj.*",
        "encoder.level": "model.level_embed",
        "queries.embedding": "model.query_position_embeddings.weight",
        "queries.reference": "model.reference_points",
        "queries.proposals.projection": "model.enc_output",
        "queries.proposals.norm": "model.enc_output_norm",
        "queries.projection": "model.pos_trans",
        "queries.norm": "model.pos_trans_norm",
        "decoder.class_heads.*": "class_embed.*",
        **perceptron("decoder.box_heads.*", "bbox_embed.*"),
    },
    aliases={
        **HUGGINGFACE.aliases,
        **{f"model.decoder.{head}": head for head in ("bbox_embed", "class_embed")},
    },
    conversion=PyramidConversion(),
    duplicates_in="model.decoder",
)
