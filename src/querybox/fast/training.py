"""The detector as it is trained: the same parameters and the same mathematics, in fewer and faster steps.

What is evaluated and saved is the plain `Detector`; the copy that is trained has the very same parameters.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from querybox.fast.chains import chains
from querybox.fast.kernels import (
    DotProductAttention,
    ReLUDropout,
    ShortSoftmax,
    WeightedRows,
    drop,
    linear,
)
from querybox.fast.replacement import copy_modules, is_plain, replace_leaves
from querybox.fast.sampling import bordered, corners
from querybox.modules.attention import ScaledDotProduct
from querybox.modules.backbone import Backbone
from querybox.modules.deformable_attention import GridSample
from querybox.modules.detector import DetectionTransformer
from querybox.modules.heads import ClassHead, SigmoidClassHead
from querybox.structures import Levels, at_least_float32


def for_training(detector: DetectionTransformer) -> DetectionTransformer:
    """Return a detector to train in the place of `detector`, which learns what this one does.

    Parameters and buffers are those of `detector`, not copies of them.
    """
    fast = copy_modules(detector)
    for module in list(fast.modules()):
        if isinstance(module, Backbone):
            fold_batch_norms(module)
    if detector.device.type == "cpu":
        for part in (fast.neck, fast.encoder, fast.decoder):
            join_dropout(part)
            replace_leaves(part, LEAVES)
    return fast


def fold_batch_norms(backbone: nn.Module) -> None:
    """Compute every convolution of `backbone` and the frozen batch norm after it as one convolution, in place."""
    for chain in chains(backbone):
        steps = [slot for slot in chain if not (type(slot.module) is nn.Identity and is_plain(slot.module))]
        for slot, after in pairwise(steps):
            conv, norm = slot.module, after.module
            if FoldedConv2d.fits(conv, norm):
                slot.put(FoldedConv2d(conv, norm))
                after.put(nn.Identity())


class FoldedConv2d(nn.Module):
    """A convolution with the batch norm after it in its weights; gradients reach the convolution's own weight."""

    def __init__(self, conv: Any, norm: Any) -> None:
        super().__init__()
        self.conv: nn.Conv2d = conv
        self.norm: nn.BatchNorm2d = norm

    @staticmethod
    def fits(conv: nn.Module | None, norm: nn.Module | None) -> bool:
        """Return whether the two can be computed as one."""
        return (
            conv is not None
            and norm is not None
            and type(conv) is nn.Conv2d
            and is_plain(conv)
            and conv.padding_mode == "zeros"
            and type(norm) in (nn.BatchNorm2d, BatchNormAct2d)
            and is_plain(norm)
            and isinstance(norm, nn.BatchNorm2d)
            and norm.affine
            and norm.running_mean is not None
            and type(getattr(norm, "drop", nn.Identity())) is nn.Identity
        )

    def forward(self, x: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        """Convolve and normalise; timm's batch norms may activate too."""
        conv, norm = self.conv, self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = norm.bias - norm.running_mean * scale
        if conv.bias is not None:
            bias = bias + conv.bias * scale
        with full_precision_if(conv.groups > 1 and x.device.type == "cpu"):
            x = x if torch.is_autocast_enabled(x.device.type) else x.to(scale.dtype)
            weight = conv.weight * scale[:, None, None, None]
            x = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        activation = getattr(norm, "act", None)
        return x if activation is None else activation(x)


def full_precision_if(condition: bool) -> AbstractContextManager[object]:
    """Leave autocast: CPUs take several times as long for the gradient of a depthwise convolution in bfloat16."""
    return torch.autocast("cpu", enabled=False) if condition else nullcontext()


def join_dropout(part: nn.Module) -> None:
    """Compute every ReLU of `part` and the dropout after it as one step, in place."""
    for chain in chains(part):
        for slot, after in pairwise(chain):
            relu, dropout = slot.module, after.module
            if type(relu) is nn.ReLU and type(dropout) is nn.Dropout and is_plain(relu) and is_plain(dropout):
                slot.put(FastReLUDropout(dropout.p))
                after.put(nn.Identity())


class FastReLUDropout(nn.Module):
    """ReLU, then dropout."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Activate; in training, drop."""
        activated: Tensor = ReLUDropout.apply(x, self.p if self.training else 0.0)
        return activated


class FastLinear(nn.Linear):
    """A linear layer."""

    def forward(self, x: Float[Tensor, "*shape in"]) -> Float[Tensor, "*shape out"]:
        """Project."""
        return linear(x, self.weight, self.bias)


class FastDropout(nn.Dropout):
    """Dropout."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Drop, in training."""
        return drop(x, self.p) if self.training else x


class FastScaledDotProduct(ScaledDotProduct):
    """Softmax attention that keeps less for the backward pass."""

    def forward(
        self,
        query: Float[Tensor, "B heads Q head_width"],
        key: Float[Tensor, "B heads S head_width"],
        value: Float[Tensor, "B heads S value_width"],
        mask: Bool[Tensor, "_ 1 _ S"] | None,
        dropout: float,
    ) -> Float[Tensor, "B heads Q value_width"]:
        """Return the values, averaged by attention."""
        mixed: Tensor = DotProductAttention.apply(query, key, value, mask, dropout)
        return mixed


class FastSoftmax(nn.Softmax):
    """Softmax along the last axis, in float32 at least."""

    @staticmethod
    def fits(softmax: nn.Softmax) -> bool:
        """Return whether it is along the last axis."""
        return softmax.dim == -1

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return weights that add up to 1."""
        weights: Tensor = ShortSoftmax.apply(at_least_float32(x))
        return weights


class SparseSample(GridSample):
    """Samples as a product with a sparse matrix, in float32 at least: 8 bits are too few to say where."""

    def forward(
        self,
        value: Float[Tensor, "B S D"],
        levels: Levels,
        places: Float[Tensor, "B Q heads L P 2"],
        weight: Float[Tensor, "B Q heads L P"],
    ) -> Float[Tensor, "B Q D"]:
        """Return the weighted sum over a query's places."""
        table = bordered(at_least_float32(value), levels.shapes, weight.shape[2])
        rows, shares = corners(at_least_float32(places), weight, levels, apart=0)
        mixed = WeightedRows.apply(rows.flatten(1, 2), table, shares.flatten(1, 2))  # [B, Q heads, D / heads]
        return mixed.view(*places.shape[:2], -1)


LEAVES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: FastLinear,
    ClassHead: FastLinear,
    SigmoidClassHead: FastLinear,
    nn.Dropout: FastDropout,
    nn.Softmax: FastSoftmax,
    ScaledDotProduct: FastScaledDotProduct,
    GridSample: SparseSample,
}
"""Modules of neck, encoder and decoder that are replaced on a CPU."""
