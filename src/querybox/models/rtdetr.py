"""RT-DETR (Zhao et al. 2023): DINO with a hybrid encoder, and queries made from the encoder's best tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from querybox.losses.classification import DetachedVarifocalLoss, VarifocalLoss
from querybox.models.dino import DINO
from querybox.models.layouts.layout import Layout, PublicSystem
from querybox.models.layouts.rtdetr import HUGGINGFACE_RTDETR, LYUWENYU, PREPROCESSING
from querybox.models.public import PublicWeights, objects365
from querybox.models.recipe import Depth, Positive, Queries, Width, require
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
MEDIUM = {"backbone": "resnet50d.ra2_in1k", "encoder_width": 256, "expansion": 0.5, "decoder_layers": 6}
"""Settings that only RT-DETR-R50-M has, which is trained with six decoder layers and evaluated with three."""
SSD = {"photometric": 0.5, "zoom_out": 0.5, "iou_crop": 0.8, "crop": 0.0}
"""Augmentation of SSD, with the published probabilities, in place of DETR's crops."""
STORAGE = "https://github.com/lyuwenyu/storage/releases/download/v0.1"
"""Weights of RT-DETR's authors."""
EXPANSIONS = (1.0, 0.5, 0.34)
"""Values of `expansion` in the published models, which are tried first, because several values give the same widths."""
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
        "rtdetr-r50-m": PublicWeights(f"{STORAGE}/rtdetr_r50vd_m_6x_coco_from_paddle.pth", 51.3, 36, 100),
        "rtdetr-r50": PublicWeights("hf://PekingU/rtdetr_r50vd", 53.1, 42, 136),
        "rtdetr-r101": PublicWeights("hf://PekingU/rtdetr_r101vd", 54.3, 76, 259),
        "rtdetr-r18-o365": objects365("hf://PekingU/rtdetr_r18vd_coco_o365", 49.2, 20, 60),
        "rtdetr-r50-o365": objects365("hf://PekingU/rtdetr_r50vd_coco_o365", 55.3, 42, 136),
        "rtdetr-r101-o365": objects365("hf://PekingU/rtdetr_r101vd_coco_o365", 56.2, 76, 259),
    }
    identifying_tensor: ClassVar[str] = "encoder.laterals"
    adaptable: ClassVar[frozenset[str]] = DINO.adaptable | {"frozen_batch_norms", "inference_layers"}
    sizes: ClassVar[Mapping[str, Mapping[str, Any]]] = {"resnet101d": {"backbone_lr": 1e-6}}
    """Published training by `size`, where it differs from `training`."""
    public_backbones: ClassVar[Collection[str]] = RESNETS_VD
    widths: ClassVar[tuple[str, ...]] = ("width", "encoder_width")
    varifocal_type: ClassVar[type[VarifocalLoss]] = DetachedVarifocalLoss
    neck_convolution: ClassVar[str] = "conv"
    csp_layer: ClassVar[str] = "encoder.top_down.0"
    """Name of the first `CSPRepLayer`."""
    denoising_padding: ClassVar[float] = 0.0
    huggingface_prefix: ClassVar[str] = "RTDetr"
    huggingface_type: ClassVar[str] = "rt_detr"
    huggingface_processor: ClassVar[str] = "RTDetrImageProcessor"
    huggingface_names: ClassVar[Mapping[str, str]] = {
        **DINO.huggingface_names,
        "queries": "num_queries",
        "frozen_batch_norms": "freeze_backbone_batch_norms",
    }
    huggingface_supported: ClassVar[Mapping[str, object]] = {
        "encoder_activation_function": "gelu",
        "activation_function": "silu",
        "decoder_activation_function": "relu",
        "normalize_before": False,
        "learn_initial_query": False,
        "positional_encoding_temperature": 10000,
        "layer_norm_eps": 1e-5,
        "batch_norm_eps": 1e-5,
        "eval_size": None,  # otherwise transformers has no positional encoding in evaluation mode
    }

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
    fusion_blocks: Depth = 3
    """Blocks in each fusion of two feature maps."""
    inference_layers: Depth | None = None
    """Decoder layers that are run in inference; null for all."""
    queries: Queries = 300
    levels: Depth = 3
    share_heads: bool = False
    varifocal: bool = True
    class_cost: Annotated[float, Field(ge=0)] = 2.0
    token_content: bool = True
    activation: Literal["relu", "silu"] = "relu"
    """Activation of the decoder's feed-forward networks, the box heads and the positions of queries; SiLU in DEIM."""
    position_layers: Literal[2, 3] = 2
    """Linear layers that compute the position of a query from its box; 3 in DEIM's RT-DETRv2."""
    normalize: bool = False
    """Normalise images with the mean and standard deviation of the backbone's ImageNet weights; otherwise values are
    scaled to 0-1."""

    @property
    def size(self) -> str:
        """Name of the size of the model in `sizes`."""
        return self.architecture

    def published_training(self) -> Mapping[str, Any]:
        """Return the published training schedule, which depends on the size of the model."""
        return {**self.training, **self.sizes.get(self.size, {})}

    def build_backbone(self, strides: tuple[int, ...], **options: bool) -> Backbone:
        """Build the backbone; see `Recipe.build_backbone`."""
        options["frozen_batch_norms"] = self.frozen_batch_norms
        options["first_shortcut"] = self.architecture in RESNETS_VD
        return super().build_backbone(strides, **options)

    def check(self) -> None:
        """Raise `ConfigError` if settings are inconsistent."""
        super().check()
        strides, layers = len(self.strides), self.decoder_layers
        self.expect("levels", f"the number of 'strides', {strides}", holds=self.levels == strides)
        holds = (self.inference_layers or 0) <= layers
        self.expect("inference_layers", f"at most 'decoder_layers', {layers}", holds=holds)
        holds = len(self.points_by_level) == self.levels
        self.expect("points", f"a number for each of the {self.levels} 'levels'", holds=holds)

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
        sizes = (self.encoder_width, self.heads, self.encoder_feedforward, self.dropout)
        layers = [EncoderLayer(*sizes, activation=nn.GELU) for _ in range(self.encoder_layers)]
        position = CellPositionEncoding(self.encoder_width)
        return HybridEncoder(position, layers, levels=self.levels, **self.fusion_parts())

    def fusion_parts(self) -> dict[str, Callable[[], nn.Module]]:
        """Return what makes the convolutions of the encoder; see `HybridEncoder`."""
        width = self.encoder_width
        hidden = self.fusion_width(width, self.expansion)
        return {
            "lateral": partial(ConvNorm, width, width, 1),
            "fusion": partial(CSPRepLayer, 2 * width, width, hidden=hidden, blocks=self.fusion_blocks),
            "down": partial(ConvNorm, width, width, 3, stride=2),
            "output": partial(ConvNorm, width, self.width, 1, activation=nn.Identity),
        }

    @staticmethod
    def fusion_width(width: int, expansion: float) -> int:
        """Return the channels of the branches of a `CSPRepLayer`, given those of the encoder."""
        return round(width * expansion)

    def build_proposals(self, classes: int) -> Proposals:
        """Build the proposals that queries are selected from."""
        proposals = super().build_proposals(classes)
        nn.init.xavier_uniform_(proposals.projection.weight)
        return proposals

    def build_decoder(self, classes: int) -> ReferenceDecoder:
        """Build the decoder, which computes the positions of queries from the coordinates of their references."""
        return ReferenceDecoder(
            self.build_layers(self.decoder_layer(), self.decoder_layers),
            *self.build_heads(classes),
            refinement=LookForwardTwice(),
            norm=nn.Identity(),
            position=self.build_position(),
            inference_layers=self.inference_layers,
        )

    def decoder_layer(self) -> partial[DeformableDecoderLayer]:
        """Return what builds a decoder layer."""
        return partial(DeformableDecoderLayer, activation=ACTIVATIONS[self.activation])

    def build_box_head(self, size: float = 0.0) -> DeltaHead:
        """Build a box head; for `size` see `DeltaHead`."""
        return DeltaHead(self.width, size=size, activation=ACTIVATIONS[self.activation])

    def build_position(self) -> BoxPosition:
        """Build the positions of queries."""
        hidden = (2 * self.width,) if self.position_layers == 2 else (self.width,) * 2
        return BoxPosition(*hidden, self.width, activation=ACTIVATIONS[self.activation])

    @classmethod
    def infer_specific(cls, state: Mapping[str, Tensor], heads: int) -> dict[str, Any]:
        """Infer the settings specific to RT-DETR; see `Recipe.infer_specific`."""
        encoder_width = len(state["neck.projections.0.conv.weight"])
        hidden = len(state[f"{cls.csp_layer}.conv1.conv.weight"])
        published = [each for each in EXPANSIONS if cls.fusion_width(encoder_width, each) == hidden]
        settings = {
            **cls.infer_levels(state, heads),
            "encoder_width": encoder_width,
            "expansion": published[0] if published else hidden / cls.fusion_width(encoder_width, 1.0),
            "frozen_stride": 2 if BOTTLENECK in state else 0,
            "fusion_blocks": count(state, rf"{cls.csp_layer}\.bottlenecks\.(\d+)"),
            "share_heads": "decoder.class_heads.1.bias" not in state,
            "position_layers": count(state, r"decoder\.position\.layers\.(\d+)"),
        }
        layer = state.get("encoder.layers.0.feedforward.0.bias")
        return settings if layer is None else {**settings, "encoder_feedforward": len(layer)}

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
        coarsest = config.get("num_feature_levels", 3) - 1
        require(config, encode_proj_layers=[coarsest])
        return {**super().settings_from_config(config), "inference_layers": None, "activation": "relu"}

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
            "encode_proj_layers": [self.levels - 1],
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
            "out_features": ["stage2", "stage3", "stage4"][-self.levels :],
        }

    def published_strides(self) -> tuple[tuple[int, ...], ...]:
        """Return the strides of published models."""
        return (8, 16, 32), (16, 32)
