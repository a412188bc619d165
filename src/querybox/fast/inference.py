"""A copy of a detector for inference, with its own weights and faster modules."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from querybox.fast.convolution import FusedConv2dSame, use_fused_operators
from querybox.fast.fusion import fuse
from querybox.fast.masks import FusedMaskHead
from querybox.fast.replacement import copy_modules, has_hooks, replace_leaves
from querybox.fast.sampling import FastSoftmax, TableSample, TritonSample, runs_triton
from querybox.levels import Cells, Shapes
from querybox.modules.deformable_attention import DeformableAttention, GridSample
from querybox.modules.detector import DetectionTransformer
from querybox.modules.encoder import shrink_masks
from querybox.modules.masks import MaskHead
from querybox.structures import ImageBatch, Memory

ON_CPU: dict[type[nn.Module], type[nn.Module]] = {
    nn.Softmax: FastSoftmax,
    Conv2dSame: FusedConv2dSame,
    MaskHead: FusedMaskHead,
}
"""Modules that are replaced on a CPU."""
SIZES = 16
"""Number of recent feature map sizes whose cells are cached: 14 MB for DETR R50 at full size."""


def for_inference(
    detector: DetectionTransformer, dtype: torch.dtype, *, compiled: bool
) -> DetectionTransformer:
    """Return a faster copy of `detector` in evaluation mode, with copies of its parameters and buffers.

    Args:
        detector: The detector, in training or evaluation mode.
        dtype: The dtype of the computations.
        compiled: Whether the copy will be compiled, so that operators need not be replaced by fused ones.
    """
    fast = copy_modules(detector)
    for module in fast.modules():
        module.training = False
    fuse(fast)
    replace_leaves(fast, {GridSample: TritonSample if runs_triton(detector.device) else TableSample})
    if detector.device.type == "cpu":
        replace_leaves(fast, ON_CPU)
    copy_shared_tensors(fast, {id(each) for each in (*detector.parameters(), *detector.buffers())})
    set_last_only(fast)
    cache_cells(fast, dtype)
    convert(fast, dtype)
    if not compiled:
        use_fused_operators(fast)
    return fast


def compile_parts(model: DetectionTransformer) -> None:
    """Compile the expensive parts once for all sizes, in place; positions and masks are computed outside of them.

    Parts with deformable attention are not compiled, because they would be recompiled for each size.
    """
    for part in (model.backbone, model.encoder, model.decoder):
        if not any(isinstance(module, DeformableAttention) for module in part.modules()):
            part.compile(dynamic=True)


def copy_shared_tensors(model: nn.Module, shared: set[int]) -> None:
    """Replace the tensors of `model` whose ids are in `shared` by copies, and disable all gradients."""
    copies: dict[int, Tensor] = {}

    def unshared(tensor: Tensor) -> Tensor:
        if id(tensor) not in shared:
            return tensor.requires_grad_(False)
        if id(tensor) not in copies:
            copied = tensor.detach().clone()
            is_parameter = isinstance(tensor, nn.Parameter)
            copies[id(tensor)] = nn.Parameter(copied, requires_grad=False) if is_parameter else copied
        return copies[id(tensor)]

    for module in model.modules():
        tensors: Any
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                tensors[name] = None if tensor is None else unshared(tensor)


def convert(model: DetectionTransformer, dtype: torch.dtype) -> None:
    """Convert the expensive parts to `dtype`, and convolutions to channels-last.

    Positions, queries, heads and their norm stay in float32.
    """
    layers = getattr(model.decoder, "layers", model.decoder)
    encoder = (part for name, part in model.encoder.named_children() if name != "position")
    model.float()
    for part in (model.backbone, model.neck, *encoder, layers):
        part.to(dtype)
    model.to(memory_format=torch.channels_last)
    if dtype != torch.float32:
        for module in model.modules():
            types = {each.dtype for each in module.parameters(recurse=False) if each.is_floating_point()}
            if len(types) == 1:
                module.register_forward_pre_hook(partial(cast, types.pop()))


def cast(dtype: torch.dtype, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Convert the floating-point inputs of a module to the dtype of its parameters (a forward pre-hook)."""
    return tuple(
        each.to(dtype) if isinstance(each, Tensor) and each.is_floating_point() else each for each in inputs
    )


def set_last_only(model: DetectionTransformer) -> None:
    """Let only the last decoder layer predict, if the decoder supports it."""
    decoder: Any = model.decoder
    if hasattr(decoder, "last_only"):
        decoder.last_only = True


def cache_cells(model: DetectionTransformer, dtype: torch.dtype) -> None:
    """Cache the cells of unpadded images, if the encoder accepts them as an argument and nothing is overridden."""
    encoder = model.encoder
    if (
        hasattr(encoder, "locate")
        and "cells" in signature(encoder.forward).parameters
        and not any(map(has_hooks, encoder.modules()))
        and getattr(model.encode, "__func__", None) is DetectionTransformer.encode
    ):
        model.encode = CachedCells(encoder, dtype)  # type: ignore[method-assign]


class CachedCells:
    """Runs the encoder with a cache of the cells of unpadded images of recent sizes."""

    def __init__(self, encoder: nn.Module, dtype: torch.dtype) -> None:
        self.encoder = encoder
        self.dtype = dtype
        self.locate_unpadded = lru_cache(maxsize=SIZES)(self.of_shapes)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the cache."""
        return {"encoder": self.encoder, "dtype": self.dtype}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state with an empty cache."""
        self.__init__(**state)  # type: ignore[misc]

    def __call__(self, features: list[Float[Tensor, "B D _ _"]], batch: ImageBatch) -> Memory:
        """Run the encoder; see `DetectionTransformer.encode`."""
        if batch.padded:
            cells = self.of_masks(shrink_masks(batch.padding_mask, features))
        else:
            shapes = tuple((feature.shape[2], feature.shape[3]) for feature in features)
            cells = self.locate_unpadded(shapes, features[0].device).expand(len(batch.images))
        memory: Memory = self.encoder(features, batch.padding_mask, cells)
        return memory

    def of_masks(self, masks: list[Tensor]) -> Cells:
        """Return the cells of maps with these padding masks."""
        cells: Cells = self.encoder.locate(masks)  # type: ignore[operator]
        return replace(cells, position=cells.position.to(self.dtype))

    def of_shapes(self, shapes: Shapes, device: torch.device) -> Cells:
        """Return the cells of the maps of one unpadded image."""
        masks = [torch.zeros(1, *shape, dtype=torch.bool, device=device) for shape in shapes]
        cells = self.of_masks(masks).unpadded()
        return replace(cells, position=cells.position.contiguous())
