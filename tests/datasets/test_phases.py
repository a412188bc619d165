from __future__ import annotations

import numpy as np
import pytest

from querybox.data import DataSettings
from querybox.data.phases import BatchAugmentation, Phases
from querybox.errors import ConfigError

DEIM = DataSettings(
    image_size=64,
    stretch=True,
    mosaic=0.5,
    mixup=0.5,
    multi_scale=1,
    strong_from=4 / 58,
    mosaic_until=29 / 58,
    strong_until=50 / 58,
)


def epochs_of(settings: DataSettings, epochs: int, time_share: float = 0.0) -> list[list[BatchAugmentation]]:
    phases = Phases(settings, 0, epochs)
    phases.time_share = time_share
    return [[phases.batch(epoch, number, 20) for number in range(20)] for epoch in range(epochs)]


def test_phases_begin_and_end_with_the_published_epochs() -> None:
    run = epochs_of(DEIM, 58)
    strong = [epoch for epoch, batches in enumerate(run) if all(batch.strong for batch in batches)]
    assert strong == list(range(4, 50))
    mosaic = [epoch for epoch, batches in enumerate(run) if all(batch.mosaic for batch in batches)]
    assert mosaic == list(range(4, 29))
    assert not any(
        batch.strong or batch.mosaic for epoch in (*range(4), *range(50, 58)) for batch in run[epoch]
    )
    assert not any(batch.mosaic for epoch in range(29, 50) for batch in run[epoch])
    weights = [[batch.mixup for batch in batches if batch.mixup is not None] for batches in run]
    assert [epoch for epoch, mixed in enumerate(weights) if mixed] == list(range(4, 29))
    flat = [weight for mixed in weights for weight in mixed]
    assert len(flat) / (25 * 20) == pytest.approx(0.5, abs=0.06)
    assert 0.45 <= min(flat) < 0.46
    assert 0.54 < max(flat) <= 0.55


def test_multi_scale_batches_are_there_from_the_beginning_to_the_end_of_strong_augmentation() -> None:
    run = epochs_of(DEIM, 58)
    assert {batch.scale for batches in run[:50] for batch in batches} == {32, 64}
    assert {batch.scale for batches in run[50:] for batch in batches} == {64}
    assert {batch.scale for batch in epochs_of(DEIM.replace(multi_scale=0), 1)[0]} == {None}
    weighted = epochs_of(DEIM.replace(multi_scale=3), 58)[:50]
    scales = [batch.scale for batches in weighted for batch in batches]
    assert scales.count(64) / len(scales) == pytest.approx(3 / 4, abs=0.05)


def test_the_time_limit_counts_if_it_is_ahead() -> None:
    early = epochs_of(DEIM, 58, time_share=0.6)
    assert [batch.strong for batch in early[0]] == [True] * 20
    assert [batch.mosaic for batch in early[0]] == [False] * 20
    assert [batch.strong for batch in early[50]] == [False] * 20
    assert not epochs_of(DEIM, 58, time_share=0.9)[0][0].strong


def test_without_an_end_augmentation_goes_on_to_the_last_batch() -> None:
    settings = DataSettings(mosaic=0.5, mixup=1.0)
    for batch in epochs_of(settings, 3, time_share=1.01)[2]:
        assert (batch.strong, batch.mosaic) == (True, True)
        assert batch.mixup is not None


def test_batches_depend_on_the_seed_the_epoch_and_their_number_alone() -> None:
    run = epochs_of(DEIM, 58)
    assert epochs_of(DEIM, 58)[9] == run[9]
    assert run[8] != run[9]
    other = Phases(DEIM, 1, 58)
    assert [other.batch(9, number, 20) for number in range(20)] != run[9]
    # Not those of the order and of the images, which have seeds of their own.
    assert np.random.default_rng((0, 9, 1)).random() != np.random.default_rng((0, 9, 1, 1)).random()


def test_an_end_before_the_beginning_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"strong_from is 0.5 and strong_until 0.2; expected the smaller"):
        DataSettings.parse({"strong_from": 0.5, "strong_until": 0.2})
