"""A copy of the detector for training, with the same parameters and results but faster operations.

The copy is trained; the plain `Detector`, which shares its parameters, is evaluated and saved.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from timm.layers.padding import pad_same
from torch import Tensor, nn

from querybox.fast.chains import chains
from querybox.fast.convolution import extended, is_depthwise
from querybox.fast.depthwise import depthwise, is_large_depthwise
from querybox.fast.kernels import (
    POINTWISE_DILATION,
    DotProductAttention,
    ReLUDropout,
    WeightedRows,
    drop,
    linear,
    onednn_is_faster,
)
from querybox.fast.masks import SparseMaskHead
from querybox.fast.replacement import copy_modules, is_plain, replace_leaves
from querybox.fast.sampling import FastSoftmax, TritonSample, corners, runs_triton, value_table
from querybox.levels import Levels
from querybox.modules.attention import ScaledDotProduct
from querybox.modules.backbone import Backbone
from querybox.modules.deformable_attention import GridSample
from querybox.modules.detector import DetectionTransformer
from querybox.modules.heads import ClassHead, SigmoidClassHead
from querybox.modules.masks import MaskHead
from querybox.structures import at_least_float32


def for_training(detector: DetectionTransformer) -> DetectionTransformer:
    """Return a faster copy to train instead of `detector`, with the same parameters and buffers, not copies of them."""
    fast = copy_modules(detector)
    for module in list(fast.modules()):
        if isinstance(module, Backbone):
            fold_batch_norms(module)
    if detector.device.type == "cpu":
        leaves = LEAVES
        if onednn_is_faster():
            leaves = leaves | LINEAR
            dilate_pointwise_convolutions(fast)
        for part in (fast.neck, fast.encoder, fast.decoder, fast.mask_head):
            if part is not None:
                join_dropout(part)
                replace_leaves(part, leaves)
    elif runs_triton(detector.device):
        replace_leaves(fast, {GridSample: TritonSample})
    return fast


def fold_batch_norms(backbone: Backbone) -> None:
    """Fuse each convolution of `backbone` with the frozen batch norm after it, in place."""
    for chain in chains(backbone):
        steps = [slot for slot in chain if not (type(slot.module) is nn.Identity and is_plain(slot.module))]
        for slot, after in pairwise(steps):
            conv, norm = slot.module, after.module
            if FoldedConv2d.fits(conv, norm) and norm is not None and backbone.is_frozen(norm):
                slot.put(FoldedConv2d(conv, norm))
                after.put(nn.Identity())


def dilate_pointwise_convolutions(model: nn.Module) -> None:
    """Have the 1x1 convolutions of `model` computed by oneDNN, in place; see `POINTWISE_DILATION`."""
    for module in model.modules():
        if type(module) is nn.Conv2d and module.kernel_size == (1, 1):
            module.dilation = POINTWISE_DILATION


class FoldedConv2d(nn.Module):
    """A convolution with the batch norm folded into its weight in each call, so that the weight gets gradients."""

    def __init__(self, conv: Any, norm: Any) -> None:
        super().__init__()
        self.conv: nn.Conv2d = conv
        self.norm: nn.BatchNorm2d = norm

    @staticmethod
    def fits(conv: nn.Module | None, norm: nn.Module | None) -> bool:
        """Return whether the two can be fused."""
        return (
            conv is not None
            and norm is not None
            and type(conv) in (nn.Conv2d, Conv2dSame)
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
        """Convolve and normalise; timm's batch norms may include an activation."""
        conv, norm = self.conv, self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = norm.bias - norm.running_mean * scale
        if conv.bias is not None:
            bias = bias + conv.bias * scale
        weight = conv.weight * scale[:, None, None, None]
        on_cpu = x.device.type == "cpu"
        trained = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        with full_precision_if(on_cpu and trained and conv.groups > 1):
            x = x if torch.is_autocast_enabled(x.device.type) else x.to(scale.dtype)
            padding: Any = conv.padding
            if type(conv) is Conv2dSame and on_cpu and not trained and is_depthwise(conv):
                weight, padding = extended(conv, weight, x)
            elif type(conv) is Conv2dSame:
                x = pad_same(x, list(conv.kernel_size), list(conv.stride), list(conv.dilation))
            if on_cpu and trained and is_large_depthwise(conv):
                x = depthwise(conv, x, weight, bias)
            else:
                x = F.conv2d(x, weight, bias, conv.stride, padding, conv.dilation, conv.groups)
        activation = getattr(norm, "act", None)
        return x if activation is None else activation(x)


def full_precision_if(condition: bool) -> AbstractContextManager[object]:
    """Disable autocast, because the gradient of a depthwise convolution is several times slower in bfloat16 on CPUs."""
    return torch.autocast("cpu", enabled=False) if condition else nullcontext()


def join_dropout(part: nn.Module) -> None:
    """Fuse each ReLU of `part` with the dropout after it, in place."""
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
        """Apply ReLU and, in training, dropout."""
        activated: Tensor = ReLUDropout.apply(x, self.p if self.training else 0.0)
        return activated


class FastLinear(nn.Linear):
    """A linear layer; see `querybox.fast.kernels.linear`."""

    def forward(self, x: Float[Tensor, "*shape in"]) -> Float[Tensor, "*shape out"]:
        """Return the projection."""
        return linear(x, self.weight, self.bias)


class FastDropout(nn.Dropout):
    """Dropout; see `querybox.fast.kernels.drop`."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Apply dropout in training."""
        return drop(x, self.p) if self.training else x


class FastBatchNorm2d(nn.BatchNorm2d):
    """Batch norm; see `take_gradient_in_own_format`."""

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """Return the normalised maps."""
        return take_gradient_in_own_format(super().forward(x))


class FastGroupNorm(nn.GroupNorm):
    """Group norm; see `take_gradient_in_own_format`."""

    def forward(self, x: Float[Tensor, "B D *cells"]) -> Float[Tensor, "B D *cells"]:
        """Return the normalised maps."""
        return take_gradient_in_own_format(super().forward(x))


def take_gradient_in_own_format(maps: Float[Tensor, "B D *cells"]) -> Float[Tensor, "B D *cells"]:
    """Have the gradient of maps made channels-last, if they are. It is a slice if the maps were concatenated to others.

    PyTorch's gradients of norms take ten times as long for a slice.
    """
    if maps.requires_grad and maps.dim() == 4 and maps.is_contiguous(memory_format=torch.channels_last):
        maps.register_hook(partial(Tensor.contiguous, memory_format=torch.channels_last))
    return maps


class FastScaledDotProduct(ScaledDotProduct):
    """Scaled dot-product attention that saves less memory for the backward pass."""

    def forward(
        self,
        query: Float[Tensor, "B heads Q head_width"],
        key: Float[Tensor, "B heads S head_width"],
        value: Float[Tensor, "B heads S value_width"],
        mask: Bool[Tensor, "_ 1 _ S"] | None,
        dropout: float,
    ) -> Float[Tensor, "B heads Q value_width"]:
        """Return the values averaged with the attention weights."""
        output: Tensor = DotProductAttention.apply(query, key, value, mask, dropout)
        return output


class SparseSample(GridSample):
    """Sampling as a product with a sparse matrix, in float32 or more, because bf16 is too coarse for locations."""

    def forward(
        self,
        value: Float[Tensor, "B S D"],
        levels: Levels,
        sampling_locations: Float[Tensor, "B Q heads K 2"],
        attention_weights: Float[Tensor, "B Q heads K"],
        points: tuple[int, ...],
    ) -> Float[Tensor, "B Q D"]:
        """Return the weighted sum over the sampling locations; see `GridSample.forward`."""
        table = value_table(at_least_float32(value), levels.shapes, attention_weights.shape[2])
        locations = at_least_float32(sampling_locations)
        rows, weights = corners(locations, attention_weights, levels, points, image_stride=0)
        output = WeightedRows.apply(rows.flatten(1, 2), table, weights.flatten(1, 2))
        return output.view(*sampling_locations.shape[:2], -1)  # from [B, Q heads, D / heads]


LEAVES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Dropout: FastDropout,
    nn.Softmax: FastSoftmax,
    nn.BatchNorm2d: FastBatchNorm2d,
    nn.GroupNorm: FastGroupNorm,
    ScaledDotProduct: FastScaledDotProduct,
    GridSample: SparseSample,
    MaskHead: SparseMaskHead,
}
"""Modules of the neck, encoder, decoder and mask head that are replaced on a CPU."""
LINEAR: dict[type[nn.Module], type[nn.Module]] = dict.fromkeys(
    (nn.Linear, ClassHead, SigmoidClassHead), FastLinear
)
"""Linear layers that are replaced as well where `onednn_is_faster`."""
