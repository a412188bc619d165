"""transformers' DETR, Deformable DETR, RT-DETR and D-FINE with the sizes of the small recipes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

from torch import Tensor, nn

from querybox.checkpoints.backbone import load_backbone
from querybox.modules.backbone import Backbone

BACKBONE = "tf_efficientnet_lite0.in1k"
Kind = Literal["detr", "deformable_detr", "rtdetr", "dfine"]
HYBRID: dict[Kind, str] = {"rtdetr": "RTDetr", "dfine": "DFine"}
"""Prefixes of transformers' classes of the kinds with a hybrid encoder."""
PYRAMID = (8, 16, 32)
STRIDES: dict[Kind, tuple[int, ...]] = {"detr": (32,), "deformable_detr": PYRAMID}
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
HYBRID_SIZES = {
    "d_model": 128,
    "encoder_hidden_dim": 128,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "encoder_ffn_dim": 512,
    "decoder_ffn_dim": 512,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_in_channels": [128, 128, 128],
    "hidden_expansion": 0.5,
    "num_queries": 100,
    "num_denoising": 30,
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

    if kind in HYBRID:
        return hybrid_small(kind, num_classes, frozen_stride=frozen_stride, weights=weights, **options)
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
    model.model.backbone.model = own_backbone(STRIDES[kind], frozen_stride, weights)
    return model


def own_backbone(strides: tuple[int, ...], frozen_stride: int, weights: str | None) -> Backbone:
    """Return querybox's backbone."""
    backbone = Backbone(BACKBONE, strides=strides, frozen_stride=frozen_stride)
    if weights is not None:
        load_backbone(backbone, BACKBONE, weights)
    return backbone


def hybrid_small(
    kind: Kind, num_classes: int, *, frozen_stride: int, weights: str | None, **options: Any
) -> Any:
    """Return RT-DETR or D-FINE with random weights and a pretrained backbone; see `transformers_small`."""
    import transformers

    backbone = own_backbone(PYRAMID, frozen_stride, weights)
    replaced: dict[str, Any] = {"hidden_sizes": [24, *backbone.channels], "depths": [1] * 4}
    replaced |= {"layer_type": "basic", "out_indices": [2, 3, 4]}
    values = {**HYBRID_SIZES, "encoder_in_channels": list(backbone.channels), **options}
    config = getattr(transformers, f"{HYBRID[kind]}Config")(
        num_labels=num_classes, backbone_config=transformers.RTDetrResNetConfig(**replaced), **values
    )
    model: Any = getattr(transformers, f"{HYBRID[kind]}ForObjectDetection")(config)
    model.model.backbone.model = FeatureMaps(backbone)
    return model


class FeatureMaps(nn.Module):
    """querybox's backbone with the output of a backbone of transformers."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.mean, self.std = backbone.mean, backbone.std

    def forward(self, pixels: Tensor) -> SimpleNamespace:
        """Return the feature maps."""
        return SimpleNamespace(feature_maps=self.backbone(pixels))
