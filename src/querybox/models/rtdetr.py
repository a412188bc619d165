"""RT-DETR (Zhao et al. 2023): DINO with a hybrid encoder, and queries made from the encoder's best tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from querybox.errors import ConfigError
from querybox.losses.classification import DetachedVarifocalLoss, FocalLoss
from querybox.models.dino import DINO
from querybox.models.layouts.layout import Layout, PublicSystem
from querybox.models.layouts.rtdetr import HUGGINGFACE_RTDETR, LYUWENYU, PREPROCESSING
from querybox.models.public import PublicWeights, objects365
from querybox.models.recipe import HEADS, Depth, Positive, Queries, Width, require
from querybox.models.tensors import BOTTLENECK, RESNETS, count
from querybox.modules.backbone import Backbone
from querybox.modules.blocks import ConvNorm
from querybox.modules.decoder import DeformableDecoderLayer, ReferenceDecoder
from querybox.modules.encoder import EncoderLayer
from querybox.modules.heads import DeltaHead
from querybox.modules.hybrid import CSPRepLayer, HybridEncoder
from querybox.modules.neck import InputProjection
from querybox.modules.position import BoxPosition, CellPositionEncoding
from querybox.modules.queries import Proposals
from querybox.modules.refinement import LookForwardTwice
from querybox.structures import Preprocessing

RESNETS_VD = {f"{name}d": sizes for sizes, name in RESNETS.items()}
"""ResNet-vd models (three convolutions in the stem, pooling in shortcuts), with the keys of `RESNETS`."""
WITHOUT_FIRST_SHORTCUT = ("resnet18d", "resnet34d")
"""Models of timm that lack the convolution that ResNet-vd has in the shortcut of its first block."""
FUSION_BLOCKS = 3
"""Blocks of each fusion in all published models."""
MEDIUM = {"backbone": "resnet50d.ra2_in1k", "encoder_width": 256, "expansion": 0.5, "decoder_layers": 6}
"""Settings that only RT-DETR-R50-M has, which is trained with six decoder layers and evaluated with three."""
SUPPORTED: dict[str, object] = {
    "encoder_activation_function": "gelu",
    "activation_function": "silu",
    "decoder_activation_function": "relu",
    "normalize_before": False,
    "learn_initial_query": False,
    "encode_proj_layers": [2],
    "positional_encoding_temperature": 10000,
    "layer_norm_eps": 1e-5,
    "batch_norm_eps": 1e-5,
    "eval_size": None,  # otherwise transformers has no positional encoding in evaluation mode
}
"""Settings of a Hugging Face config of which querybox supports one value, that of all published models."""
SSD = {"photometric": 0.5, "zoom_out": 0.5, "iou_crop": 0.8, "crop": 0.0}
"""Augmentation of SSD, with the published probabilities, in place of DETR's crops."""
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}


class RTDETR(DINO):
    """The settings of RT-DETR; the defaults are its ResNet-50 model."""

    title: ClassVar[str] = "RT-DETR"
    training: ClassVar[Mapping[str, Any]] = {
        "epochs": 72,
        "milestones": (),
        "decay_norms": False,
        "ema": 0.9999,
        "ema_warmup": 2000,
    }
    data: ClassVar[Mapping[str, Any]] = {"image_size": 640, "stretch": True, "multi_scale": 3, **SSD}
    layouts: ClassVar[Mapping[PublicSystem, Layout]] = {
        "facebook": LYUWENYU,
        "huggingface": HUGGINGFACE_RTDETR,
    }
    public_weights: ClassVar[Mapping[str, PublicWeights]] = {
        "rtdetr-r18": PublicWeights("hf://PekingU/rtdetr_r18vd", 46.5, 20, 60),
        "rtdetr-r34": PublicWeights("hf://PekingU/rtdetr_r34vd", 48.9, 31, 92),
        "rtdetr-r50-m": PublicWeights(
            "https://github.com/lyuwenyu/storage/releases/download/v0.1/rtdetr_r50vd_m_6x_coco_from_paddle.pth",
            51.3,
            36,
            100,
        ),
        "rtdetr-r50": PublicWeights("hf://PekingU/rtdetr_r50vd", 53.1, 42, 136),
        "rtdetr-r101": PublicWeights("hf://PekingU/rtdetr_r101vd", 54.3, 76, 259),
        "rtdetr-r18-o365": objects365("hf://PekingU/rtdetr_r18vd_coco_o365", 49.2, 20, 60),
        "rtdetr-r50-o365": objects365("hf://PekingU/rtdetr_r50vd_coco_o365", 55.3, 42, 136),
        "rtdetr-r101-o365": objects365("hf://PekingU/rtdetr_r101vd_coco_o365", 56.2, 76, 259),
    }
    identifying_tensor: ClassVar[str] = "encoder.laterals"
    adaptable: ClassVar[frozenset[str]] = DINO.adaptable | {"frozen_batch_norms", "inference_layers"}
    backbone_lr: ClassVar[Mapping[str, float]] = {"resnet101d": 1e-6}
    """Published learning rates of backbones, where they are not a tenth of that of the other modules."""
    denoising_padding: ClassVar[float] = 0.0
    huggingface_prefix: ClassVar[str] = "RTDetr"
    huggingface_type: ClassVar[str] = "rt_detr"
    huggingface_processor: ClassVar[str] = "RTDetrImageProcessor"

    kind: Literal["rtdetr"] = "rtdetr"  # type: ignore[assignment]
    backbone: str = "resnet50d.ra2_in1k"
    frozen_stride: Annotated[int, Field(ge=0, le=2**16)] = 2
    frozen_batch_norms: bool = True
    """Freeze the batch norms of the backbone. Those of the neck and the encoder are always trained."""
    feedforward: Positive = 1024
    encoder_layers: Annotated[int, Field(ge=0, le=100)] = 1
    """Layers of self-attention within the coarsest feature map."""
    encoder_width: Width = 256
    """Channels of the feature maps in the encoder."""
    encoder_feedforward: Positive = 1024
    expansion: Annotated[float, Field(gt=0, le=16)] = 1.0
    """Channels of the convolutions that fuse feature maps, relative to `encoder_width`."""
    fusion_blocks: Depth = FUSION_BLOCKS
    """Blocks in each fusion of two feature maps."""
    inference_layers: Depth | None = None
    """Decoder layers that are run in inference; null for all."""
    queries: Queries = 300
    levels: Depth = 3
    share_heads: bool = False
    varifocal: bool = True
    """Use varifocal loss, with the IoU of the box as the target score of a matched query."""
    class_cost: Annotated[float, Field(ge=0)] = 2.0
    """Weight of the class cost in matching."""
    token_content: bool = True
    """Use the tokens of the selected proposals as the content of queries."""
    activation: Literal["relu", "silu"] = "relu"
    """Activation of the decoder's feed-forward networks, the box heads and the positions of queries; SiLU in DEIM."""
    position_layers: Literal[2, 3] = 2
    """Linear layers that compute the position of a query from its box; 3 in DEIM's RT-DETRv2."""
    normalize: bool = False
    """Normalise images with the mean and standard deviation of the backbone's ImageNet weights; otherwise values are
    scaled to 0-1."""

    def published_training(self) -> Mapping[str, Any]:
        """Return the published training schedule, in which the learning rate of the backbone depends on its size."""
        lr = self.backbone_lr.get(self.architecture)
        return self.training if lr is None else {**self.training, "backbone_lr": lr}

    def build_backbone(self, strides: tuple[int, ...], **options: bool) -> Backbone:
        """Build the backbone; see `Recipe.build_backbone`."""
        options["frozen_batch_norms"] = self.frozen_batch_norms
        options["first_shortcut"] = self.architecture in WITHOUT_FIRST_SHORTCUT
        return super().build_backbone(strides, **options)

    def check(self) -> None:
        """Raise `ConfigError` if settings are inconsistent."""
        if self.levels != len(self.strides):
            raise ConfigError(
                f"setting 'levels' is {self.levels}; expected the number of 'strides', {len(self.strides)}"
            )
        if (self.inference_layers or 0) > self.decoder_layers:
            raise ConfigError(
                f"setting 'inference_layers' is {self.inference_layers}; expected at most 'decoder_layers', "
                f"{self.decoder_layers}"
            )
        super().check()
        if self.encoder_width % self.heads:
            raise ConfigError(
                f"setting 'encoder_width' is {self.encoder_width}, expected a multiple of 'heads', {self.heads}"
            )

    def preprocessing(self, backbone: Backbone) -> Preprocessing:
        """Return the image preprocessing of a new model."""
        source: Backbone | Preprocessing = backbone if self.normalize else PREPROCESSING
        return dataclasses.replace(PREPROCESSING, mean=source.mean, std=source.std, clip_boxes=True)

    def build_neck(self, channels: list[int]) -> nn.Module:
        """Build the neck, for feature maps with these channels."""
        projection = partial(ConvNorm, kernel_size=1, activation=nn.Identity)
        return InputProjection(channels, self.encoder_width, projection)

    def build_encoder(self) -> nn.Module:
        """Build the encoder."""
        layers = [
            EncoderLayer(
                self.encoder_width, self.heads, self.encoder_feedforward, self.dropout, activation=nn.GELU
            )
            for _ in range(self.encoder_layers)
        ]
        return HybridEncoder(
            CellPositionEncoding(self.encoder_width), layers, levels=self.levels, **self.fusion_parts()
        )

    def fusion_parts(self) -> dict[str, Callable[[], nn.Module]]:
        """Return what makes the convolutions of the encoder; see `HybridEncoder`."""
        width, hidden = self.encoder_width, round(self.encoder_width * self.expansion)
        return {
            "lateral": partial(ConvNorm, width, width, 1),
            "fusion": partial(CSPRepLayer, 2 * width, width, hidden=hidden, blocks=self.fusion_blocks),
            "down": partial(ConvNorm, width, width, 3, stride=2),
            "output": partial(ConvNorm, width, self.width, 1, activation=nn.Identity),
        }

    def build_proposals(self, classes: int) -> Proposals:
        """Build the proposals that queries are selected from."""
        proposals = super().build_proposals(classes)
        nn.init.xavier_uniform_(proposals.projection.weight)
        return proposals

    def build_decoder(self, classes: int) -> ReferenceDecoder:
        """Build the decoder, which computes the positions of queries from the coordinates of their references."""
        return ReferenceDecoder(
            self.build_decoder_layers(),
            *self.build_heads(classes),
            refinement=LookForwardTwice(),
            norm=nn.Identity(),
            position=self.build_position(),
            inference_layers=self.inference_layers,
        )

    def build_decoder_layers(self) -> list[DeformableDecoderLayer]:
        """Build the layers of the decoder."""
        return self.build_layers(partial(DeformableDecoderLayer, **self.decoder_parts()), self.decoder_layers)

    def decoder_parts(self) -> dict[str, Any]:
        """Return what makes the parts of a decoder layer; see `DeformableDecoderLayer`."""
        return {"activation": ACTIVATIONS[self.activation]}

    def build_box_head(self, size: float = 0.0) -> DeltaHead:
        """Build a box head; for `size` see `DeltaHead`."""
        return DeltaHead(self.width, size=size, activation=ACTIVATIONS[self.activation])

    def build_position(self) -> BoxPosition:
        """Build the positions of queries."""
        hidden = (2 * self.width,) if self.position_layers == 2 else (self.width,) * 2
        return BoxPosition(*hidden, self.width, activation=ACTIVATIONS[self.activation])

    def build_classification_loss(self) -> FocalLoss:
        """Build the classification loss."""
        varifocal = self.varifocal and not self.matchability
        return DetachedVarifocalLoss() if varifocal else super().build_classification_loss()

    @classmethod
    def infer_specific(cls, state: Mapping[str, Tensor], heads: int) -> dict[str, Any]:
        """Infer the settings specific to RT-DETR; see `Recipe.infer_specific`."""
        settings = {
            **cls.infer_levels(state, heads),
            "frozen_stride": 2 if BOTTLENECK in state else 0,
            "fusion_blocks": count(state, r"encoder\.top_down\.0\.bottlenecks\.(\d+)"),
            "share_heads": "decoder.class_heads.1.bias" not in state,
            "position_layers": count(state, r"decoder\.position\.layers\.(\d+)"),
        }
        layer = state.get("encoder.layers.0.feedforward.0.bias")
        return settings if layer is None else {**settings, "encoder_feedforward": len(layer)}

    @classmethod
    def infer_backbone(cls, state: Mapping[str, Tensor]) -> str:
        """Return timm's name of the ResNet-vd with these tensors."""
        return super().infer_backbone(state).replace(".tv_in1k", "d.ra2_in1k")

    @classmethod
    def infer_levels(cls, state: Mapping[str, Tensor], heads: int) -> dict[str, Any]:
        """Infer the settings of feature maps, widths and deformable attention."""
        levels = count(state, r"neck\.projections\.(\d+)")
        inputs = [state[f"neck.projections.{level}.conv.weight"].shape[1] for level in range(levels)]
        return {
            "width": len(state["queries.proposals.projection.weight"]),
            "encoder_width": len(state["neck.projections.0.conv.weight"]),
            "expansion": cls.infer_expansion(state),
            "levels": levels,
            "points": len(state["decoder.layers.0.cross_attention.weight.bias"]) // (heads * levels),
            # Each map of the backbone has half as many channels as the next deeper one.
            "strides": tuple(32 * channels // cls.deepest_channels(state) for channels in inputs),
        }

    @classmethod
    def infer_expansion(cls, state: Mapping[str, Tensor]) -> float:
        """Infer the setting `expansion`."""
        hidden = len(state["encoder.top_down.0.conv1.conv.weight"])
        return hidden / len(state["neck.projections.0.conv.weight"])

    @classmethod
    def deepest_channels(cls, state: Mapping[str, Tensor]) -> int:
        """Return the number of channels of the backbone's last feature map."""
        return len(state["backbone.body.layer4.0.downsample.1.weight"])

    @classmethod
    def infer(cls, state: Mapping[str, Tensor], stated: Mapping[str, Any]) -> dict[str, Any]:
        """Infer the settings; the model with the shapes of RT-DETR-R50-M is taken for it."""
        known = super().infer(state, stated)
        medium = all(known[name] == value for name, value in MEDIUM.items())
        known.setdefault("inference_layers", 3 if medium else None)
        known.setdefault("frozen_batch_norms", known["frozen_stride"] > 0)  # frozen together
        return known

    @classmethod
    def settings_from_config(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that cannot be inferred from shapes but are in a Hugging Face config."""
        heads = config.get("encoder_attention_heads", HEADS)
        require(config, **SUPPORTED, decoder_attention_heads=heads)
        return {
            "heads": heads,
            "dropout": config.get("dropout", 0.0),
            "queries": config.get("num_queries", 300),
            "inference_layers": None,
            "activation": "relu",
            "frozen_batch_norms": config.get("freeze_backbone_batch_norms", True),
        }

    @classmethod
    def assumptions(cls, known: Mapping[str, Any], path: str) -> list[str]:
        """Return what is assumed about settings that cannot be determined, one sentence each."""
        sentences = super().assumptions(known, path)
        if known["inference_layers"] is not None:
            sentences.append(
                f"inference runs {known['inference_layers']} decoder layers, as in RT-DETR-R50-M"
            )
        return sentences

    def huggingface_config(self) -> dict[str, Any]:
        """Return the Hugging Face ``config.json`` of the model."""
        backbone = self.huggingface_backbone()
        return {
            **self.common_config(),
            "backbone_config": backbone,
            "freeze_backbone_batch_norms": self.frozen_batch_norms,
            "encoder_in_channels": backbone["hidden_sizes"][-self.levels :],
            "feat_strides": list(self.strides),
            "encoder_hidden_dim": self.encoder_width,
            "encoder_ffn_dim": self.encoder_feedforward,
            "hidden_expansion": self.expansion,
            "decoder_in_channels": [self.encoder_width] * self.levels,
            "num_feature_levels": self.levels,
            "decoder_n_points": self.points,
            "num_denoising": self.denoising,
            "label_noise_ratio": self.label_noise,
            "box_noise_scale": self.box_noise,
            "initializer_bias_prior_prob": 0.01,
        }

    def huggingface_backbone(self) -> dict[str, Any]:
        """Return the configuration of the backbone in a Hugging Face ``config.json``."""
        bottleneck, depths = RESNETS_VD[self.architecture]
        return {
            "model_type": "rt_detr_resnet",
            "embedding_size": 64,
            "hidden_sizes": [256, 512, 1024, 2048] if bottleneck else [64, 128, 256, 512],
            "depths": list(depths),
            "layer_type": "bottleneck" if bottleneck else "basic",
            "out_features": ["stage2", "stage3", "stage4"],
        }

    def unsupported_settings(self, layout: Layout) -> list[str]:
        """Return the names of settings whose values the layout's system does not support."""
        supported: dict[str, object] = {
            "strides": (8, 16, 32),
            "fusion_blocks": FUSION_BLOCKS,
            "share_heads": False,
            "distinct": False,
            "token_content": True,
            "activation": "relu",
            "position_layers": 2,
        }
        if layout is self.layouts["huggingface"]:
            supported["inference_layers"] = None
        unsupported = [name for name, value in supported.items() if getattr(self, name) != value]
        return unsupported if self.architecture in RESNETS_VD else ["backbone", *unsupported]
