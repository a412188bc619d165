"""The backbone: any timm model with feature maps, usually with frozen batch norms and frozen first layers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Self

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from querybox.errors import ConfigError
from querybox.modules.meta import shapes_only


class Backbone(nn.Module):
    """Returns feature maps of the given strides.

    By default every batch norm is frozen: it uses its running statistics and its affine parameters are not trained,
    because the batches of detection are too small to estimate them.

    Attributes:
        channels: Channels of each map.
        mean: Mean of the images that timm's weights were trained with: RGB in 0-255.
        std: Their standard deviation.
        frozen_batch_norms: Whether every batch norm is frozen, not only those whose parameters are.
        added: Prefixes of tensors that timm's model does not have.
    """

    def __init__(
        self,
        name: str,
        *,
        strides: tuple[int, ...] = (32,),
        frozen_stride: int = 4,
        dilation: bool = False,
        frozen_batch_norms: bool = True,
        first_shortcut: bool = False,
    ) -> None:
        """Create the backbone with random weights.

        Args:
            name: A timm model.
            strides: Pixels per feature cell of each map; the deepest map of each stride is used. They may repeat.
            frozen_stride: Freeze all layers up to the map of this stride: 4 freezes the stem and stage 1 of a ResNet,
                0 nothing, 32 everything.
            dilation: Dilate the last stage instead of downsampling in it (DC5), so that its stride is 16, which is also
                that of the stage before. Then only the last of `strides` can be the map of the last stage.
            frozen_batch_norms: Freeze every batch norm, not only those of frozen layers.
            first_shortcut: Add a convolution to the first shortcut of a ResNet if it has none; see
                `add_first_shortcut`.

        Raises:
            ConfigError: timm has no such model, or the model cannot take images of any size, or it has no map of such a
                stride.
        """
        super().__init__()
        options: dict[str, Any] = {"output_stride": 16} if dilation else {}
        levels = feature_levels(name, **options)
        deepest = {reduction: index for index, reduction in enumerate(levels.reduction())}
        for stride in (*strides, *([frozen_stride] if frozen_stride else [])):
            if stride not in deepest:
                cure = "set stride=16, that of a dilated last stage" if dilation else "choose one of these"
                raise ConfigError(
                    f"backbone '{name}' has no feature map of stride {stride}; it has {sorted(deepest)}: {cure}"
                )
        chosen = [deepest[stride] for stride in strides]
        if dilation:
            before = {reduction: index for index, reduction in enumerate(levels.reduction()[:-1])}
            chosen[:-1] = [before.get(stride, deepest[stride]) for stride in strides[:-1]]
        self.coarsest = max(strides)
        indices = sorted(set(chosen))
        body: Any = timm.create_model(
            name, features_only=True, pretrained=False, out_indices=indices, **options
        )
        self.order = [indices.index(index) for index in chosen]
        channels = body.feature_info.channels()
        self.channels: list[int] = [channels[index] for index in self.order]
        red, green, blue = body.pretrained_cfg["mean"]
        self.mean = (255 * red, 255 * green, 255 * blue)
        red, green, blue = body.pretrained_cfg["std"]
        self.std = (255 * red, 255 * green, 255 * blue)
        self.frozen_batch_norms = frozen_batch_norms
        self.added: tuple[str, ...] = ()
        if first_shortcut and body.layer1[0].downsample is None:
            add_first_shortcut(body.layer1[0])
            self.added = ("layer1.0.downsample.",)
        self.body: nn.Module = body
        if frozen_batch_norms:
            for norm in self.batch_norms():
                norm.requires_grad_(requires_grad=False)
        if frozen_stride:
            self.freeze(levels.module_name(deepest[frozen_stride]))
        self.train(self.training)  # sets frozen batch norms to evaluation mode

    def batch_norms(self) -> Iterator[nn.Module]:
        """Yield every batch norm."""
        return (module for module in self.body.modules() if isinstance(module, nn.BatchNorm2d))

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode, except for frozen batch norms, which stay in evaluation mode."""
        super().train(mode)
        for norm in self.batch_norms():
            if self.is_frozen(norm):
                norm.eval()
        return self

    def is_frozen(self, norm: nn.Module) -> bool:
        """Return whether a batch norm uses its running statistics in training."""
        return self.frozen_batch_norms or not any(each.requires_grad for each in norm.parameters())

    def freeze(self, last: str) -> None:
        """Freeze all parameters up to and including those of the module `last`."""
        modules = list(self.body.named_modules())
        # In some models timm flattens a nested name such as "stages.0" to "stages_0".
        prefixes = (f"{last}.", last.replace(".", "_") + ".")
        matches = [index for index, (name, _) in enumerate(modules) if f"{name}.".startswith(prefixes)]
        end = max(matches, default=len(modules))  # a body that ends before `last` is frozen completely
        for _, module in modules[: end + 1]:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(requires_grad=False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """Return one feature map per stride."""
        try:
            features: list[Tensor] = self.body(images)
        except RuntimeError:
            # Patches of a convolution without padding, as in ConvNeXt, do not fit into a thin image.
            missing = [max(0, self.coarsest - side) for side in images.shape[-2:]]
            if not any(missing):
                raise
            features = self.body(nn.functional.pad(images, (0, missing[1], 0, missing[0])))
        return [features[index] for index in self.order]


def add_first_shortcut(block: Any) -> None:
    """Add a 1x1 convolution and a batch norm to the shortcut of a residual block.

    ResNet-vd has them in its first block, whether or not the number of channels changes, timm's only if it does. They
    are initialised to the identity, so that timm's weights can be used.
    """
    width = block.conv1.in_channels
    conv = nn.Conv2d(width, width, kernel_size=1, bias=False)
    nn.init.dirac_(conv.weight)
    # As in timm, the convolution comes second.
    block.downsample = nn.Sequential(nn.Identity(), conv, nn.BatchNorm2d(width))


@lru_cache(maxsize=64)
def feature_levels(name: str, **options: Any) -> Any:
    """Return timm's description of the feature maps of a model.

    Raises:
        ConfigError: timm has no such model, cannot return its feature maps, or would load it from elsewhere; or the
            model cannot take images of any size, or its maps are not what timm states.
    """
    # hf-hub:owner/name, local-dir:path: timm would download or read what a weights file names.
    if ":" in name:
        raise ConfigError(f"backbone '{name}': expected the name of a timm model, not a location")
    try:
        with shapes_only():
            model: Any = timm.create_model(name, features_only=True, pretrained=False, **options)
    except Exception as error:
        near = ", ".join(timm.list_models(f"{name.split('.')[0][:8]}*")[:5])
        raise ConfigError(
            f"backbone '{name}': timm cannot return feature maps of it ({error}). "
            f"Expected a timm model{f', such as {near}' if near else ''}."
        ) from error
    fault = fault_of_maps(model)
    if fault:
        raise ConfigError(
            f"backbone '{name}' {fault}; choose a convolutional one, such as resnet50 or convnext_tiny"
        )
    return model.feature_info


def fault_of_maps(model: Any) -> str | None:
    """Return why a detector cannot use the feature maps of a model on the meta device, or None if it can."""
    if model.pretrained_cfg.get("fixed_input_size"):
        _, height, width = model.pretrained_cfg["input_size"]
        return f"takes images of {height}x{width} pixels alone, but a detector gets images of any size"
    height, width = 97, 163  # no multiples of a stride
    try:
        maps = model.eval()(torch.empty(1, 3, height, width, device="meta"))
    except (RuntimeError, AssertionError):
        return f"cannot take an image of {height}x{width} pixels, but a detector gets images of any size"
    info = model.feature_info
    for features, channels, stride in zip(maps, info.channels(), info.reduction(), strict=True):
        # Two cells, because some models pad images to whole patches.
        near = abs(features.shape[-2] - height / stride) < 2 and abs(features.shape[-1] - width / stride) < 2
        if features.shape[1] != channels or not near:
            found, stated = (
                "x".join(map(str, features.shape[1:])),
                f"{channels} channels at a stride of {stride}",
            )
            return f"has a map of {found} for {height}x{width} pixels, not of {stated}"
    return None
