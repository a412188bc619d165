from __future__ import annotations

import math

import torch
from torch import nn

from querybox.training.ema import MovingAverage


def test_the_average_follows_the_weights_as_its_formula_says() -> None:
    model = nn.Linear(3, 2)
    average = MovingAverage(model, 0.9)
    expected = model.weight.detach().clone()
    for step in range(1, 201):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.model.weight.detach(), expected)


def test_the_decay_rises_with_its_time_constant() -> None:
    average = MovingAverage(nn.Linear(1, 1), 0.9999, warmup=2000)
    decays = [average.decay_after(step) for step in (1, 2000, 100_000)]
    torch.testing.assert_close(decays, [0.9999 * 0.00049987502, 0.9999 * (1 - 1 / math.e), 0.9999])


def test_the_average_is_a_copy_that_is_neither_trained_nor_in_training_mode() -> None:
    model = nn.Linear(2, 2).train()
    average = MovingAverage(model, 0.5)
    assert not average.model.training
    assert model.training
    assert not average.model.weight.requires_grad
    before = average.model.weight.clone()
    with torch.no_grad():
        model.weight.add_(1)
    assert torch.equal(average.model.weight, before)


def test_statistics_of_batch_norms_are_averaged_and_counters_are_copied() -> None:
    model = nn.BatchNorm1d(2)
    average = MovingAverage(model, 0.99)
    assert model.running_mean is not None
    assert model.num_batches_tracked is not None
    model.running_mean.fill_(3)
    model.num_batches_tracked.fill_(7)
    average.update(model, 1)
    torch.testing.assert_close(
        average.model.running_mean, torch.full((2,), 3 * 9 / 11)
    )  # decay (1 + 1) / (10 + 1)
    assert average.model.num_batches_tracked is not None
    assert average.model.num_batches_tracked.item() == 7
