"""A local start: queries begin spread over the image, each looking around its own place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from querybox import Detector, ImageBatch
from querybox.errors import ConfigError
from querybox.modules.attention import Attention
from querybox.modules.position import fine_encoding
from querybox.modules.queries import spread_points

SETTINGS: dict[str, Any] = {
    "width": 128,
    "heads": 8,
    "feedforward": 64,
    "encoder_layers": 0,
    "decoder_layers": 1,
    "queries": 30,
}


def test_points_are_spread_evenly() -> None:
    points = spread_points(100)
    cells = torch.zeros(4, 4).index_put_(tuple((4 * points).long().T), torch.tensor(1.0), accumulate=True)
    assert cells.min() >= 4
    assert cells.max() <= 9


class Dtypes(TorchDispatchMode):
    """Collects the dtypes of all tensors that are computed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call an operator."""
        results = func(*args, **(kwargs or {}))
        self.found |= {each.dtype for each in tree_leaves(results) if isinstance(each, torch.Tensor)}
        return results


@pytest.mark.parametrize("recipe", ["detr_small", "dino_small", "dfine_s"])
def test_a_detector_is_made_on_a_device_without_float64(recipe: str) -> None:
    """As on the GPUs of Apple, with `torch.set_default_device`."""
    settings: dict[str, Any] = {"encoder_layers": 1, "decoder_layers": 1, "queries": 9}
    with Dtypes() as dtypes:
        Detector.from_recipe(recipe, num_classes=2, backbone="test_efficientnet", **settings)
    assert torch.float32 in dtypes.found
    assert torch.float64 not in dtypes.found


def test_fine_encoding_is_that_of_the_place() -> None:
    encoding = fine_encoding(16)
    cells = encoding(torch.zeros(1, 4, 5, dtype=torch.bool))[0]  # [16, 4, 5]
    y, x = torch.tensor(2 * math.pi * 2.5 / 4), torch.tensor(2 * math.pi * 1.5 / 5)
    assert_close(cells[:, 2, 1], encoding.encode(y, x), rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_query_first_looks_around_its_place() -> None:
    torch.manual_seed(0)
    detector = Detector.from_recipe("detr_r18", num_classes=2, local_start=True, stride=16, **SETTINGS).eval()
    images = ImageBatch.from_images([torch.randint(256, (3, 192, 256), dtype=torch.uint8)])
    memory = detector.encoder(detector.neck(detector.backbone(images.images)), images.padding_mask)
    attention = next(m for name, m in detector.decoder.named_modules() if name == "layers.0.cross_attention")
    assert isinstance(attention, Attention)
    query = attention.split(attention.query(detector.queries(memory).position))
    key = attention.split(attention.key(memory.tokens + memory.position))
    weights = (query @ key.transpose(-1, -2) / math.sqrt(16)).softmax(-1).mean(1)[0]  # [Q, S]
    rows, columns = (torch.arange(12) + 0.5) / 12, (torch.arange(16) + 0.5) / 16
    places = torch.cartesian_prod(rows, columns)  # [S, 2]
    distance = torch.cdist(spread_points(30), places)  # [Q, S]
    assert float((weights * distance).sum(1).mean()) < 0.5 * float(distance.mean())


def test_needs_sines() -> None:
    with pytest.raises(ConfigError, match="'local_start' requires position 'sine', got 'learned'"):
        Detector.from_recipe("detr_r18", num_classes=2, local_start=True, position="learned")
