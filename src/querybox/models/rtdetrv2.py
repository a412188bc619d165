"""RT-DETRv2 (Lv et al. 2024): RT-DETR with a number of sampling points for each level, or discrete sampling."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from querybox.models.layouts.layout import Layout, PublicSystem
from querybox.models.layouts.rtdetrv2 import HUGGINGFACE_RTDETRV2, LYUWENYU_V2, SCALE
from querybox.models.public import PublicWeights
from querybox.models.recipe import Depth, require
from querybox.models.rtdetr import MEDIUM, RTDETR
from querybox.models.unseen import Unseen
from querybox.modules.decoder import DeformableDecoderLayer
from querybox.modules.deformable_attention import DeformableAttention, GridSample, NearestSample


class RTDETRv2(RTDETR):
    """The settings of RT-DETRv2; the defaults are its ResNet-50 model (L)."""

    title: ClassVar[str] = "RT-DETRv2"
    training: ClassVar[Mapping[str, Any]] = {**RTDETR.training, "warmup_steps": 2000}
    layouts: ClassVar[Mapping[PublicSystem, Layout]] = {
        "facebook": LYUWENYU_V2,
        "huggingface": HUGGINGFACE_RTDETRV2,
    }
    public_weights: ClassVar[Mapping[str, PublicWeights]] = {
        "rtdetrv2-s": PublicWeights("hf://PekingU/rtdetr_v2_r18vd", 48.1, 20, 60),
        "rtdetrv2-ms": PublicWeights("hf://PekingU/rtdetr_v2_r34vd", 49.9, 31, 92),
        "rtdetrv2-l": PublicWeights("hf://PekingU/rtdetr_v2_r50vd", 53.4, 42, 136),
        "rtdetrv2-x": PublicWeights("hf://PekingU/rtdetr_v2_r101vd", 54.3, 76, 259),
    }
    identifying_tensor: ClassVar[str] = SCALE
    adaptable: ClassVar[frozenset[str]] = RTDETR.adaptable | {"discrete"}
    sizes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **RTDETR.sizes,
        "resnet18d": {"backbone_lr": 1e-4, "epochs": 120},
        "resnet34d": {"backbone_lr": 5e-5, "epochs": 120},
        "medium": {"epochs": 84},
    }
    phases: ClassVar[Mapping[str, tuple[int, int]]] = {
        "resnet18d": (3, 0),
        "resnet34d": (3, 3),
        "medium": (3, 3),
    }
    """Epochs without strong augmentation at the end, and `DataSettings.multi_scale`, where they are not 1 and 3."""
    unseen: ClassVar[Mapping[str, Unseen]] = {
        **RTDETR.unseen,
        "activation": Unseen(
            "ReLU in the decoder",
            "DEIM",
            "pass activation='silu' for weights of DEIM, or convert the file with --activation silu",
            "it has SiLU, which tensors do not show: set activation and mlp_act to silu in DEIM",
        ),
        "discrete": Unseen(
            "sampling with interpolation",
            "DSP",
            "pass discrete=True for weights with discrete sampling, or convert the file with --discrete",
            "it samples single cells, which tensors do not show: set cross_attn_method to discrete",
        ),
    }
    huggingface_prefix: ClassVar[str] = "RTDetrV2"
    huggingface_type: ClassVar[str] = "rt_detr_v2"
    huggingface_supported: ClassVar[Mapping[str, object]] = {
        **RTDETR.huggingface_supported,
        "decoder_offset_scale": 0.5,
    }

    kind: Literal["rtdetrv2"] = "rtdetrv2"  # type: ignore[assignment]
    points: tuple[Depth, ...] = (4, 4, 4)  # type: ignore[assignment]
    discrete: bool = False
    """Sample single cells rather than interpolate between them, for runtimes that cannot. A model that was trained with
    interpolation is fine-tuned for it; the sampling offsets are not."""

    @property
    def points_by_level(self) -> tuple[int, ...]:
        """Sampling points of each head in each level."""
        return self.points

    def decoder_layer(self) -> partial[DeformableDecoderLayer]:
        """Return what builds a decoder layer."""
        sampling = NearestSample if self.discrete else GridSample
        return partial(super().decoder_layer(), attention=partial(DeformableAttention, sampling=sampling))

    @property
    def size(self) -> str:
        """Name of the size of the model in `sizes`."""
        medium = self.architecture == "resnet50d" and self.expansion == MEDIUM["expansion"]
        return "medium" if medium else super().size

    def published_data(self) -> Mapping[str, Any]:
        """Return the published data settings, which depend on the size of the model."""
        epochs = self.published_training()["epochs"]
        plain, multi_scale = self.phases.get(self.size, (1, 3))
        return {**self.data, "strong_until": (epochs - plain) / epochs, "multi_scale": multi_scale}

    def computed_tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors that files contain although they are computed; see `Recipe.computed_tensors`."""
        scale = torch.tensor([1 / count for count in self.points for _ in range(count)])
        return {SCALE.replace("*", str(layer)): scale for layer in range(self.decoder_layers)}

    @classmethod
    def infer(cls, state: Mapping[str, Tensor], stated: Mapping[str, Any]) -> dict[str, Any]:
        """Infer the settings; only DEIM has three layers for the position of a query, and with them SiLU."""
        known = super().infer(state, stated)
        if known["position_layers"] == 3:
            known.setdefault("activation", "silu")
        return {**known, "points": (known["points"],) * known["levels"]}

    @classmethod
    def settings_from_config(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that cannot be inferred from shapes but are in a Hugging Face config."""
        discrete = config.get("decoder_method") == "discrete"
        require(config, decoder_method="discrete" if discrete else "default")
        return {**super().settings_from_config(config), "discrete": discrete}

    def huggingface_config(self) -> dict[str, Any]:
        """Return the Hugging Face ``config.json`` of the model."""
        return {
            **super().huggingface_config(),
            "decoder_n_points": self.points[0],
            "decoder_n_levels": self.levels,
            "decoder_method": "discrete" if self.discrete else "default",
        }

    def unsupported_settings(self, layout: Layout) -> list[str]:
        """Return the names of settings whose values the layout's system does not support."""
        unsupported = super().unsupported_settings(layout)
        uneven = layout is HUGGINGFACE_RTDETRV2 and len(set(self.points)) > 1
        return [*unsupported, "points"] if uneven else unsupported
