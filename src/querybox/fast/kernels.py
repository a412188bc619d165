"""Operations for training on a CPU that are faster or use less memory than PyTorch's, with the same results.

docs/decisions/0011-fast-training.md has measurements.
"""

from __future__ import annotations

import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import scipy
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32
from torch import Tensor
from torch.autograd import Function

from querybox.fast.convolution import ONEDNN, has_onednn


def keep_mask(shape: torch.Size, dropout: float) -> Tensor:
    """Return a random mask for dropout: True with probability 1 - `dropout`, rounded to 1 / 65536.

    One 64-bit random number gives four values; PyTorch's dropout draws a double for each.
    """
    count = math.prod(shape)
    numbers = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    return (numbers.view(torch.int16)[:count] >= round(dropout * 2**16) - 2**15).view(shape)


def drop(x: Float[Tensor, "*shape"], dropout: float) -> Float[Tensor, "*shape"]:
    """Apply dropout: zero values with probability `dropout`, and scale the others by 1 / (1 - `dropout`)."""
    return x * keep_mask(x.shape, dropout) * (1 / (1 - dropout)) if dropout else x


def linear(
    x: Float[Tensor, "*shape in"], weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None
) -> Float[Tensor, "*shape out"]:
    """Apply a linear layer; in float32 by oneDNN, because PyTorch uses MKL.

    Whether this is faster depends on the processor, see `onednn_is_faster`.
    """
    available = has_onednn(weight.device, weight.dtype) and weight.dtype == torch.float32
    if not available or not x.numel() or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    y: Tensor = OneDNNLinear.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return y.view(*x.shape[:-1], -1)


class OneDNNLinear(Function):
    """A linear layer of rows, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the projected rows."""
        ctx.save_for_backward(x, weight)
        output: Tensor = ONEDNN._linear_pointwise(x, weight, bias, "none", [], "")
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of rows, weight and bias."""
        (x, weight), (gradient,) = ctx.saved_tensors, gradients
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            ONEDNN._linear_pointwise(gradient, weight.T.contiguous(), None, "none", [], "") if of_x else None,
            gradient_of_weight(gradient, x, weight) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )


def gradient_of_weight(
    gradient: Float[Tensor, "N out"], x: Float[Tensor, "N in"], weight: Float[Tensor, "out in"]
) -> Float[Tensor, "out in"]:
    """Return `gradient.T @ x`, by oneDNN: it is the gradient of a 1x1 convolution over an image of N x 1 pixels."""
    of_pixels, pixels = (each.reshape(1, 1, *each.shape).permute(0, 3, 1, 2) for each in (gradient, x))
    kernel = weight[..., None, None]
    return convolution_gradient("weight", of_pixels, pixels, kernel, dilation=POINTWISE_DILATION)[..., 0, 0]


def convolution_gradient(
    of: Literal["input", "weight"],
    gradient: Float[Tensor, "B out H W"],
    x: Float[Tensor, "B in h w"],
    weight: Float[Tensor, "out _ _ _"],
    *,
    stride: tuple[int, ...] = (1, 1),
    padding: tuple[int, ...] = (0, 0),
    dilation: tuple[int, ...] = (1, 1),
    groups: int = 1,
) -> Float[Tensor, "_ _ _ _"]:
    """Return PyTorch's gradient of the input or of the weight of a convolution."""
    wanted = [of == "input", of == "weight", False]
    gradients = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, dilation, False, [0, 0], groups, wanted
    )
    result: Tensor = gradients[wanted.index(True)]
    return result


POINTWISE_DILATION = (2, 2)
"""Dilation of 1x1 convolutions. It changes no result, but PyTorch computes dilated convolutions by oneDNN; others of
this size by MKL with one thread, which takes twice as long where `onednn_is_faster`."""


def onednn_is_faster() -> bool:
    """Return whether `linear` takes less time than PyTorch's linear layer on this processor.

    It does with AVX-512 instructions, and takes longer with AVX2 alone. The instructions decide, not a timing, which
    load on the machine could change: a resumed run has to compute the same, bit for bit.
    """
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


class ReLUDropout(Function):
    """ReLU, then dropout. The gradient needs only the result, which the next layer saves anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropout: float) -> Tensor:
        """Return the result, with the shape of `x`."""
        ctx.scale = 1 / (1 - dropout)
        y = x.relu()
        if dropout:
            y.mul_(keep_mask(x.shape, dropout)).mul_(ctx.scale)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of `x`, which is nonzero where the result is positive."""
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradients[0], y, 0).mul_(ctx.scale), None


class DotProductAttention(Function):
    """Scaled dot-product attention with dropout that saves one number per pair of tokens instead of three.

    This number is the attention weight before dropout, negated if it was dropped.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocked: Tensor | None, dropout: float) -> Tensor:
        """Return weighted values; inputs are [B, heads, tokens, head_width], `blocked` True = may not attend."""
        ctx.temperature, ctx.scale, ctx.dropout = 1 / math.sqrt(q.shape[-1]), 1 / (1 - dropout), dropout
        scores = (q * ctx.temperature) @ k.transpose(-2, -1)  # [B, heads, Q, S]
        if blocked is not None:
            scores.masked_fill_(blocked, -math.inf)
        attention = scores.softmax(-1)
        if dropout:
            attention = torch.where(keep_mask(attention.shape, dropout), attention, -attention)
        output = (attention.relu() if dropout else attention) @ (v * ctx.scale)
        ctx.save_for_backward(q, k, v, attention)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of queries, keys and values."""
        q, k, v, attention = ctx.saved_tensors
        gradient = gradients[0] * ctx.scale
        of_attention, kept = gradient @ v.transpose(-2, -1), attention
        if ctx.dropout:
            of_attention = torch.ops.aten.threshold_backward(of_attention, attention, 0)
            attention, kept = attention.abs(), attention.relu()
        of_v = kept.transpose(-2, -1) @ gradient
        of_scores = torch.ops.aten._softmax_backward_data(of_attention, attention, -1, attention.dtype)
        of_q = (of_scores @ k) * ctx.temperature
        of_k = of_scores.transpose(-2, -1) @ (q * ctx.temperature)
        return of_q, of_k, of_v, None, None


class ShortSoftmax(Function):
    """Softmax along a short last axis; PyTorch's is optimised for long ones."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return weights that sum to 1."""
        y = (x - x.amax(-1, keepdim=True)).exp_()
        y.div_(y.sum(-1, keepdim=True))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient of the logits."""
        (y,) = ctx.saved_tensors
        product = y * gradients[0]
        return product.sub_(y * product.sum(-1, keepdim=True))


with warnings.catch_warnings():
    # PyTorch warns once per process that CSR tensors are in beta state. Filters must not change in the backward pass,
    # because they belong to all threads.
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(
        torch.zeros(2, dtype=torch.int32), torch.zeros(0, dtype=torch.int32), torch.zeros(0), (1, 1)
    )


class WeightedRows(Function):
    """Weighted sums of table rows, image by image: a sparse matrix with K entries per row times the table."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Int32[Tensor, "B N K"],
        table: Float[Tensor, "B M width"],
        weights: Float[Tensor, "B N K"],
    ) -> Float[Tensor, "B N width"]:
        """Return the weighted sums."""
        ctx.save_for_backward(rows, table, weights)
        images = zip(rows, table, weights, strict=True)
        return torch.stack([F.embedding_bag(r, t, per_sample_weights=s, mode="sum") for r, t, s in images])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor | None]:
        """Return the gradients of `table` and, if they need one, `weights`."""
        rows, table, weights = (tensor.detach() for tensor in ctx.saved_tensors)
        gradient = gradients[0].contiguous()
        size = (rows.shape[1], table.shape[1])  # of the sparse matrix of one image
        # Index of the end of each row (CSR)
        ends = torch.arange(size[0] + 1, dtype=torch.int32) * rows.shape[2]

        def of_table(rows: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
            # CSR arrays read as CSC give the transpose. SciPy takes a tenth of PyTorch's time for this product.
            arrays = (weights.flatten().numpy(), rows.flatten().numpy(), ends.numpy())
            return torch.from_numpy(scipy.sparse.csc_array(arrays, shape=size[::-1]) @ gradient.numpy())

        # Small products finish before a second thread gets a core, because OpenMP's threads spin for a while. The
        # memory of a thread is new, and the system clears it.
        workers = min(torch.get_num_threads(), 1 + rows.numel() // 2**20)
        if workers == 1:
            of_tables = list(map(of_table, rows, weights, gradient))
        else:
            with ThreadPoolExecutor(workers) as threads:
                of_tables = list(threads.map(of_table, rows, weights, gradient))

        if not ctx.needs_input_grad[2]:
            return None, torch.stack(of_tables), None
        of_weights = torch.zeros_like(weights)
        for image in range(len(rows)):
            arrays = (ends, rows[image].flatten(), of_weights[image].flatten())
            matrix = torch.sparse_csr_tensor(*arrays, size, check_invariants=False)
            # Computes the entries of the matrix only, and writes them to `of_weights`.
            torch.sparse.sampled_addmm(matrix, gradient[image], table[image].T, out=matrix)
        return None, torch.stack(of_tables), of_weights
