"""The hybrid encoder of RT-DETR (Zhao et al. 2023, section 4.2) and D-FINE."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from querybox.levels import Cells
from querybox.modules.blocks import ConvNorm
from querybox.modules.encoder import EncoderLayer, levels_from_masks, shrink_masks, to_tokens
from querybox.structures import Memory


class RepConv(nn.Module):
    """A 3x3 and a 1x1 convolution, each with a batch norm, added before the activation (RepVGG, Ding et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(width, width, 3, activation=nn.Identity)
        self.conv2 = ConvNorm(width, width, 1, activation=nn.Identity)
        self.activation = nn.SiLU()

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """Return the activation of the sum of both branches."""
        return self.activation(self.conv1(x) + self.conv2(x))

    @torch.no_grad()
    def merged(self) -> nn.Sequential:
        """Return one 3x3 convolution and the activation, which compute the same in evaluation mode."""
        main, small = (fuse_conv_bn_eval(each.conv, each.norm) for each in (self.conv1, self.conv2))
        assert main.bias is not None
        assert small.bias is not None
        main.weight.add_(F.pad(small.weight, [1, 1, 1, 1]))
        main.bias.add_(small.bias)
        return nn.Sequential(main, self.activation)


class CSPRepLayer(nn.Module):
    """Two branches of `hidden` channels, one of which has `blocks` RepVGG blocks, added (RT-DETR's fusion block)."""

    def __init__(self, inputs: int, outputs: int, *, hidden: int, blocks: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, hidden, 1)
        self.conv2 = ConvNorm(inputs, hidden, 1)
        self.bottlenecks = nn.Sequential(*(RepConv(hidden) for _ in range(blocks)))
        self.conv3 = nn.Identity() if hidden == outputs else ConvNorm(hidden, outputs, 1)

    def forward(self, x: Float[Tensor, "B _ h w"]) -> Float[Tensor, "B D h w"]:
        """Return the result, of the same size."""
        result: Tensor = self.conv3(self.bottlenecks(self.conv1(x)) + self.conv2(x))
        return result


class SplitFusion(nn.Module):
    """Fuses two maps of D = `width` channels in a chain of layers of `hidden` channels (D-FINE's RepNCSPELAN4)."""

    def __init__(self, width: int, *, hidden: int, blocks: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(2 * width, 2 * width, 1)
        self.rep1 = CSPRepLayer(width, hidden, hidden=hidden, blocks=blocks)
        self.conv2 = ConvNorm(hidden, hidden, 3)
        self.rep2 = CSPRepLayer(hidden, hidden, hidden=hidden, blocks=blocks)
        self.conv3 = ConvNorm(hidden, hidden, 3)
        self.conv4 = ConvNorm(2 * width + 2 * hidden, width, 1)

    def forward(self, x: Float[Tensor, "B _ h w"]) -> Float[Tensor, "B D h w"]:
        """Return the fused map, given both maps concatenated."""
        first, second = self.conv1(x).chunk(2, 1)
        third = self.conv2(self.rep1(second))
        fourth = self.conv3(self.rep2(third))
        fused: Tensor = self.conv4(torch.cat([first, second, third, fourth], 1))
        return fused


class HybridEncoder(nn.Module):
    """Encoder with self-attention within the coarsest feature map alone (AIFI), and convolutions across maps (CCFF).

    The maps are fused from coarse to fine, then from fine to coarse.
    """

    def __init__(
        self,
        position: nn.Module,
        layers: list[EncoderLayer],
        *,
        levels: int,
        lateral: Callable[[], nn.Module],
        fusion: Callable[[], nn.Module],
        down: Callable[[], nn.Module],
        output: Callable[[], nn.Module],
    ) -> None:
        """Create the encoder.

        Args:
            position: Positional encoding of the cells of the coarsest map.
            layers: Layers of self-attention.
            levels: Number of feature maps, each with half the resolution of the one before.
            lateral: Makes what a map with De channels passes before it is fused with the next finer one.
            fusion: Makes what fuses two maps of the same size, concatenated to 2 De channels, to De.
            down: Makes what halves the resolution of a map before it is fused with the next coarser one.
            output: Makes what projects the fused maps to the D features of the memory tokens.
        """
        super().__init__()
        steps = range(levels - 1)
        self.position = position
        self.layers = nn.ModuleList(layers)
        self.laterals = nn.ModuleList(lateral() for _ in steps)
        self.top_down = nn.ModuleList(fusion() for _ in steps)
        self.downs = nn.ModuleList(down() for _ in steps)
        self.bottom_up = nn.ModuleList(fusion() for _ in steps)
        self.outputs = nn.ModuleList(output() for _ in range(levels))

    def forward(
        self,
        features: list[Float[Tensor, "B De _ _"]],
        padding_mask: Bool[Tensor, "B H W"],
        cells: Cells | None = None,
    ) -> Memory:
        """Encode feature maps, whose cells are concatenated in the memory; see `Encoder.forward`."""
        cells = cells or self.locate(shrink_masks(padding_mask, features))
        assert cells.levels is not None
        tokens = to_tokens(features[-1])  # [B, S of the coarsest map, De]
        for layer in self.layers:
            tokens = layer(tokens, cells.position, cells.padding_mask)
        coarsest = tokens.transpose(1, 2).unflatten(2, features[-1].shape[-2:])
        maps = self.fuse([*features[:-1], coarsest])
        outputs = [to_tokens(project(each)) for project, each in zip(self.outputs, maps, strict=True)]
        return Memory(
            tokens=torch.cat(outputs, 1),  # [B, S, D]
            padding_mask=cells.levels.padding_mask,
            levels=cells.levels,
        )

    def fuse(self, features: list[Float[Tensor, "B De _ _"]]) -> list[Float[Tensor, "B De _ _"]]:
        """Fuse the maps from coarse to fine, then from fine to coarse."""
        *finer, current = features
        laterals = []  # coarse to fine
        for lateral, fusion, feature in zip(self.laterals, self.top_down, reversed(finer), strict=True):
            laterals.append(lateral(current))
            # To the size of the finer map: twice its own, but for odd sizes.
            upsampled = F.interpolate(laterals[-1], size=feature.shape[-2:], mode="nearest")
            current = fusion(torch.cat([upsampled, feature], 1))
        maps = [current]
        for down, fusion, lateral in zip(self.downs, self.bottom_up, reversed(laterals), strict=True):
            maps.append(fusion(torch.cat([down(maps[-1]), lateral], 1)))
        return maps

    def locate(self, masks: list[Bool[Tensor, "B _ _"]]) -> Cells:
        """Return the levels, and positions and mask of the coarsest map, given the maps' masks (True = padding)."""
        return Cells(
            position=to_tokens(self.position(masks[-1])),
            padding_mask=masks[-1].flatten(1),
            levels=levels_from_masks(masks),
        )
