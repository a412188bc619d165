"""Fusion for inference: batch norms, additions and activations are fused into convolutions and linear layers."""

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
from timm.models.hgnet import LearnableAffineBlock
from timm.models.mobilenetv3 import MobileNetV3Features
from timm.models.regnet import RegStage
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from querybox.fast.chains import Slot, chains, chains_of, flattened
from querybox.fast.convolution import ACTIVATIONS, FusedAffine, FusedConv2d, FusedLinear
from querybox.fast.replacement import has_hooks, is_plain, replace_leaves
from querybox.modules.backbone import Backbone
from querybox.modules.blocks import ConvNorm
from querybox.modules.heads import ClassHead, SigmoidClassHead
from querybox.modules.hybrid import RepConv

FUSED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: FusedConv2d,
    nn.Linear: FusedLinear,
    ClassHead: FusedLinear,
    SigmoidClassHead: FusedLinear,
    LearnableAffineBlock: FusedAffine,
}
"""Layers that can be fused with the operations that follow them, or whose own operations can be fused."""
CONVOLUTIONS = (FusedConv2d, nn.Conv2d, Conv2dSame)
"""Convolutions into which a batch norm can be folded."""
NORMS = (nn.BatchNorm2d, BatchNormAct2d)
BODIES = (FeatureListNet, FeatureDictNet, EfficientNetFeatures, MobileNetV3Features)
"""Backbone bodies that call each stage as a whole."""
NO_OPS = (nn.Identity, nn.Dropout, DropPath)
"""Modules that return their input in evaluation mode."""


def fuse(model: nn.Module) -> None:
    """Fuse the layers of `model`, in place.

    Args:
        model: A model in evaluation mode that shares no modules with others. It may share parameters, because they are
            replaced, not modified.
    """
    merge_branches(model)
    replace_leaves(model, FUSED)
    for chain in chains(model):
        fuse_chain(chain)
    fuse_blocks(model)


def merge_branches(model: nn.Module) -> None:
    """Merge both branches of each `RepConv` of `model`, unless it contains hooks."""
    for parent in list(model.modules()):
        for name, block in list(parent.named_children()):
            if (
                type(block) is RepConv
                and all(type(branch) is ConvNorm for branch in (block.conv1, block.conv2))
                and all(map(is_plain, block.modules()))
            ):
                setattr(parent, name, block.merged())


def fuse_chain(chain: list[Slot]) -> None:
    """Fuse each convolution and linear layer of `chain` with the modules that follow it."""
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
    """Fold a batch norm into the weights of the convolution before it; return False if this is impossible."""
    norm: Any = slot.module
    if norm.running_mean is None or getattr(conv, "activation", nn.Identity) is not nn.Identity:
        return False
    with torch.no_grad():
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    # timm's batch norms may include dropout and an activation.
    rest = [part for part in norm.children() if not is_no_op(part)]
    if (
        len(rest) == 1
        and is_plain(rest[0])
        and isinstance(conv, FusedConv2d)
        and take_activation(conv, rest[0])
    ):
        rest = []
    slot.put(nn.Sequential(*rest) if rest else nn.Identity())
    return True


def take_activation(layer: FusedConv2d | FusedLinear, module: nn.Module) -> bool:
    """Fuse the activation `module` into `layer` if possible; return whether it was."""
    supported = (nn.ReLU, nn.GELU) if isinstance(layer, FusedLinear) else tuple(ACTIVATIONS)
    if layer.activation is not nn.Identity or type(module) not in supported:
        return False
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return False
    layer.activation = type(module)
    return True


class FusedResidual(nn.Module):
    """A residual block whose last convolution also adds the shortcut."""

    def __init__(
        self, body: nn.Sequential, conv: FusedConv2d, shortcut: nn.Module, activation: nn.Module
    ) -> None:
        super().__init__()
        self.body = body
        self.conv = conv
        self.shortcut = shortcut
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the block."""
        shortcut = self.shortcut(x)
        return self.activation(self.conv(self.body(x), shortcut))


def efficientnet_shortcut(block: Any) -> nn.Module | None:
    """Return the shortcut of a block of EfficientNet, or None."""
    return nn.Identity() if block.has_skip else None


RESIDUALS: dict[type[nn.Module], tuple[Callable[[Any], nn.Module | None], str | None]] = {
    resnet.BasicBlock: (lambda block: block.downsample or nn.Identity(), "act2"),
    resnet.Bottleneck: (lambda block: block.downsample or nn.Identity(), "act3"),
    regnet.Bottleneck: (lambda block: block.downsample, "act3"),
    byobnet.BasicBlock: (lambda block: block.shortcut, "act"),
    byobnet.BottleneckBlock: (lambda block: block.shortcut, "act"),
    byobnet.DarkBlock: (lambda block: block.shortcut, "act"),
    byobnet.EdgeBlock: (lambda block: block.shortcut, "act"),
    efficientnet.ConvBnAct: (efficientnet_shortcut, None),
    efficientnet.DepthwiseSeparableConv: (efficientnet_shortcut, None),
    efficientnet.InvertedResidual: (efficientnet_shortcut, None),
    efficientnet.EdgeResidual: (efficientnet_shortcut, None),
    efficientnet.UniversalInvertedResidual: (efficientnet_shortcut, None),
}
"""Blocks that add a shortcut to the output of their chain: a function that returns the shortcut or None, and the name
of the activation after the addition."""


def fuse_blocks(model: nn.Module) -> None:
    """Replace the residual blocks of `model` by fused ones."""
    inner = {id(stage) for stage in stages(model)}
    for parent in list(model.modules()):
        before: nn.Module | None = None
        for name, block in list(parent.named_children()):
            fused = fused_block(block)
            if fused is not None:
                setattr(parent, name, fused)
            if isinstance(fused, FusedResidual):
                fused.conv.overwrite_shortcut = ends_with_convolution(fused.shortcut) or (
                    id(parent) in inner and isinstance(before, FusedResidual) and is_no_op(fused.shortcut)
                )
            before = fused


def stages(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the stages of backbones, if only the forward method of the body calls them.

    In these, the output of a block is used only by the next block; elsewhere it may be collected as a feature map.
    """
    for backbone in model.modules():
        if type(backbone) is Backbone and "forward" not in vars(backbone) and type(backbone.body) in BODIES:
            yield from (part for part in backbone.body.modules() if type(part) in (nn.Sequential, RegStage))


def fused_block(block: nn.Module) -> nn.Module | None:
    """Return an equivalent fused module; None if `block` is not a known residual block or contains hooks."""
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
    """Return the modules of the chain of `module`, without no-ops; an empty list if its class is unknown."""
    steps = [slot.module for chain in chains_of(module) for slot in flattened(chain)]
    return [step for step in steps if step is not None and not is_no_op(step)]


def ends_with_convolution(shortcut: nn.Module) -> bool:
    """Return whether `shortcut` ends with a convolution, whose output nothing else uses."""
    steps = steps_of(shortcut)
    return bool(steps) and type(steps[-1]) is FusedConv2d
