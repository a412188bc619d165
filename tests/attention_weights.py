"""The attention weights that a model uses, and a check that a trace has the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from querybox.inspect import Trace
from querybox.inspect.attention import AttentionMaps


def recorded_weights(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Replace PyTorch's attention by an explicit softmax that adds its weights, [heads, Q, S], to the list."""
    recorded: list[Tensor] = []

    def explicit(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
    ) -> Tensor:
        assert dropout_p == 0.0
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        recorded.append(scores.softmax(-1)[0])
        return scores.softmax(-1) @ v

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", explicit)
    return recorded


def assert_maps(trace: Trace, used: list[Tensor], *, calls: int, contrast: float) -> None:
    """Compare the attention maps of a trace with the weights that were used.

    Args:
        trace: The trace.
        used: The weights of each call, in order.
        calls: Number of calls.
        contrast: The largest weight is at least so many times the mean: a pattern is compared.
    """
    decoder = zip(trace.decoder_self_attention, trace.decoder_cross_attention, strict=True)
    maps = [*trace.encoder_attention, *(each for pair in decoder for each in pair)]
    assert len(maps) == len(used) == calls
    for each, weights in zip(maps, used, strict=True):
        assert isinstance(each, AttentionMaps)
        assert_close(each.weights(), weights, rtol=0, atol=1e-5)
        assert_close(each.weights(slice(1, 3)), weights[:, 1:3], rtol=0, atol=1e-5)
        assert weights.amax() > contrast * weights.mean()
