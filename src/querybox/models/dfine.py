"""D-FINE (Peng et al. 2024): RT-DETRv2 whose boxes are means of distributions, with an HGNetv2 backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from querybox.models.recipe import Depth, require
from querybox.models.rtdetr import ACTIVATIONS
from querybox.models.rtdetrv2 import RTDETRv2
from querybox.models.tensors import count
from querybox.modules.backbone import Backbone
from querybox.modules.blocks import ConvNorm
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
EXPANSIONS = (1.0, 0.5, 0.34)
"""Values of `expansion` in the published models, which are tried first, because several values give the same widths."""
TRAINING: dict[str, dict[str, Any]] = {
    "N": {"epochs": 160, "batch_size": 128, "lr": 8e-4, "backbone_lr": 4e-4, "weight_decay": 1e-4},
    "S": {"epochs": 132, "lr": 2e-4, "backbone_lr": 1e-4, "weight_decay": 1e-4},
    "M": {"epochs": 132, "lr": 2e-4, "backbone_lr": 2e-5, "weight_decay": 1e-4},
    "X": {"backbone_lr": 2.5e-6, "ema_restart": 0.9998},
}
"""Published training of each size, where it differs from that of L."""
PHASES = {"N": (12, 0), "S": (12, 20), "M": (12, 6), "L": (8, 4), "X": (8, 3)}
"""Epochs without strong augmentation at the end, and `DataSettings.multi_scale`, of each size."""
SUPPORTED: dict[str, object] = {
    "max_num_bins": BINS - 1,
    "top_prob_values": Quality.TOP,
    "lqe_hidden_dim": Quality.HIDDEN,
    "lqe_layers": 2,
    "eval_idx": -1,
    "layer_scale": 1,
}
"""Settings of a Hugging Face config of which querybox supports one value, in addition to those of RT-DETR."""


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
    huggingface_prefix: ClassVar[str] = "DFine"
    huggingface_type: ClassVar[str] = "d_fine"

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
        hidden = int(self.expansion * width // 2)
        projected = width != self.width
        return {
            "lateral": partial(linear, width, width, 1),
            "fusion": partial(SplitFusion, width, hidden=hidden, blocks=self.fusion_blocks),
            "down": lambda: nn.Sequential(
                linear(width, width, 1), linear(width, width, 3, stride=2, groups=width)
            ),
            "output": partial(linear, width, self.width, 1) if projected else nn.Identity,
        }

    def decoder_parts(self) -> dict[str, Any]:
        """Return what makes the parts of a decoder layer, whose cross-attention projects neither values nor output."""
        parts = super().decoder_parts()
        return {
            **parts,
            "attention": partial(parts["attention"], projection=nn.Identity),
            "cross_attention_residual": Gate,
            "feedforward_residual": BoundedResidual,
        }

    def build_decoder(self, classes: int) -> nn.Module:  # type: ignore[override]
        """Build the decoder, whose heads predict distributions."""
        layers, activation = range(self.decoder_layers), ACTIVATIONS[self.activation]
        return FineDecoder(
            self.build_decoder_layers(),
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

    def published_training(self) -> Mapping[str, Any]:
        """Return the published training schedule, which depends on the size of the model."""
        return {**self.training, **TRAINING.get(self.size, {})}

    def published_data(self) -> Mapping[str, Any]:
        """Return the published data settings, which depend on the size of the model."""
        epochs = self.published_training()["epochs"]
        plain, multi_scale = PHASES[self.size]
        return {**self.data, "strong_until": (epochs - plain) / epochs, "multi_scale": multi_scale}

    @classmethod
    def infer_backbone(cls, state: Mapping[str, Tensor]) -> str:
        """Return timm's name of the HGNetv2 with these tensors."""
        stem = [len(state[f"backbone.body.stem.{conv}.conv.weight"]) for conv in ("stem1", "stem4")]
        last = cls.deepest_channels(state)
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
            "fusion_blocks": count(state, r"encoder\.top_down\.0\.rep1\.bottlenecks\.(\d+)"),
            "reg_scale": state[REG_SCALE].item(),
        }

    @classmethod
    def infer_levels(cls, state: Mapping[str, Tensor], heads: int) -> dict[str, Any]:
        """Infer the settings of feature maps, widths and deformable attention."""
        inferred = super().infer_levels(state, heads)
        points = inferred["points"]
        return {**inferred, "points": POINTS.get((len(points), sum(points)), points)}

    @classmethod
    def infer_expansion(cls, state: Mapping[str, Tensor]) -> float:
        """Infer the setting `expansion`, if possible one of a published model."""
        hidden = len(state["encoder.top_down.0.rep1.conv1.conv.weight"])
        width = len(state["neck.projections.0.conv.weight"])
        published = [each for each in EXPANSIONS if each * width // 2 == hidden]
        return published[0] if published else 2 * hidden / width

    @classmethod
    def deepest_channels(cls, state: Mapping[str, Tensor]) -> int:
        """Return the number of channels of the backbone's last feature map."""
        return len(state[max(name for name in state if ".aggregation.1.conv.weight" in name)])

    @classmethod
    def infer(cls, state: Mapping[str, Tensor], stated: Mapping[str, Any]) -> dict[str, Any]:
        """Infer the settings; tensors show the sum of `points` alone, so those that are stated are used."""
        known = super().infer(state, stated)
        return {**known, "points": stated.get("points", known["points"])}

    @classmethod
    def settings_from_config(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that cannot be inferred from shapes but are in a Hugging Face config."""
        levels = config.get("num_feature_levels", 3)
        require(config, **SUPPORTED, encode_proj_layers=[levels - 1])
        settings = super().settings_from_config({**config, "encode_proj_layers": [2]})
        points = config.get("decoder_n_points", 4)
        return {**settings, "points": (points,) * levels if isinstance(points, int) else tuple(points)}

    def huggingface_backbone(self) -> dict[str, Any]:
        """Return the configuration of the backbone in a Hugging Face ``config.json``."""
        settings = model_cfgs[self.architecture]
        stages = list(zip(*(settings[f"stage{stage}"] for stage in range(1, 5)), strict=True))
        inputs, middle, outputs, blocks, downsample, light, kernel, layers = map(list, stages)
        return {
            "model_type": "hgnet_v2",
            "stem_channels": [3, *settings["stem_chs"]],
            "stage_in_channels": inputs,
            "stage_mid_channels": middle,
            "stage_out_channels": outputs,
            "stage_num_blocks": blocks,
            "stage_downsample": downsample,
            "stage_light_block": light,
            "stage_kernel_size": kernel,
            "stage_numb_of_layers": layers,
            "use_learnable_affine_block": not self.backbone.startswith(FROZEN),
            "hidden_sizes": outputs,
            "depths": blocks,
            "out_features": ["stage2", "stage3", "stage4"][-self.levels :],
        }

    def huggingface_config(self) -> dict[str, Any]:
        """Return the Hugging Face ``config.json`` of the model."""
        return {
            **super().huggingface_config(),
            "encode_proj_layers": [self.levels - 1],
            "decoder_n_points": list(self.points),
            "depth_mult": self.fusion_blocks / 3,
            "reg_scale": self.reg_scale,
        }

    def unsupported_settings(self, layout: Layout) -> list[str]:
        """Return the names of settings whose values the layout's system does not support."""
        supported: dict[str, object] = {"strides": (8, 16, 32)[-self.levels :], "distinct": False}
        if layout is HUGGINGFACE_DFINE:
            supported |= {"inference_layers": None, "activation": "relu"}
        unsupported = [name for name, value in supported.items() if getattr(self, name) != value]
        return unsupported if self.architecture in model_cfgs else ["backbone", *unsupported]
