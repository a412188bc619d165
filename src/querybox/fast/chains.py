"""Chains of modules that are called directly one after another, according to the forward methods of known classes.

Two modules can be fused only if nothing else uses the output of the first. `CHAINS` lists such modules for classes of
timm and querybox, by exact type; nothing is assumed about other classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from timm.layers.conv_bn_act import ConvNormAct
from timm.layers.separable_conv import SeparableConvNormAct
from timm.layers.squeeze_excite import SEModule
from timm.models import _efficientnet_blocks as efficientnet
from timm.models import byobnet, hgnet, regnet, resnet, resnetv2
from timm.models._features import FeatureDictNet, FeatureListNet
from timm.models.densenet import DenseLayer
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3Features
from torch import nn

from querybox.fast.replacement import is_plain
from querybox.modules.blocks import ConvNorm, FeedForward
from querybox.modules.heads import BoxHead, DeltaHead, EdgeHead
from querybox.modules.masks import CellBlock

SEQUENTIAL = (nn.Sequential, ConvNorm, FeedForward, BoxHead, DeltaHead, EdgeHead)
"""Classes whose forward method calls their children in order."""

CHAINS: dict[type[nn.Module], str] = {
    ConvNormAct: "conv bn aa",
    SeparableConvNormAct: "conv_dw conv_pw bn",
    SEModule: "fc1 bn act fc2 gate",
    efficientnet.SqueezeExcite: "conv_reduce act1 conv_expand gate",
    resnet.BasicBlock: "conv1 bn1 drop_block act1 aa conv2 bn2 se drop_path",
    resnet.Bottleneck: "conv1 bn1 act1 conv2 bn2 drop_block act2 aa conv3 bn3 se drop_path",
    regnet.Bottleneck: "conv1 conv2 se conv3 drop_path",
    byobnet.BasicBlock: "conv1_kxk attn conv2_kxk attn_last drop_path",
    byobnet.BottleneckBlock: "conv1_1x1 conv2_kxk conv2b_kxk attn conv3_1x1 attn_last drop_path",
    byobnet.DarkBlock: "conv1_1x1 attn conv2_kxk attn_last drop_path",
    byobnet.EdgeBlock: "conv1_kxk attn conv2_1x1 attn_last drop_path",
    efficientnet.ConvBnAct: "conv bn1 aa drop_path",
    efficientnet.DepthwiseSeparableConv: "conv_s2d bn_s2d conv_dw bn1 aa se conv_pw bn2 drop_path",
    efficientnet.InvertedResidual: "conv_s2d bn_s2d conv_pw bn1 conv_dw bn2 aa se conv_pwl bn3 drop_path",
    efficientnet.EdgeResidual: "conv_exp bn1 aa se conv_pwl bn2 drop_path",
    efficientnet.UniversalInvertedResidual: "dw_start pw_exp dw_mid se pw_proj dw_end layer_scale drop_path",
    resnetv2.PreActBasic: "conv1 norm2 conv2 drop_path",
    resnetv2.PreActBottleneck: "conv1 norm2 conv2 norm3 conv3 drop_path",
    hgnet.ConvBNAct: "conv bn act lab",
    CellBlock: "norm pointwise activation",
    DenseLayer: "norm1 conv1 norm2 conv2",
    EfficientNetFeatures: "conv_stem bn1",
    MobileNetV3Features: "conv_stem bn1 act1",
}
"""The children that a forward method calls as a chain, in order; those that are None or missing are skipped."""

KNOWN = ("timm", "querybox")
"""Packages whose classes call a `torch.nn.Sequential`, also in a list, as a whole; others may call its children
individually."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The attribute of a parent module that holds a child."""

    parent: nn.Module
    name: str

    @property
    def module(self) -> nn.Module | None:
        """The child, or None."""
        module: nn.Module | None = getattr(self.parent, self.name, None)
        return module

    def put(self, module: nn.Module) -> None:
        """Replace the child."""
        setattr(self.parent, self.name, module)


def chains(model: nn.Module) -> Iterator[list[Slot]]:
    """Yield the chains in `model`, longer ones before those that they contain.

    Modules that occur several times in the model are in no chain, because changing them would change all occurrences.
    """
    occurrences: Counter[int] = Counter(
        id(child) for parent in model.modules() for child in parent._modules.values() if child is not None
    )

    def without_shared(chain: list[Slot]) -> Iterator[list[Slot]]:
        part: list[Slot] = []
        for slot in chain:
            if occurrences[id(slot.module)] == 1:
                part.append(slot)
            else:
                yield part
                part = []
        yield part

    def visit(module: nn.Module, *, called_as_a_whole: bool) -> Iterator[list[Slot]]:
        if called_as_a_whole or type(module) not in SEQUENTIAL:
            for chain in chains_of(module):
                yield from without_shared(list(flattened(chain)))
        known = type(module).__module__.partition(".")[0] in KNOWN
        inside = known or (called_as_a_whole and type(module) in (nn.Sequential, nn.ModuleList))
        for child in module.children():
            yield from visit(child, called_as_a_whole=inside)

    yield from visit(model, called_as_a_whole=True)


def chains_of(module: nn.Module) -> list[list[Slot]]:
    """Return the chains of children that `module` calls; none if its class is unknown."""
    if "forward" in vars(module):
        return []
    kind = type(module)
    if kind in (FeatureListNet, FeatureDictNet):
        assert isinstance(module, FeatureDictNet)
        return split(list(children(module)), after=module.return_layers)
    if kind in SEQUENTIAL:
        return [list(children(module))]
    names = CHAINS.get(kind, "").split()
    chain = [Slot(module, name) for name in names]
    return [[slot for slot in chain if slot.module is not None]]


def children(module: nn.Module) -> Iterator[Slot]:
    """Yield the slot of every child."""
    yield from (Slot(module, name) for name in module._modules)


def split(chain: list[Slot], after: dict[str, str]) -> list[list[Slot]]:
    """Split the chain after modules whose output is also returned as a feature map."""
    parts: list[list[Slot]] = [[]]
    for slot in chain:
        parts[-1].append(slot)
        if slot.name in after:
            parts.append([])
    return parts


def flattened(chain: list[Slot]) -> Iterator[Slot]:
    """Yield the chain, with modules that are chains themselves replaced by their children."""
    for slot in chain:
        module = slot.module
        assert module is not None
        if is_plain(module) and type(module) in (*SEQUENTIAL, ConvNormAct):
            for inner in chains_of(module):
                yield from flattened(inner)
        else:
            yield slot
