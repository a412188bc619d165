"""Which cells of the encoder's maps are proposed."""

from __future__ import annotations

import torch

from querybox.levels import Shapes
from querybox.modules.queries import prefer_local_maxima, top_k_indices

SHAPES: Shapes = ((5, 7), (3, 4), (1, 1))


def is_peak(scores: torch.Tensor, row: int, column: int) -> bool:
    around = scores[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
    return bool(scores[row, column] >= around.max())


def test_peaks_are_the_cells_that_no_neighbour_exceeds() -> None:
    torch.manual_seed(0)
    scores = 5 * torch.randn(2, 48)
    ranked = prefer_local_maxima(scores, SHAPES)
    maps = [part.view(2, *shape) for part, shape in zip(scores.split([35, 12, 1], 1), SHAPES, strict=True)]
    for image in range(2):
        peaks = [
            is_peak(each[image], row, column)
            for each in maps
            for row in range(each.shape[1])
            for column in range(each.shape[2])
        ]
        assert 4 < sum(peaks) < 20
        kept = torch.tensor(peaks)
        assert torch.equal(ranked[image][kept], scores[image][kept])
        best = top_k_indices(ranked, 48)[image]
        assert kept[best[: sum(peaks)]].all()
        assert not kept[best[sum(peaks) :]].any()


def test_equals_are_all_peaks() -> None:
    scores = torch.zeros(1, 48)
    assert torch.equal(prefer_local_maxima(scores, SHAPES), scores)
