"""What is shown is what the model's own attention used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_weights import assert_maps, recorded_weights
from torch import Tensor
from torch.testing import assert_close

from querybox.detector import Detector
from querybox.inspect.attention import AttentionMaps, AttentionPoints
from querybox.inspect.calls import recorded
from querybox.modules.deformable_attention import sample
from querybox.structures import ImageBatch


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    return recorded_weights(monkeypatch)


def test_maps_are_those_that_the_model_used(detr: Detector, padded: ImageBatch, used: list[Tensor]) -> None:
    assert_maps(detr.trace(padded), used, calls=2 + 2 * 3, contrast=2)


def test_nothing_is_seen_of_the_padding(detr: Detector, padded: ImageBatch) -> None:
    trace = detr.trace(padded)
    (height, width), *others = trace.grids
    assert (height, width, others) == (3, 4, [])
    for look in (*trace.encoder_attention, *trace.decoder_cross_attention):
        assert isinstance(look, AttentionMaps)
        maps = look.weights().unflatten(2, (height, width))
        assert_close(maps[..., :2, :2].sum((2, 3)), torch.ones(maps.shape[:2]))
        outside = maps.clone()
        outside[..., :2, :2] = 0
        assert not outside.any()


def test_blocked_queries_are_not_seen(detr: Detector) -> None:
    attention = detr.decoder.layers[0].self_attention  # type: ignore[union-attr, index]
    blocked = torch.rand(5, 5, generator=torch.Generator().manual_seed(0)) < 0.4
    blocked.fill_diagonal_(False)
    x = torch.randn(1, 5, 32)
    with recorded({"it": attention}, torch.device("cpu")) as calls:
        attention(x, x, x, blocked=blocked)
    weights = AttentionMaps.of(attention, calls["it"][0]).weights(slice(2, None))
    assert_close(weights.sum(2), torch.ones(4, 3))
    assert not weights[:, blocked[2:]].any()


def test_points_are_those_that_the_model_used(
    relative: Detector, padded: ImageBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[Tensor, Tensor]] = []

    def noting(
        value: Tensor, shapes: Any, places: Tensor, weight: Tensor, points: Any, *others: Any
    ) -> Tensor:
        used.append((places[0].transpose(0, 1), weight[0].transpose(0, 1)))
        return sample(value, shapes, places, weight, points, *others)

    monkeypatch.setattr("querybox.modules.deformable_attention.sample", noting)
    trace = relative.trace(padded)
    looks = (*trace.encoder_attention, *trace.decoder_cross_attention)
    assert len(looks) == len(used) == 2 + 3
    for look, (places, weight) in zip(looks, used, strict=True):
        assert isinstance(look, AttentionPoints)
        mine, weights = look.points()
        # Theirs are in 0-1 of the padded maps.
        valid = look.levels.valid_ratios[0].repeat_interleave(weights.shape[2] // len(trace.grids), 0)
        assert_close(mine * valid, places, rtol=0, atol=1e-5)
        assert_close(weights, weight, rtol=0, atol=1e-5)
        assert_close(weights.sum(2), torch.ones(weights.shape[:2]))
        assert_close(look.points(slice(3, 5))[0], mine[:, 3:5])
