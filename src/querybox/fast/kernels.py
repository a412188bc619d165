"""What training computes otherwise on a CPU than a reader would write it: the same mathematics, faster, in less memory.

docs/decisions/0011-fast-training.md has what each of them brings.
"""

from __future__ import annotations

import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32
from scipy.sparse import csc_array
from torch import Tensor
from torch.autograd import Function


def keep(shape: torch.Size, dropout: float) -> Tensor:
    """Draw what dropout keeps: True with a probability of 1 - `dropout`, to the nearest 1 / 65536.

    Four of these draws come out of one 64-bit number; PyTorch's own dropout makes a double of each one.
    """
    count = math.prod(shape)
    numbers = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    return (numbers.view(torch.int16)[:count] >= round(dropout * 2**16) - 2**15).view(shape)


def drop(x: Float[Tensor, "*shape"], dropout: float) -> Float[Tensor, "*shape"]:
    """Set a share of the values to zero, and scale up the others, so that their sum is expected to stay."""
    return x * keep(x.shape, dropout) * (1 / (1 - dropout)) if dropout else x


def linear(
    x: Float[Tensor, "*shape in"], weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None
) -> Float[Tensor, "*shape out"]:
    """Project; in float32 as a 1x1 convolution, which PyTorch gives to oneDNN, and a linear layer to MKL."""
    if weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    column = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # [1, in, N, 1], channels last
    y = F.conv2d(column, weight[:, :, None, None], bias)  # [1, out, N, 1]
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class ReLUDropout(Function):
    """ReLU, then dropout; its own result is all that the gradient needs, and the next layer keeps that anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropout: float) -> Tensor:
        """Return an activated tensor of the shape of `x`."""
        ctx.scale = 1 / (1 - dropout)
        y = x.relu()
        if dropout:
            y.mul_(keep(x.shape, dropout)).mul_(ctx.scale)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient where the result is positive."""
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradients[0], y, 0).mul_(ctx.scale), None


class DotProductAttention(Function):
    """Softmax attention with dropout, which keeps one number for each pair of tokens instead of three.

    That number is the attention before dropout, negative where it was dropped.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocked: Tensor | None, dropout: float) -> Tensor:
        """Mix the values, all [B, heads, tokens, head_width]; `blocked` is True where nothing may look."""
        ctx.temperature, ctx.scale = 1 / math.sqrt(q.shape[-1]), 1 / (1 - dropout)
        scores = (q * ctx.temperature) @ k.transpose(-2, -1)  # [B, heads, Q, S]
        if blocked is not None:
            scores.masked_fill_(blocked, -math.inf)
        attention = scores.softmax(-1)
        if dropout:
            attention = torch.where(keep(attention.shape, dropout), attention, -attention)
        mixed = (attention.relu() if dropout else attention) @ (v * ctx.scale)
        ctx.save_for_backward(q, k, v, attention)
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of queries, keys and values."""
        q, k, v, attention = ctx.saved_tensors
        gradient = gradients[0] * ctx.scale
        of_v = attention.relu().transpose(-2, -1) @ gradient
        of_attention = torch.ops.aten.threshold_backward(gradient @ v.transpose(-2, -1), attention, 0)
        of_scores = torch.ops.aten._softmax_backward_data(of_attention, attention.abs(), -1, attention.dtype)
        of_q = (of_scores @ k) * ctx.temperature
        of_k = of_scores.transpose(-2, -1) @ (q * ctx.temperature)
        return of_q, of_k, of_v, None, None


class ShortSoftmax(Function):
    """Softmax along a short last axis; PyTorch's own is made for long ones."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return shares that add up to 1."""
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


class WeightedRows(Function):
    """Weighted sums of rows of a table, an image at a time: a sparse matrix, of K shares a row, times the table."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Int32[Tensor, "B N K"],
        table: Float[Tensor, "B M width"],
        shares: Float[Tensor, "B N K"],
    ) -> Float[Tensor, "B N width"]:
        """Add up."""
        ctx.save_for_backward(rows, table, shares)
        images = zip(rows, table, shares, strict=True)
        return torch.stack([F.embedding_bag(r, t, per_sample_weights=s, mode="sum") for r, t, s in images])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        """Return the gradients of table and shares."""
        rows, table, shares = (tensor.detach() for tensor in ctx.saved_tensors)
        gradient = gradients[0].contiguous()
        size = (rows.shape[1], table.shape[1])  # of one image's matrix
        ends = torch.arange(size[0] + 1, dtype=torch.int32) * rows.shape[2]  # of its rows' entries

        def of_table(rows: Tensor, shares: Tensor, gradient: Tensor) -> Tensor:
            # What are rows of the matrix are columns of its transpose. SciPy takes a tenth of PyTorch's time for these.
            arrays = (shares.flatten().numpy(), rows.flatten().numpy(), ends.numpy())
            return torch.from_numpy(csc_array(arrays, shape=size[::-1]) @ gradient.numpy())

        # A small product is done before a second thread gets a core: those of OpenMP go on spinning for a while.
        workers = min(torch.get_num_threads(), 1 + rows.numel() // 2**20)
        with ThreadPoolExecutor(workers) as threads:
            of_tables = list(threads.map(of_table, rows, shares, gradient))

        of_shares = torch.zeros_like(shares)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
            for image in range(len(rows)):
                arrays = (ends, rows[image].flatten(), of_shares[image].flatten())
                matrix = torch.sparse_csr_tensor(*arrays, size, check_invariants=False)
                # Only where the matrix has entries; these lie in `of_shares`.
                torch.sparse.sampled_addmm(matrix, gradient[image], table[image].T, out=matrix)
        return None, torch.stack(of_tables), of_shares
