"""RT-DETRv2 (Lv et al. 2024): RT-DETR with a number of sampling points for each level.

Sampling without interpolation is optional.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from querybox.errors import ConfigError
from querybox.models.layouts.layout import Layout, PublicSystem
from querybox.models.layouts.rtdetrv2 import HUGGINGFACE_RTDETRV2, LYUWENYU_V2, SCALE
from querybox.models.public import PublicWeights
from querybox.models.recipe import Depth, doubt, require
from querybox.models.rtdetr import MEDIUM, RTDETR, WITHOUT_FIRST_SHORTCUT
from querybox.modules.decoder import DeformableDecoderLayer
from querybox.modules.deformable_attention import DeformableAttention, GridSample, NearestSample

DEIM_POSITION_LAYERS = 3
"""`RTDETR.position_layers` of DEIM's RT-DETRv2."""


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
    backbone_lr: ClassVar[Mapping[str, float]] = {**RTDETR.backbone_lr, "resnet18d": 1e-4, "resnet34d": 5e-5}
    huggingface_prefix: ClassVar[str] = "RTDetrV2"
    huggingface_type: ClassVar[str] = "rt_detr_v2"

    kind: Literal["rtdetrv2"] = "rtdetrv2"  # type: ignore[assignment]
    points: tuple[Depth, ...] = (4, 4, 4)  # type: ignore[assignment]
    """Sampling points of each head in each level."""
    discrete: bool = False
    """Sample single cells rather than interpolate between them, for runtimes that cannot. A model that was trained with
    interpolation is fine-tuned for it, with the sampling offsets frozen."""

    def check(self) -> None:
        """Raise `ConfigError` if settings are inconsistent."""
        super().check()
        if len(self.points) != self.levels:
            raise ConfigError(
                f"setting 'points' is {list(self.points)}; expected a number for each of the {self.levels} 'levels'"
            )

    @property
    def points_by_level(self) -> tuple[int, ...]:
        """Sampling points of each head in each level."""
        return self.points

    def build_decoder_layers(self) -> list[DeformableDecoderLayer]:
        """Build the layers of the decoder; with discrete sampling, the offsets are frozen."""
        layers = super().build_decoder_layers()
        for layer in layers:
            layer.cross_attention.offset.requires_grad_(not self.discrete)
        return layers

    def decoder_parts(self) -> dict[str, Any]:
        """Return what makes the parts of a decoder layer; see `DeformableDecoderLayer`."""
        sampling = NearestSample if self.discrete else GridSample
        return {**super().decoder_parts(), "attention": partial(DeformableAttention, sampling=sampling)}

    def published_training(self) -> Mapping[str, Any]:
        """Return the published training schedule, which depends on the size of the model."""
        training = super().published_training()
        if self.architecture in WITHOUT_FIRST_SHORTCUT:  # S and M*
            return {**training, "epochs": 120}
        medium = self.expansion == MEDIUM["expansion"]
        return {**training, "epochs": 84} if medium else training

    def published_data(self) -> Mapping[str, Any]:
        """Return the published data settings: strong augmentation ends, and S is trained with one image size."""
        epochs = self.published_training()["epochs"]
        plain = 1 if epochs == RTDETR.training["epochs"] else 3
        data = {**self.data, "strong_until": (epochs - plain) / epochs}
        return {**data, "multi_scale": 0} if self.backbone.startswith("resnet18d") else data

    def computed_tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors that files contain although they are computed; see `Recipe.computed_tensors`."""
        scale = torch.tensor([1 / count for count in self.points for _ in range(count)])
        return {SCALE.replace("*", str(layer)): scale for layer in range(self.decoder_layers)}

    @classmethod
    def infer_levels(cls, state: Mapping[str, Tensor], heads: int) -> dict[str, Any]:
        """Infer the settings of feature maps, widths and deformable attention."""
        inferred = super().infer_levels(state, heads)
        return {**inferred, "points": (inferred["points"],) * inferred["levels"]}

    @classmethod
    def infer(cls, state: Mapping[str, Tensor], stated: Mapping[str, Any]) -> dict[str, Any]:
        """Infer the settings; only DEIM has three layers for the position of a query, and with them SiLU."""
        known = super().infer(state, stated)
        if known["position_layers"] == DEIM_POSITION_LAYERS:
            known.setdefault("activation", "silu")
        return known

    @classmethod
    def settings_from_config(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that cannot be inferred from shapes but are in a Hugging Face config."""
        require(config, decoder_offset_scale=0.5)
        discrete = config.get("decoder_method") == "discrete"
        if not discrete:
            require(config, decoder_method="default")
        return {**super().settings_from_config(config), "discrete": discrete}

    @classmethod
    def assumptions(cls, known: Mapping[str, Any], path: str) -> list[str]:
        """Return what is assumed about settings that cannot be determined, one sentence each."""
        sentences = super().assumptions(known, path)
        if "activation" not in known:
            sentences.append(
                f"ReLU in the decoder{doubt(path, 'DEIM')}; pass activation='silu' for weights of DEIM, or convert the "
                "file with --activation silu"
            )
        if "discrete" not in known:
            sentences.append(
                f"sampling with interpolation{doubt(path, 'DSP')}; pass discrete=True for weights with discrete "
                "sampling, or convert the file with --discrete"
            )
        return sentences

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
        if layout is LYUWENYU_V2:  # also that of DEIM
            return [name for name in unsupported if name not in ("activation", "position_layers")]
        return [*unsupported, *(["points"] if len(set(self.points)) > 1 else [])]

    def conversion_notes(self, layout: Layout, state: Mapping[str, Tensor]) -> list[str]:
        """Return what has to be set in the layout's system before it can load `state`, one sentence each."""
        sentences = super().conversion_notes(layout, state)
        if self.activation == "silu":
            sentences.append(
                "it has SiLU, which tensors do not show: set activation and mlp_act to silu in DEIM"
            )
        if self.discrete and layout is self.layouts["facebook"]:
            sentences.append(
                "it samples single cells, which tensors do not show: set cross_attn_method to discrete"
            )
        return sentences
