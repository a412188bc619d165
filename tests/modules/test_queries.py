"""Which cells of the encoder's maps are proposed."""

from __future__ import annotations

import torch

from querybox.levels import Shapes
from querybox.modules.queries import RankByScore, RankPeaksFirst, prefer_local_maxima, top_k_indices

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


def test_cells_outside_of_the_image_rank_last_and_hide_no_peak() -> None:
    """Their tokens are equal, so that their scores are too, up to rounding that differs between engines."""
    torch.manual_seed(0)
    scores, inside = torch.randn(1, 35), torch.ones(1, 5, 7, dtype=torch.bool)
    inside[:, 3:] = inside[:, :, 5:] = False  # 3 x 5 cells are left
    scores[~inside.flatten(1)] = 4.0
    rounded = torch.where(inside.flatten(1), scores, scores + 1e-6 * torch.randn(1, 35))
    orders = [
        top_k_indices(RankPeaksFirst().scores(each, inside.flatten(1), ((5, 7),)), 15)
        for each in (scores, rounded)
    ]
    assert torch.equal(*orders)
    assert inside.flatten(1).gather(1, orders[0]).all()
    cropped = top_k_indices(prefer_local_maxima(scores.view(1, 5, 7)[:, :3, :5].flatten(1), ((3, 5),)), 15)
    assert torch.equal(orders[0], cropped // 5 * 7 + cropped % 5)
    assert torch.equal(RankByScore().scores(scores, inside.flatten(1), ((5, 7),)), scores)


def test_cells_that_are_no_peaks_rank_by_score_in_half_precision() -> None:
    scores = torch.linspace(-5, -3, 33).bfloat16()[
        None
    ]  # a row of cells, of which the last one is the only peak
    ranked = RankPeaksFirst().scores(scores, torch.ones(1, 33, dtype=torch.bool), ((1, 33),))
    assert top_k_indices(ranked, 33)[0].tolist() == [*range(32, -1, -1)]
