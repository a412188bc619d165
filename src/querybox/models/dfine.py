"""D-FINE (Peng et al. 2024): RT-DETRv2 whose boxes are means of distributions, with an HGNetv2 backbone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from timm.models.hgnet import model_cfgs
from torch import Tensor, nn

from querybox.errors import CheckpointError
from querybox.losses.fine import FineCriterion
from querybox.models.layouts.dfine import HUGGINGFACE_DFINE, PETERANDE, REG_SCALE
from querybox.models.layouts.layout import Layout, PublicSystem
from querybox.models.public import PublicWeights, objects365
from querybox.models.recipe import Depth
from querybox.models.rtdetr import ACTIVATIONS
from querybox.models.rtdetrv2 import RTDETRv2
from querybox.models.tensors import deepest_channels
from querybox.modules.backbone import Backbone
from querybox.modules.blocks import ConvNorm
from querybox.modules.decoder import DeformableDecoderLayer
from querybox.modules.fine import BINS, BoundedResidual, FineDecoder, Gate, Quality
from querybox.modules.heads import EdgeHead
from querybox.modules.hybrid import SplitFusion
from querybox.modules.position import BoxPosition

STEM = 2
"""Value of `frozen_stride` that freezes the stem of HGNetv2, which has no feature map of its own in timm."""
FROZEN = ("hgnetv2_b4", "hgnetv2_b5")
"""Backbones of the published models (L, X) in which the stem and all batch norms are frozen."""
POINTS = {(2, 12): (6, 6), (3, 12): (3, 6, 3)}
"""Sampling points of the published models by the number of levels and of all points of a head."""
PHASES = {"N": (12, 0), "S": (12, 20), "M": (12, 6), "L": (8, 4), "X": (8, 3)}
"""Epochs without strong augmentation at the end, and `DataSettings.multi_scale`, of each size."""
STAGE = (
    *("in_channels", "mid_channels", "out_channels", "num_blocks"),
    *("downsample", "light_block", "kernel_size", "numb_of_layers"),
)
"""Settings of a stage of HGNetv2 in Hugging Face, in the order of timm's."""


class DFINE(RTDETRv2):
    """The settings of D-FINE; the defaults are its model L."""

    title: ClassVar[str] = "D-FINE"
    training: ClassVar[Mapping[str, Any]] = {
        **RTDETRv2.training,
        "epochs": 80,
        "batch_size": 32,
        "lr": 2.5e-4,
        "backbone_lr": 1.25e-5,
        "weight_decay": 1.25e-4,
        "warmup_steps": 500,
        "ema_warmup": 1000,
        "ema_restart": 0.9999,
    }
    layouts: ClassVar[Mapping[PublicSystem, Layout]] = {
        "facebook": PETERANDE,
        "huggingface": HUGGINGFACE_DFINE,
    }
    public_weights: ClassVar[Mapping[str, PublicWeights]] = {
        "dfine-n": PublicWeights("hf://ustc-community/dfine-nano-coco", 42.8, 4, 7),
        "dfine-s": PublicWeights("hf://ustc-community/dfine-small-coco", 48.5, 10, 25),
        "dfine-m": PublicWeights("hf://ustc-community/dfine-medium-coco", 52.3, 19, 57),
        "dfine-l": PublicWeights("hf://ustc-community/dfine-large-coco", 54.0, 31, 91),
        "dfine-x": PublicWeights("hf://ustc-community/dfine-xlarge-coco", 55.8, 62, 202),
        "dfine-s-o365": objects365("hf://ustc-community/dfine-small-obj2coco", 50.7, 10, 25),
        "dfine-m-o365": objects365("hf://ustc-community/dfine-medium-obj2coco", 55.1, 19, 57),
        "dfine-l-o365": objects365("hf://ustc-community/dfine-large-obj2coco-e25", 57.3, 31, 91),
        "dfine-x-o365": objects365("hf://ustc-community/dfine-xlarge-obj2coco", 59.3, 62, 202),
    }
    identifying_tensor: ClassVar[str] = "decoder.first_box.0"
    sizes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "N": {"epochs": 160, "batch_size": 128, "lr": 8e-4, "backbone_lr": 4e-4, "weight_decay": 1e-4},
        "S": {"epochs": 132, "lr": 2e-4, "backbone_lr": 1e-4, "weight_decay": 1e-4},
        "M": {"epochs": 132, "lr": 2e-4, "backbone_lr": 2e-5, "weight_decay": 1e-4},
        "X": {"backbone_lr": 2.5e-6, "ema_restart": 0.9998},
    }
    phases: ClassVar[Mapping[str, tuple[int, int]]] = PHASES
    public_backbones: ClassVar[Collection[str]] = model_cfgs
    csp_layer: ClassVar[str] = f"{RTDETRv2.csp_layer}.rep1"
    huggingface_prefix: ClassVar[str] = "DFine"
    huggingface_type: ClassVar[str] = "d_fine"
    huggingface_supported: ClassVar[Mapping[str, object]] = {
        **RTDETRv2.huggingface_supported,
        "max_num_bins": BINS - 1,
        "top_prob_values": Quality.TOP,
        "lqe_hidden_dim": Quality.HIDDEN,
        "lqe_layers": 2,
        "eval_idx": -1,
        "layer_scale": 1,
    }
    criterion_type: ClassVar[type[FineCriterion]] = FineCriterion

    kind: Literal["dfine"] = "dfine"  # type: ignore[assignment]
    backbone: str = "hgnetv2_b4.ssld_stage1_in22k_in1k"
    points: tuple[Depth, ...] = (3, 6, 3)
    share_heads: Literal[False] = False
    reg_scale: Annotated[float, Field(gt=0, le=1000)] = 4.0
    """Curvature of the distances of the distributions; larger values give smaller steps near zero."""

    def build_backbone(self, strides: tuple[int, ...], **options: bool) -> Backbone:
        """Build the backbone; see `Recipe.build_backbone`."""
        if not (self.backbone.startswith("hgnetv2") and self.frozen_stride == STEM):
            return super().build_backbone(strides, **options)
        backbone = self.replace(frozen_stride=0).build_backbone(strides, **options)
        backbone.freeze("stem")
        return backbone.train(backbone.training)

    def fusion_parts(self) -> dict[str, Callable[[], nn.Module]]:
        """Return what makes the convolutions of the encoder; see `HybridEncoder`."""
        width, linear = self.encoder_width, partial(ConvNorm, activation=nn.Identity)
        hidden, projected = self.fusion_width(width, self.expansion), width != self.width
        return {
            "lateral": partial(linear, width, width, 1),
            "fusion": partial(SplitFusion, width, hidden=hidden, blocks=self.fusion_blocks),
            "down": lambda: nn.Sequential(
                linear(width, width, 1), linear(width, width, 3, stride=2, groups=width)
            ),
            "output": partial(linear, width, self.width, 1) if projected else nn.Identity,
        }

    @staticmethod
    def fusion_width(width: int, expansion: float) -> int:
        """Return the channels of the branches of a `CSPRepLayer`, given those of the encoder."""
        return int(expansion * width // 2)

    def decoder_layer(self) -> partial[DeformableDecoderLayer]:
        """Return what builds a decoder layer, whose cross-attention projects neither values nor output."""
        layer = super().decoder_layer()
        attention = partial(layer.keywords["attention"], projection=nn.Identity)
        residuals = {"cross_attention_residual": Gate, "feedforward_residual": BoundedResidual}
        return partial(layer, attention=attention, **residuals)

    def build_decoder(self, classes: int) -> nn.Module:  # type: ignore[override]
        """Build the decoder, whose heads predict distributions."""
        layers, activation = range(self.decoder_layers), ACTIVATIONS[self.activation]
        return FineDecoder(
            self.build_layers(self.decoder_layer(), self.decoder_layers),
            [self.class_head_type(self.width, classes) for _ in layers],
            [EdgeHead(self.width, BINS, activation=activation) for _ in layers],
            qualities=[Quality(activation=activation) for _ in layers],
            first_box=self.build_box_head(),
            position=self.build_position(),
            scale=self.reg_scale,
            inference_layers=self.inference_layers,
        )

    def build_position(self) -> BoxPosition:
        """Build the positions of queries, whose values are limited."""
        position = super().build_position()
        position.layers.append(nn.Hardtanh(-10, 10))
        return position

    @property
    def size(self) -> str:
        """Letter of the published model with this backbone and width; L for others."""
        if self.architecture == "hgnetv2_b0":
            return "N" if self.width < type(self).model_fields["width"].default else "S"
        return {"hgnetv2_b2": "M", "hgnetv2_b5": "X"}.get(self.architecture, "L")

    @classmethod
    def infer_backbone(cls, state: Mapping[str, Tensor]) -> str:
        """Return timm's name of the HGNetv2 with these tensors."""
        stem = [len(state[f"backbone.body.stem.{conv}.conv.weight"]) for conv in ("stem1", "stem4")]
        last = deepest_channels(state)
        for name, settings in model_cfgs.items():
            if name.startswith("hgnetv2") and (settings["stem_chs"], settings["stage4"][2]) == (stem, last):
                return f"{name}.ssld_stage1_in22k_in1k"
        raise CheckpointError(
            f"unknown backbone: expected an HGNetv2, got {stem} channels in its stem and {last} in its last map"
        )

    @classmethod
    def infer_specific(cls, state: Mapping[str, Tensor], heads: int) -> dict[str, Any]:
        """Infer the settings specific to D-FINE; see `Recipe.infer_specific`."""
        return {
            **super().infer_specific(state, heads),
            "frozen_stride": STEM if cls.infer_backbone(state).startswith(FROZEN) else 0,
            "reg_scale": state[REG_SCALE].item(),
        }

    @classmethod
    def infer(cls, state: Mapping[str, Tensor], stated: Mapping[str, Any]) -> dict[str, Any]:
        """Infer the settings; tensors show the sum of `points` alone, so stated or published ones are used."""
        known = super().infer(state, stated)
        points = known["points"]
        return {**known, "points": stated.get("points") or POINTS.get((len(points), sum(points)), points)}

    @classmethod
    def settings_from_config(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that cannot be inferred from shapes but are in a Hugging Face config."""
        settings, levels = super().settings_from_config(config), config.get("num_feature_levels", 3)
        points = config.get("decoder_n_points", 4)
        return {**settings, "points": (points,) * levels if isinstance(points, int) else tuple(points)}

    def huggingface_backbone(self) -> dict[str, Any]:
        """Return the configuration of the backbone in a Hugging Face ``config.json``."""
        settings = model_cfgs[self.architecture]
        stages = (settings[f"stage{stage}"] for stage in range(1, 5))
        values = dict(zip(STAGE, map(list, zip(*stages, strict=True)), strict=True))
        return {
            "model_type": "hgnet_v2",
            "stem_channels": [3, *settings["stem_chs"]],
            **{f"stage_{name}": value for name, value in values.items()},
            "use_learnable_affine_block": not self.backbone.startswith(FROZEN),
            "hidden_sizes": values["out_channels"],
            "depths": values["num_blocks"],
            "out_features": ["stage2", "stage3", "stage4"][-self.levels :],
        }

    def huggingface_config(self) -> dict[str, Any]:
        """Return the Hugging Face ``config.json`` of the model."""
        return {
            **super().huggingface_config(),
            "decoder_n_points": list(self.points),
            "depth_mult": self.fusion_blocks / 3,
            "reg_scale": self.reg_scale,
        }
