"""The backbone: any timm model that yields feature maps, with frozen batch norm and a frozen beginning."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Self

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from querybox.errors import ConfigError


class Backbone(nn.Module):
    """Yields feature maps of chosen strides.

    Every batch norm is frozen: the running statistics are used and the affine parameters are not trained, for the
    batches of detection are too small to estimate either.
    """

    def __init__(
        self, name: str, *, strides: tuple[int, ...] = (32,), frozen_stride: int = 4, dilation: bool = False
    ) -> None:
        """Build it with random weights.

        Args:
            name: A timm model.
            strides: Pixels a feature cell, one map each; the deepest map of that stride is taken.
            frozen_stride: All up to the map of this stride stays as it is: 4 freezes a ResNet's stem and stage 1,
                0 nothing, 32 everything.
            dilation: Dilate the last stage instead of letting it halve the map (DC5; its stride is then 16).

        Raises:
            ConfigError: timm has no such model, or the model no map of such a stride.
        """
        super().__init__()
        options: dict[str, Any] = {"output_stride": 16} if dilation else {}
        levels = feature_levels(name, **options)
        deepest = {reduction: index for index, reduction in enumerate(levels.reduction())}
        for stride in (*strides, *([frozen_stride] if frozen_stride else [])):
            if stride not in deepest:
                raise ConfigError(
                    f"backbone '{name}' has no feature map of stride {stride}; it has {sorted(deepest)}"
                )
        indices = tuple(deepest[stride] for stride in strides)
        body: Any = timm.create_model(
            name, features_only=True, pretrained=False, out_indices=indices, **options
        )
        self.channels: list[int] = body.feature_info.channels()
        red, green, blue = body.pretrained_cfg["mean"]
        self.mean = (255 * red, 255 * green, 255 * blue)
        red, green, blue = body.pretrained_cfg["std"]
        self.std = (255 * red, 255 * green, 255 * blue)
        self.body: nn.Module = body
        for norm in self.batch_norms():
            norm.requires_grad_(requires_grad=False)
        if frozen_stride:
            self.freeze(levels.module_name(deepest[frozen_stride]))
        self.train(self.training)  # which has batch norms in evaluation mode from the start

    def batch_norms(self) -> Iterator[nn.Module]:
        """Yield every batch norm."""
        return (module for module in self.body.modules() if isinstance(module, nn.BatchNorm2d))

    def train(self, mode: bool = True) -> Self:
        """Switch to training or evaluation; batch norms stay in evaluation mode."""
        super().train(mode)
        for norm in self.batch_norms():
            norm.eval()
        return self

    def freeze(self, last: str) -> None:
        """Stop training every parameter up to those of the module `last`."""
        modules = list(self.body.named_modules())
        # timm flattens a nested name such as "stages.0" to "stages_0" in some of its models.
        inside = (f"{last}.", last.replace(".", "_") + ".")
        places = [index for index, (name, _) in enumerate(modules) if f"{name}.".startswith(inside)]
        end = max(places, default=len(modules))  # a body that ends before it is frozen altogether
        for _, module in modules[: end + 1]:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(requires_grad=False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """Return one map a stride."""
        features: list[Tensor] = self.body(images)
        return features


@lru_cache(maxsize=64)
def feature_levels(name: str, **options: Any) -> Any:
    """Return timm's own description of the feature maps that a model has.

    Raises:
        ConfigError: timm has no such model, cannot make feature maps of it, or would look for it elsewhere.
    """
    if ":" in name:  # hf-hub:owner/name, local-dir:path: timm would fetch or read what a weights file names
        raise ConfigError(f"backbone '{name}': expected the name of a model that timm has, not a place")
    try:
        with torch.device("meta"):
            return timm.create_model(name, features_only=True, pretrained=False, **options).feature_info
    except Exception as error:
        near = ", ".join(timm.list_models(f"{name.split('.')[0][:8]}*")[:5])
        raise ConfigError(
            f"backbone '{name}': timm cannot make feature maps of it ({error}). "
            f"Expected a timm model{f', such as {near}' if near else ''}."
        ) from error
