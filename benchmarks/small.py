"""transformers' DETR and Deformable DETR with the sizes of the small recipes."""

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
    """Return a model with random weights and a pretrained backbone.

    transformers (5.23) replaces every batch norm of the backbone by a frozen one, but timm's batch norms in
    EfficientNets include the activation, which is lost, so the backbone would be linear. Therefore the model gets
    querybox's backbone, which has the same layers with frozen batch norms and keeps the activations.

    Args:
        kind: The model; Deformable DETR has three feature levels and box refinement.
        num_classes: Number of classes.
        frozen_stride: Stride up to which the backbone is frozen; 0, transformers' default, trains all of it.
        weights: Backbone weights, see `load_backbone`; None for random ones.
        options: Further settings of the transformers config, besides `SIZES`.
    """
    import transformers

    # Both papers train with auxiliary losses, which are off by default in transformers.
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
