"""transformers' DETR and Deformable DETR in the sizes of the small recipes."""

from __future__ import annotations

from typing import Any, Literal

from querybox.checkpoints.backbone import load_backbone
from querybox.modules.backbone import Backbone

BACKBONE = "tf_efficientnet_lite0.in1k"
Kind = Literal["detr", "deformable_detr"]
STRIDES: dict[Kind, tuple[int, ...]] = {"detr": (32,), "deformable_detr": (8, 16, 32)}
SIZES = {
    "d_model": 128,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_ffn_dim": 512,
    "decoder_ffn_dim": 512,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "num_queries": 100,
}


def transformers_small(
    kind: Kind, num_classes: int, *, frozen_stride: int = 0, weights: str | None = "imagenet", **options: Any
) -> Any:
    """Return a model with fresh weights but for the backbone's.

    transformers puts a frozen batch norm in the place of every one of the backbone, but timm's batch norms of an
    EfficientNet hold the activation as well, which is lost: the backbone would be linear (5.23). So the model is given
    querybox's backbone, of the same layers, whose batch norms are frozen and which keeps its activations.

    Args:
        kind: Which model; Deformable DETR has three maps and refines its boxes.
        num_classes: How many classes.
        frozen_stride: Up to which map the backbone is not trained; transformers trains all of this one.
        weights: Of the backbone, see `load_backbone`; None for random ones.
        options: Settings of transformers that differ from its defaults, beside `SIZES`.
    """
    import transformers

    # Both papers train with the losses of all decoder layers, which transformers leaves out unless it is told.
    common: dict[str, Any] = {
        "num_labels": num_classes,
        "auxiliary_loss": True,
        "backbone": BACKBONE,
        **SIZES,
    }
    if kind == "detr":
        config: Any = transformers.DetrConfig(**{**common, **options})
        model: Any = transformers.DetrForObjectDetection(config)
    else:
        levels = {"num_feature_levels": len(STRIDES[kind]), "with_box_refine": True}
        config = transformers.DeformableDetrConfig(**{**common, **levels, **options})
        model = transformers.DeformableDetrForObjectDetection(config)
    backbone = Backbone(BACKBONE, strides=STRIDES[kind], frozen_stride=frozen_stride)
    if weights is not None:
        load_backbone(backbone, BACKBONE, weights)
    model.model.backbone.model = backbone
    return model
