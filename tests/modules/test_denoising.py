"""Denoising queries: how many, how noisy, who sees whom."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch.testing import assert_close

from querybox import Target
from querybox.boxes import to_xyxy
from querybox.models import DINO, find
from querybox.modules.denoising import Denoising, denoising_mask
from querybox.structures import Queries

WIDTH = 8


def make_queries(images: int = 3, count: int = 5) -> Queries:
    return Queries(
        content=torch.randn(images, count, WIDTH),
        position=torch.randn(images, count, WIDTH),
        reference=torch.rand(images, count, 4),
    )


def make_targets(*counts: int) -> list[Target]:
    return [
        Target(
            boxes=torch.cat([0.3 + 0.4 * torch.rand(n, 2), 0.05 + 0.1 * torch.rand(n, 2)], 1),
            labels=torch.randint(4, (n,)),
        )
        for n in counts
    ]


@pytest.mark.parametrize(
    ("counts", "total"),
    [((1, 1, 1), 2 * 100), ((3, 0, 2), 2 * 3 * 33), ((60, 7, 1), 2 * 60), ((150, 1, 1), 2 * 150)],
)
def test_groups_fill_the_count(counts: tuple[int, ...], total: int) -> None:
    made = Denoising(WIDTH, 4)(make_queries(), make_targets(*counts))
    assert made.num_denoising == total
    assert made.content.shape == (3, total + 5, WIDTH)


def test_the_matched_queries_stay_as_they_are() -> None:
    before = make_queries()
    after = Denoising(WIDTH, 4)(before, make_targets(2, 0, 1))
    rest = slice(after.num_denoising, None)
    for name in ("content", "position", "reference"):
        assert torch.equal(getattr(after, name)[:, rest], getattr(before, name))


def test_without_objects_there_is_nothing_to_denoise() -> None:
    """None of the queries, but the losses of an empty set: other processes have some, and wait for this one's."""
    before = make_queries(2)
    after = Denoising(WIDTH, 4)(before, make_targets(0, 0))
    assert after.num_denoising == 0
    assert after.denoising is not None
    assert len(after.denoising.image) == 0
    torch.testing.assert_close(after.content, before.content, rtol=0, atol=0)


def test_pairs_are_the_little_noised_queries_and_their_objects() -> None:
    targets = make_targets(2, 0, 1)
    made = Denoising(WIDTH, 4, count=6, label_noise=0.0)(make_queries(), targets)
    assert made.denoising is not None
    assert made.denoising.query.tolist() == [[0, 1, 0, 4, 5, 4, 8, 9, 8]]
    assert made.denoising.image.tolist() == [0, 0, 2] * 3
    assert made.denoising.object.tolist() == [[0, 1, 2] * 3]


def test_noise_keeps_its_bounds() -> None:
    torch.manual_seed(0)
    (target,) = make_targets(50)
    noisy = Denoising(WIDTH, 4).noisy_boxes(target.boxes.expand(40, -1, -1))
    moved = (
        (to_xyxy(noisy) - to_xyxy(target.boxes)).abs() / target.boxes[:, 2:].repeat(1, 2) * 2
    )  # in half sizes
    assert moved[::2].max() < 1 + 1e-4
    assert moved[1::2].max() < 2 + 1e-4
    assert moved[1::2].min() > 1 - 1e-4
    assert moved[::2].mean() == pytest.approx(0.5, abs=0.02)
    assert moved[1::2].mean() == pytest.approx(1.5, abs=0.02)


def test_boxes_are_not_moved_out_of_the_image() -> None:
    edge = torch.tensor([[0.05, 0.05, 0.1, 0.1], [0.5, 0.5, 1.0, 1.0]])
    noisy = to_xyxy(Denoising(WIDTH, 4).noisy_boxes(edge.expand(100, -1, -1)))
    assert noisy.min() > -1e-6
    assert noisy.max() < 1 + 1e-6


def test_half_the_share_of_labels_is_random() -> None:
    torch.manual_seed(0)
    labels = torch.zeros(20, 2000, dtype=torch.long)
    noisy = Denoising(WIDTH, 10, label_noise=0.5).noisy_labels(labels)
    assert (noisy != 0).float().mean().item() == pytest.approx(
        0.25 * 0.9, abs=0.01
    )  # one in ten draws 0 again
    assert torch.equal(Denoising(WIDTH, 10, label_noise=0.0).noisy_labels(labels), labels)


def test_no_group_sees_another() -> None:
    group = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    wanted = [[own != other for other in group] + [False] * 3 for own in group]
    assert denoising_mask(3, 4, 3, torch.device("cpu")).tolist() == wanted


@pytest.mark.parametrize(
    ("recipe", "coordinates"), [("dino_r50", 0.5), ("rtdetr_r18", 0.0), ("rtdetrv2_s", 0.0), ("dfine_n", 0.0)]
)
def test_slots_without_an_object_are_those_of_the_authors(recipe: str, coordinates: float) -> None:
    settings = {"width": WIDTH, "heads": 2, "denoising": 4}
    denoising = cast("DINO", find(recipe).replace(**settings)).build_denoising(4)
    made = denoising(make_queries(2), make_targets(1, 2))
    empty = torch.tensor([1, 3, 5, 7])  # the second of two slots in each block of the first image
    assert_close(made.content[0, empty], torch.zeros(4, WIDTH))
    assert_close(made.reference[0, empty], torch.full((4, 4), coordinates))
