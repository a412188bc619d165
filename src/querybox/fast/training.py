"""The detector as it is trained: the same parameters and the same mathematics, in fewer and faster steps.

What is evaluated and saved is the plain `Detector`; this one is a copy that has the plain one's very parameters.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, fx, nn

from querybox.fast.backbone import Tracer
from querybox.fast.deformable import bordered, corners
from querybox.fast.kernels import AttentionCore, ReLUDropout, Softmax, WeightedRows, drop, linear
from querybox.modules.attention import Attention, attention_mask
from querybox.modules.backbone import Backbone
from querybox.modules.blocks import FeedForward
from querybox.modules.deformable_attention import DeformableAttention
from querybox.modules.detector import DetectionTransformer
from querybox.structures import Levels, at_least_float32


def for_training(detector: DetectionTransformer) -> DetectionTransformer:
    """Return a detector to train in the place of `detector`, which learns what this one does.

    Parameters and buffers are those of `detector`, not copies of them.
    """
    shared = [*detector.parameters(), *detector.buffers()]
    fast = copy.deepcopy(detector, {id(tensor): tensor for tensor in shared})
    for module in list(fast.modules()):
        if isinstance(module, Backbone):
            module.body = fold_batch_norms(module.body)
    if detector.device.type == "cpu":
        for part in (fast.neck, fast.encoder, fast.decoder):
            quicken(part)
    return fast


def fold_batch_norms(body: nn.Module) -> nn.Module:
    """Compute every convolution of `body`, a timm model, and the frozen batch norm after it as one convolution.

    A model that cannot be traced, because what it does depends on what it sees, stays as it is.
    """
    try:
        graph = Tracer().trace(body)
    except Exception:  # noqa: BLE001 - whatever the model's own code raises when it meets a proxy
        return body
    modules = dict(body.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    traced = fx.GraphModule(body, graph)
    for node in list(graph.nodes):
        users = list(node.users)
        if calls[node.target] != 1 or len(users) != 1 or calls[users[0].target] != 1:
            continue
        conv, norm = modules[node.target], modules[users[0].target]
        if type(conv) is nn.Conv2d and isinstance(norm, nn.BatchNorm2d) and conv.padding_mode == "zeros":
            traced.set_submodule(node.target, FoldedConv2d(conv, norm))
            users[0].replace_all_uses_with(node)
            graph.erase_node(users[0])
    traced.recompile()
    return traced


class FoldedConv2d(nn.Module):
    """A convolution with the batch norm after it in its weights; gradients reach the convolution's own weight."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm

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


def quicken(part: nn.Module) -> None:
    """Replace what `training.kernels` computes faster, at any depth of `part`."""
    for name, child in part.named_children():
        for kind, quick in QUICK.items():
            if isinstance(child, kind):
                setattr(part, name, quick(child))
                break
        else:
            quicken(child)


class QuickLinear(nn.Module):
    """A linear layer."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = plain.weight, plain.bias

    def forward(self, x: Float[Tensor, "*shape in"]) -> Float[Tensor, "*shape out"]:
        """Project."""
        return linear(x, self.weight, self.bias)


class QuickDropout(nn.Module):
    """Dropout."""

    def __init__(self, plain: nn.Dropout) -> None:
        super().__init__()
        self.dropout = plain.p

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Drop, in training."""
        return drop(x, self.dropout) if self.training else x


class QuickFeedForward(nn.Module):
    """The feed-forward network of a transformer layer."""

    def __init__(self, plain: FeedForward) -> None:
        super().__init__()
        widen, _, dropout, narrow = plain
        assert isinstance(widen, nn.Linear)
        assert isinstance(narrow, nn.Linear)
        assert isinstance(dropout, nn.Dropout)
        self.widen, self.narrow, self.dropout = QuickLinear(widen), QuickLinear(narrow), dropout.p

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Widen, cut, drop, narrow."""
        return self.narrow(ReLUDropout.apply(self.widen(x), self.dropout if self.training else 0.0))


class QuickAttention(nn.Module):
    """Multi-head attention."""

    def __init__(self, plain: Attention) -> None:
        super().__init__()
        quicken(plain)
        self.plain = plain

    def forward(
        self,
        query: Float[Tensor, "B Q D"],
        key: Float[Tensor, "B S D"],
        value: Float[Tensor, "B S D"],
        padding_mask: Bool[Tensor, "B S"] | None = None,
        *,
        blocked: Bool[Tensor, "Q S"] | None = None,
    ) -> Float[Tensor, "B Q D"]:
        """Attend from every query to every key that is neither padding nor `blocked` (both True = forbidden)."""
        plain = self.plain
        q, k, v = (plain.split(x) for x in (plain.query(query), plain.key(key), plain.value(value)))
        # [Q, S] or [B, 1, 1, S]
        forbidden = attention_mask(padding_mask, blocked)
        mixed = AttentionCore.apply(q, k, v, forbidden, plain.dropout if self.training else 0.0)
        return plain.output(mixed.transpose(1, 2).flatten(2))


class SparseDeformableAttention(DeformableAttention):
    """Multi-scale deformable attention as a sparse matrix, in float32 at least: 8 bits are too few to say where."""

    def weigh(self, query: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q heads L P"]:
        """Return how much each place counts."""
        weight = self.weight(query).unflatten(2, (self.heads, -1))  # [B, Q, heads, L P]
        return Softmax.apply(at_least_float32(weight)).unflatten(3, (self.levels, self.points))

    def look(
        self,
        value: Float[Tensor, "B S D"],
        levels: Levels,
        places: Float[Tensor, "B Q heads L P 2"],
        weight: Float[Tensor, "B Q heads L P"],
    ) -> Float[Tensor, "B Q D"]:
        """Return what is seen at the places."""
        table = bordered(at_least_float32(value), levels.shapes, self.heads)
        rows, shares = corners(at_least_float32(places), weight, levels, apart=0)
        mixed = WeightedRows.apply(rows.flatten(1, 2), table, shares.flatten(1, 2))  # [B, Q heads, D / heads]
        return mixed.view(*places.shape[:2], -1)


def sparse(plain: DeformableAttention) -> DeformableAttention:
    """Make `plain` a sparse one, in place."""
    quicken(plain)
    plain.__class__ = SparseDeformableAttention
    return plain


QUICK: dict[type[nn.Module], Callable[..., nn.Module]] = {
    Attention: QuickAttention,
    DeformableAttention: sparse,
    FeedForward: QuickFeedForward,
    nn.Linear: QuickLinear,
    nn.Dropout: QuickDropout,
}
