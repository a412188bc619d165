from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from querybox.detector import Detector
from querybox.errors import ConfigError
from querybox.modules.deformable_attention import DeformableAttention
from querybox.training.optim import Schedule, build_optimizer, describe_milestones, describe_warmup, freeze
from querybox.training.settings import TrainSettings


@pytest.fixture
def detector() -> Detector:
    return Detector.from_recipe(
        "detr_small", num_classes=2, backbone="test_efficientnet", width=32, heads=4, feedforward=64
    )


def test_each_trained_parameter_is_in_exactly_one_group(detector: Detector) -> None:
    freeze(detector, ["encoder.layers.0"])
    optimizer = build_optimizer(detector, TrainSettings(lr=1e-4, backbone_lr=1e-5, weight_decay=0.01))
    rest, backbone = optimizer.param_groups
    grouped = [id(parameter) for group in (rest, backbone) for parameter in group["params"]]
    trained = {id(p): name for name, p in detector.named_parameters() if p.requires_grad}
    assert sorted(grouped) == sorted(trained)
    assert {trained[id(p)].split(".")[0] for p in backbone["params"]} == {"backbone"}
    assert "backbone" not in {trained[id(p)].split(".")[0] for p in rest["params"]}
    assert (rest["lr"], backbone["lr"]) == (1e-4, 1e-5)
    assert rest["weight_decay"] == backbone["weight_decay"] == 0.01


def test_norms_and_biases_are_exempt_from_weight_decay_if_set(detector: Detector) -> None:
    names = {id(p): name for name, p in detector.named_parameters() if p.requires_grad}
    optimizer = build_optimizer(detector, TrainSettings(lr=1e-4, backbone_lr=1e-5, decay_norms=False))
    found = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert found == [(1e-4, 1e-4), (1e-4, 0.0), (1e-5, 1e-4), (1e-5, 0.0)]
    exempt = {names[id(p)] for p in optimizer.param_groups[1]["params"]}
    assert "encoder.layers.0.feedforward_residual.norm.weight" in exempt
    assert "decoder.class_head.bias" in exempt
    assert {name for name in names.values() if not name.startswith("backbone.")} - exempt == {
        name for name in names.values() if detector.get_parameter(name).ndim > 1 and "backbone" not in name
    }
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(names)


def test_sampling_offsets_and_reference_points_have_a_learning_rate_of_their_own_if_set() -> None:
    detector = Detector.from_recipe(
        "deformable_detr_small",
        num_classes=2,
        backbone="test_efficientnet",
        width=32,
        heads=4,
        feedforward=64,
    )
    names = {id(p): name for name, p in detector.named_parameters() if p.requires_grad}
    rest, backbone, sampling = build_optimizer(detector, TrainSettings(sampling_lr=3e-6)).param_groups
    assert (rest["lr"], backbone["lr"], sampling["lr"]) == (1e-4, 1e-5, 3e-6)
    found = {names[id(p)] for p in sampling["params"]}
    assert "queries.reference.weight" in found
    assert all(name.split(".")[-2] in ("offset", "reference") for name in found)
    attentions = sum(isinstance(module, DeformableAttention) for module in detector.modules())
    assert len(found) == 2 * (attentions + 1)
    assert len(build_optimizer(detector, TrainSettings()).param_groups) == 2


def test_norms_of_the_backbone_have_a_learning_rate_of_their_own_if_set() -> None:
    detector = Detector.from_recipe(
        "rtdetr_r18", num_classes=2, backbone="test_efficientnet", width=32, heads=4, encoder_width=32
    )
    names = {id(p): name for name, p in detector.named_parameters() if p.requires_grad}
    settings = TrainSettings(lr=1e-4, backbone_lr=1e-5, backbone_norm_lr=2e-4)
    rest, backbone, norms = build_optimizer(detector, settings).param_groups
    assert (rest["lr"], backbone["lr"], norms["lr"]) == (1e-4, 1e-5, 2e-4)
    found = {names[id(p)] for p in norms["params"]}
    body = {name for name in names.values() if name.startswith("backbone.")}
    assert found == {name for name in body if name.split(".")[-2].startswith(("bn", "norm"))} != set()
    assert {names[id(p)] for p in backbone["params"]} == body - found


def test_a_frozen_part_is_not_trained_and_the_rest_is(detector: Detector) -> None:
    freeze(detector, ["backbone", "decoder.layers.1"])
    frozen = {name for name, p in detector.named_parameters() if not p.requires_grad}
    assert frozen == {
        name for name, _ in detector.named_parameters() if name.startswith(("backbone.", "decoder.layers.1."))
    }
    assert len(build_optimizer(detector, TrainSettings()).param_groups) == 1


def test_freezing_what_is_not_there_names_the_nearest(detector: Detector) -> None:
    with pytest.raises(ConfigError, match=r"'encoder.layer.0'.*Did you mean 'encoder.layers.0'"):
        freeze(detector, ["encoder.layer.0"])
    with pytest.raises(ConfigError, match="Its modules: backbone, neck"):
        freeze(detector, ["xyz"])


def test_freezing_everything_is_refused(detector: Detector) -> None:
    with pytest.raises(ConfigError, match="nothing to train"):
        freeze(detector, ["backbone", "neck", "encoder", "queries", "decoder"])


def test_the_step_schedule_decays_at_its_milestones() -> None:
    schedule = Schedule.of(TrainSettings(epochs=6, milestones=(2, 4)), steps_per_epoch=5)
    factors = [schedule.factor(step) for step in range(30)]
    torch.testing.assert_close(factors, [1.0] * 10 + [0.1] * 10 + [0.01] * 10)


@pytest.mark.parametrize(("epochs", "milestone"), [(150, 100), (3, 2), (1, 1)])
def test_the_step_schedule_decays_after_two_thirds_unless_told(epochs: int, milestone: int) -> None:
    assert Schedule.of(TrainSettings(epochs=epochs), steps_per_epoch=7).milestones == (milestone * 7,)


def test_warmup_rises_linearly_step_by_step() -> None:
    schedule = Schedule.of(TrainSettings(epochs=2, warmup_steps=4), steps_per_epoch=10)
    torch.testing.assert_close([schedule.factor(step) for step in range(6)], [0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_the_cosine_schedule_falls_from_one_to_nothing_after_its_warmup() -> None:
    schedule = Schedule.of(TrainSettings(epochs=2, schedule="cosine", warmup_steps=4), steps_per_epoch=10)
    factors = [schedule.factor(step) for step in range(4, 20)]
    assert factors[0] == 1.0
    torch.testing.assert_close(factors[8], 0.5)  # half way
    assert factors == sorted(factors, reverse=True)
    assert 0 < factors[-1] < 0.02
    assert schedule.factor(20) == schedule.factor(99) == 0.0


def test_cosine_comes_to_zero_when_the_time_is_up_too() -> None:
    schedule = Schedule(kind="cosine", total_steps=1000, max_seconds=60.0)
    assert schedule.factor(0, 0.0) == 1.0
    torch.testing.assert_close(schedule.factor(10, 30.0), 0.5)
    torch.testing.assert_close(schedule.factor(500, 1.0), 0.5, msg="the steps are further on than the time")
    assert schedule.factor(10, 61.0) < 1e-12


def test_flat_cosine_falls_to_half_between_its_milestones() -> None:
    settings = TrainSettings(epochs=58, milestones=(29, 50), warmup_steps=20, schedule="flat_cosine")
    schedule = Schedule.of(settings, steps_per_epoch=10)
    factors = [schedule.factor(step) for step in (0, 9, 19, 20, 290, 395, 500, 579)]
    torch.testing.assert_close(factors, [1 / 400, 0.25, 1.0, 1.0, 1.0, 0.75, 0.5, 0.5])
    default = Schedule.of(settings.replace(milestones=None), steps_per_epoch=10)
    assert (default.milestones, default.factor(580)) == ((290, 580), 0.5)


def test_flat_cosine_follows_the_time_if_that_is_further_on() -> None:
    schedule = Schedule(kind="flat_cosine", total_steps=1000, milestones=(500, 1000), max_seconds=60.0)
    times = (0.0, 30.0, 45.0, 60.0, 61.0)
    torch.testing.assert_close([schedule.factor(10, time) for time in times], [1.0, 1.0, 0.75, 0.5, 0.5])
    torch.testing.assert_close(schedule.factor(750, 1.0), 0.75)


@pytest.mark.parametrize("milestones", [(3,), (), (1, 2, 3), (2, 1)])
def test_flat_cosine_has_two_milestones(milestones: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="expected two for flat_cosine, in ascending order"):
        TrainSettings.parse({"schedule": "flat_cosine", "milestones": milestones})


def test_the_schedule_sets_every_group_in_proportion(detector: Detector) -> None:
    optimizer = build_optimizer(detector, TrainSettings(lr=1e-3, backbone_lr=1e-4))
    schedule = Schedule(kind="step", total_steps=10, milestones=(5,))
    assert schedule.apply(optimizer, 0) == 1e-3
    assert schedule.apply(optimizer, 7) == pytest.approx(1e-4)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(1e-5)


@pytest.mark.parametrize(("kind", "highest"), [("cosine", "0.0002"), ("flat_cosine", "0.0001")])
def test_a_run_that_ends_within_its_warm_up_says_which_rate_it_reaches(kind: str, highest: str) -> None:
    schedule = Schedule(kind=kind, total_steps=100, warmup_steps=200, milestones=(50, 100))
    assert f"rises to {highest} only, not to 0.0004: the run has 100 updates" in describe_warmup(
        schedule, 4e-4
    )
    assert not describe_warmup(replace(schedule, total_steps=201), 4e-4)


@pytest.mark.parametrize(
    ("settings", "constant"),
    [
        ({"epochs": 40, "milestones": (40,)}, True),
        ({"epochs": 41, "milestones": (40,)}, False),
        ({"epochs": 30, "milestones": (50, 20)}, False),
        ({"epochs": 30, "milestones": (64, 120), "schedule": "flat_cosine"}, True),
        ({"epochs": 30, "milestones": (40,), "schedule": "cosine"}, False),
        ({"epochs": 30}, False),
        ({"epochs": 30, "milestones": ()}, False),  # as asked for
    ],
)
def test_a_run_that_ends_before_its_milestones_says_so(settings: dict[str, Any], constant: bool) -> None:
    found = TrainSettings(**settings)
    schedule, line = Schedule.of(found, steps_per_epoch=10), describe_milestones(found)
    assert bool(line) == constant
    assert not constant or schedule.factor(10 * found.epochs - 1) == 1.0
    assert not constant or f"the run has {found.epochs} epochs; set train.milestones=null" in line
