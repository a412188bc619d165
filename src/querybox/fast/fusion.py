"""Fusion for inference: batch norms folded into convolutions, and layers computed with what comes after them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.drop import DropPath
from timm.layers.norm_act import BatchNormAct2d
from timm.models import _efficientnet_blocks as efficientnet
from timm.models import byobnet, regnet, resnet
from timm.models._features import FeatureDictNet, FeatureListNet
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3Features
from timm.models.regnet import RegStage
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from querybox.fast.chains import Slot, chains, chains_of, flattened
from querybox.fast.convolution import ACTIVATIONS, FusedConv2d, FusedLinear
from querybox.fast.replacement import has_hooks, is_plain, replace_leaves
from querybox.modules.backbone import Backbone
from querybox.modules.heads import ClassHead, SigmoidClassHead

FUSED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: FusedConv2d,
    nn.Linear: FusedLinear,
    ClassHead: FusedLinear,
    SigmoidClassHead: FusedLinear,
}
"""Layers that can take in what comes after them."""
CONVOLUTIONS = (FusedConv2d, nn.Conv2d, Conv2dSame)
"""Convolutions into whose weights a batch norm can be folded."""
NORMS = (nn.BatchNorm2d, BatchNormAct2d)
BODIES = (FeatureListNet, FeatureDictNet, EfficientNetFeatures, MobileNetV3Features)
"""Bodies of backbones that call their stages as a whole."""
NO_OPS = (nn.Identity, nn.Dropout, DropPath)
"""What does nothing in evaluation mode."""


def fuse(model: nn.Module) -> None:
    """Fuse the layers of `model`, in place.

    Args:
        model: In evaluation mode, with modules of its own. Its parameters may be those of another model: they are
            replaced, not changed.
    """
    replace_leaves(model, FUSED)
    for chain in chains(model):
        fuse_chain(chain)
    fuse_blocks(model)


def fuse_chain(chain: list[Slot]) -> None:
    """Let every convolution and linear layer of `chain` take in what comes after it."""
    layer: nn.Module | None = None
    for slot in chain:
        module = slot.module
        assert module is not None
        if is_no_op(module):
            continue
        if layer is not None and is_plain(module):
            if isinstance(layer, nn.Conv2d) and type(module) in NORMS and fold(layer, slot):
                layer = layer if is_no_op(slot.module) else None
                continue
            if isinstance(layer, FusedConv2d | FusedLinear) and take_activation(layer, module):
                slot.put(nn.Identity())
                continue
        layer = module if type(module) in (*CONVOLUTIONS, FusedLinear) and is_plain(module) else None


def is_no_op(module: nn.Module | None) -> bool:
    """Return whether `module` returns its input."""
    return module is not None and type(module) in NO_OPS and is_plain(module)


def fold(conv: nn.Conv2d, slot: Slot) -> bool:
    """Fold a batch norm into the weights of the convolution before it; return False where it cannot be done."""
    norm: Any = slot.module
    if norm.running_mean is None or getattr(conv, "activation", nn.Identity) is not nn.Identity:
        return False
    with torch.no_grad():
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    rest = [part for part in norm.children() if not is_no_op(part)]  # timm's may drop and activate too
    if len(rest) == 1 and is_plain(rest[0]) and isinstance(conv, FusedConv2d):
        rest = [] if take_activation(conv, rest[0]) else rest
    slot.put(nn.Sequential(*rest) if rest else nn.Identity())
    return True


def take_activation(layer: FusedConv2d | FusedLinear, module: nn.Module) -> bool:
    """Let `layer` compute the activation `module`, if it can."""
    possible = (nn.ReLU,) if isinstance(layer, FusedLinear) else tuple(ACTIVATIONS)
    if layer.activation is not nn.Identity or type(module) not in possible:
        return False
    layer.activation = type(module)
    return True


class FusedResidual(nn.Module):
    """A residual block whose last convolution adds the shortcut."""

    def __init__(
        self, body: nn.Sequential, conv: FusedConv2d, shortcut: nn.Module, activation: nn.Module
    ) -> None:
        super().__init__()
        self.body = body
        self.conv = conv
        self.shortcut = shortcut
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's feature map."""
        shortcut = self.shortcut(x)
        return self.activation(self.conv(self.body(x), shortcut))


def has_skip(block: Any) -> nn.Module | None:
    """Return the shortcut of EfficientNet's blocks."""
    return nn.Identity() if block.has_skip else None


RESIDUALS: dict[type[nn.Module], tuple[Callable[[Any], nn.Module | None], str | None]] = {
    resnet.BasicBlock: (lambda block: block.downsample or nn.Identity(), "act2"),
    resnet.Bottleneck: (lambda block: block.downsample or nn.Identity(), "act3"),
    regnet.Bottleneck: (lambda block: block.downsample, "act3"),
    byobnet.BasicBlock: (lambda block: block.shortcut, "act"),
    byobnet.BottleneckBlock: (lambda block: block.shortcut, "act"),
    byobnet.DarkBlock: (lambda block: block.shortcut, "act"),
    byobnet.EdgeBlock: (lambda block: block.shortcut, "act"),
    efficientnet.ConvBnAct: (has_skip, None),
    efficientnet.DepthwiseSeparableConv: (has_skip, None),
    efficientnet.InvertedResidual: (has_skip, None),
    efficientnet.EdgeResidual: (has_skip, None),
    efficientnet.UniversalInvertedResidual: (has_skip, None),
}
"""Blocks that add what their chain returns to a shortcut: which one, if any, and the activation after the addition."""


def fuse_blocks(model: nn.Module) -> None:
    """Replace the residual blocks of `model`; most of their modules do nothing any more."""
    inner = {id(stage) for stage in stages(model)}
    for parent in list(model.modules()):
        before: nn.Module | None = None
        for name, block in list(parent.named_children()):
            fused = fused_block(block)
            if fused is not None:
                setattr(parent, name, fused)
            if isinstance(fused, FusedResidual):
                fused.conv.overwrite_shortcut = makes_a_map(fused.shortcut) or (
                    id(parent) in inner and isinstance(before, FusedResidual) and is_no_op(fused.shortcut)
                )
            before = fused


def stages(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the stages of backbones that nothing but the body's forward method calls.

    There no block's output is read by anything but the next block; elsewhere it may be collected as a feature map.
    """
    for backbone in model.modules():
        if type(backbone) is Backbone and "forward" not in vars(backbone) and type(backbone.body) in BODIES:
            yield from (part for part in backbone.body.modules() if type(part) in (nn.Sequential, RegStage))


def fused_block(block: nn.Module) -> nn.Module | None:
    """Return what computes the same as `block`; None where it is no known residual block, or has hooks in it."""
    if type(block) not in RESIDUALS or "forward" in vars(block) or any(map(has_hooks, block.modules())):
        return None
    find_shortcut, name = RESIDUALS[type(block)]
    shortcut = find_shortcut(block)
    activation = getattr(block, name) if name else nn.Identity()
    steps = steps_of(block)
    if shortcut is None:
        return nn.Sequential(*steps, activation)
    conv = steps.pop() if steps else None
    if type(conv) is not FusedConv2d or conv.activation is not nn.Identity:
        return None
    if is_plain(activation) and take_activation(conv, activation):
        activation = nn.Identity()
    return FusedResidual(nn.Sequential(*steps), conv, shortcut, activation)


def steps_of(module: nn.Module) -> list[nn.Module]:
    """Return what the one chain of `module` computes; nothing where its class is not known."""
    steps = [slot.module for chain in chains_of(module) for slot in flattened(chain)]
    return [step for step in steps if step is not None and not is_no_op(step)]


def makes_a_map(shortcut: nn.Module) -> bool:
    """Return whether `shortcut` ends with a convolution, whose output nothing else reads."""
    steps = steps_of(shortcut)
    return bool(steps) and type(steps[-1]) is FusedConv2d
