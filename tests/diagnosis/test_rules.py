"""Every rule on the record of a run with that one fault, and on those of good runs."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest
from run_records import (
    CAT,
    DOG,
    FAILED,
    HISTORY,
    LOSSES,
    MISSING,
    RESIZED,
    SHIFTED,
    SHORT,
    classes,
    make_run,
    parts,
    split,
)

from querybox.diagnosis.diagnose import examine
from querybox.diagnosis.finding import Finding
from querybox.diagnosis.run import Run
from querybox.models import FOR_FEW_IMAGES

UNFIT = {**FAILED, "loss_iou": [4.0] * 9}
"""A run that did not even learn the training images."""
FLAT = {**UNFIT, "loss": [20.0] + [8.0] * 8}


SWAPPED = (
    dataclasses.replace(CAT, right=3, taken=52),
    dataclasses.replace(DOG, right=2, taken=33),
)
BROKEN: dict[str, dict[str, Any]] = {
    "lr_too_high": {"lr": 0.1, "history": {**UNFIT, "loss": [40.0] * 9}},
    "lr_too_low": {"lr": 1e-7, "history": {**UNFIT, "loss": [20.0 - 0.01 * n for n in range(9)]}},
    "weight_decay_too_high": {"weight_decay": 10.0, "top_score": 0.02, "history": FLAT},
    "clip_too_low": {"clip": 1e-9, "top_score": 0.02, "history": FLAT},
    "failed": {"failed": True, "ended": "loss_cls became NaN", "history": UNFIT},
    "frozen_parts": {"parts": parts(decoder={"trained": 0}), "history": UNFIT},
    "random_backbone": {"model": {"backbone_weights": None}, "history": FLAT},
    "warmup_too_long": {"warmup_steps": 100_000, "history": FLAT},
    "too_few_steps": {"history": SHORT},
    "still_improving": {"history": {"AP50": [0.05, 0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55]}},
    "overfitting": {"best_iou": 0.3, "history": {"loss_iou": [0.2] * 9}},
    "mixed_up_labels": {"classes": SWAPPED, "history": FAILED},
    "faulty_boxes": {"training": split(faulty_boxes=500), "history": FAILED},
    "repeated_objects": {"training": split(repeated_objects=500)},
    "too_many_objects": {"model": {"queries": 10}, "validation": split(lost_objects=400)},
    "tiny_objects": {**classes(tiny=30, tiny_located=0), "validation": split(median_size=20.0)},
    "unseen_classes": {"training": split(objects={"cat": 1000, "dog": 0})},
    "different_sizes": RESIZED,
    "shifted_boxes": SHIFTED,
    "missing_objects": MISSING,
    "no_object_collapse": {"top_score": 0.02, "history": {**FLAT, "loss_cls": [0.4] * 9}},
    "duplicates": {"repeated": 0.6, "AP50": 0.4, "AP50_once": 0.6},
    "blind_queries": {"sameness": 0.99, "history": FLAT},
    "confused_classes": {"classes": (dataclasses.replace(CAT, right=5, taken=50), DOG)},
    "unrelated_boxes": {"best_iou": 0.36, "other_iou": 0.34, "history": FLAT},
    "loose_boxes": classes(located=10, right=9, taken=1, tiny=0, tiny_located=0),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_fault_is_the_first_finding(name: str) -> None:
    first = examine(make_run(**BROKEN[name]))[0]
    assert first.name == name
    assert 0.05 <= first.explains <= 1
    assert first.cause.endswith((".", "NaN"))
    assert first.cure.endswith(".")
    assert all(map(math.isfinite, first.evidence.values()))


def test_every_rule_is_tested() -> None:
    from querybox.diagnosis.diagnose import CAUSES, SYMPTOMS

    assert {rule.__name__ for rule in (*CAUSES, *SYMPTOMS)} == set(BROKEN)


@pytest.mark.parametrize(
    "good",
    [
        {},
        {"recipe": "deformable_detr_small"},
        {"recipe": "dino_small", "lr": 5e-4},
        {"fine_tuned": True, "history": {**HISTORY, "step": [10.0 * n for n in range(1, 10)]}},
        {"parts": parts(encoder={"trained": 0})},  # on purpose: it learns all the same
        {"history": {"AP": [], "AP50": []}, "validation": None, "evaluation": None},
        {"lr": 1e-2},
        {"validation": split(median_size=30.0)},  # smaller objects that are found
        {"weight_decay": 10.0, "clip": 1e-9},
        {"best_iou": 0.3, "validation": split(most_objects=300)},  # of which 100 are detected
    ],
)
def test_a_good_run_is_not_accused(good: dict[str, Any]) -> None:
    assert examine(make_run(**good)) == []


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_recorded_accuses_nobody(name: str) -> None:
    """An older version's folder has settings and metrics only."""
    nothing: dict[str, Any] = {"training": None, "validation": None, "parts": None}
    change = {key: BROKEN[name][key] for key in ("model", "history", "warmup_steps") if key in BROKEN[name]}
    found = examine(make_run(**nothing, **change, evaluation=None))
    assert {finding.name for finding in found} <= {
        *("too_few_steps", "random_backbone", "warmup_too_long", "overfitting", "still_improving")
    }


def only(found: list[Finding], name: str) -> Finding:
    (finding,) = (finding for finding in found if finding.name == name)
    return finding


def test_the_learning_rate_at_fault_is_named() -> None:
    finding = only(examine(make_run(backbone_lr=1.0, history=UNFIT)), "lr_too_high")
    assert "train.backbone_lr=1 " in finding.cause
    assert "train.backbone_lr=0.0002," in finding.cure


def test_a_high_learning_rate_takes_a_loss_that_shows_it() -> None:
    falling = make_run(lr=1e-3, history={**FAILED, "loss": LOSSES})
    rising = make_run(
        lr=1e-3, history={**FAILED, "loss": [20.0, 10.0, 8.0, 9.0, 11.0, 13.0, 14.0, 15.0, 16.0]}
    )
    assert "lr_too_high" not in names(falling)
    assert names(rising)[0] == "lr_too_high"


def test_backbones_may_be_frozen_unless_they_are_random() -> None:
    frozen = parts(backbone={"trained": 0, "weight_size": None})
    assert "frozen_parts" not in names(make_run(parts=frozen, history=UNFIT))
    assert "frozen_parts" in names(make_run(parts=frozen, history=UNFIT, model={"backbone_weights": None}))
    assert "frozen_parts" not in names(
        make_run(parts=parts(neck={"trained": 0}), history=UNFIT, fine_tuned=True)
    )


def test_relatives_take_fewer_steps() -> None:
    flat = {**FLAT, "step": [100.0 * n for n in range(1, 10)]}
    assert "too_few_steps" in names(make_run("detr_small", history=flat))
    assert "too_few_steps" not in names(make_run("dino_small", history=flat))


def test_training_images_that_fit_do_not_ask_for_more_steps() -> None:
    assert "too_few_steps" not in names(make_run(history={**SHORT, "loss_iou": [0.3, 0.3, 0.3]}))


def test_a_collapse_is_told_from_a_beginning_by_a_settled_loss_of_the_classes() -> None:
    early = {**FLAT, "step": [10.0 * n for n in range(1, 10)], "loss_iou": [1.7] * 9}
    settled, falling = [0.4] * 9, [2.0 / n for n in range(1, 10)]
    assert names(make_run(top_score=0.02, history={**early, "loss_cls": settled}))[0] == "no_object_collapse"
    assert names(make_run(top_score=0.02, history={**early, "loss_cls": falling}))[0] == "too_few_steps"


def test_scores_are_low_in_the_first_steps() -> None:
    """A cure that lowers the learning rate would make it worse."""
    beginning = {**SHORT, "loss_cls": [2.0, 1.9, 1.8]}
    assert "no_object_collapse" not in names(make_run("dino_small", top_score=0.02, history=beginning))
    empty = split(empty_images=190)
    assert "no_object_collapse" in names(
        make_run("dino_small", top_score=0.02, history=beginning, training=empty)
    )


def test_parts_of_a_module_that_are_frozen() -> None:
    """All but the heads of the decoder."""
    finding = only(examine(make_run(parts=parts(decoder={"trained": 100}), history=UNFIT)), "frozen_parts")
    assert finding.evidence["frozen parameters of 'decoder'"] == 900
    heads = parts(decoder={"trained": 100})
    assert "frozen_parts" not in names(make_run(parts=heads, history=UNFIT, fine_tuned=True))


def test_the_warm_up_of_a_run_that_is_too_short_is_not_at_fault() -> None:
    assert names(make_run(warmup_steps=10, history=SHORT)) == ["too_few_steps"]


def test_an_ap_that_is_past_its_best_is_overfitting() -> None:
    finding = only(
        examine(make_run(history={"AP50": [0.1, 0.3, 0.5, 0.6, 0.6, 0.5, 0.4, 0.35, 0.3]})), "overfitting"
    )
    assert finding.explains == pytest.approx(0.5)
    assert finding.evidence["best AP50"] == 0.6


RISING: dict[str, Any] = {"history": BROKEN["still_improving"]["history"]}


@pytest.mark.parametrize(
    ("run", "cure"),
    [
        ({"ended": "epochs"}, "Set train.epochs=18."),
        ({"ended": "epochs", "max_time": 700.0}, "Set train.epochs=18 and train.max_time=18m."),
        ({"ended": "epochs", "max_time": 1e4}, "Set train.epochs=18."),
        ({"ended": "time", "epochs": 10_000, "max_time": 540.0}, "Set train.max_time=18m."),
        ({"ended": "time", "epochs": 15, "max_time": 540.0}, "Set train.epochs=18 and train.max_time=18m."),
        ({"ended": "patience", "epochs": 100, "patience": 3}, "Set a larger train.patience than 3."),
        ({"ended": None, "epochs": 100}, "Resume the run (--resume)."),
    ],
)
def test_a_rising_ap_asks_for_what_ended_the_run(run: dict[str, Any], cure: str) -> None:
    assert only(examine(make_run(**RISING, **run)), "still_improving").cure == cure


@pytest.mark.parametrize(
    "AP50", [[0.3, 0.5], [0.1, 0.5, 0.51], [0.3, 0.6, 0.5], [0.0, 0.0, 0.0], [0.4, 0.5, 0.6, 0.6, 0.61, 0.61]]
)
def test_an_ap_that_has_settled_does_not(AP50: list[float]) -> None:
    history = {name: values[: len(AP50)] for name, values in HISTORY.items()}
    assert "still_improving" not in names(make_run(history={**history, "AP50": AP50}))


SET: dict[str, dict[str, Any]] = {
    "train.warmup_steps=100": {"warmup_steps": 100},
    "train.freeze=[backbone]": {"freeze": ("backbone",)},
    "train.patience": {"patience": 5},
    "data.color_jitter": {"data": {"color_jitter": 0.3}},
    "data.vertical_flip": {"data": {"vertical_flip": 0.5}},
    "data.crop": {"data": {"crop": 1.0}},
    "--weights": {"fine_tuned": True},
    "recipe=dino_small": {"recipe": "dino_small"},
    "model.local_start": {"model": {"local_start": True}},
    "model.backbone_weights": {"model": {"backbone_weights": "imagenet"}},
}
"""What a cure may advise, and a run that has it already."""


@pytest.mark.parametrize("advice", SET)
def test_what_is_set_is_not_advised(advice: str) -> None:
    assert any(advises(case, advice) for case in BROKEN.values())
    for name, case in BROKEN.items():
        settings = {
            part: {**case[part], **value} if isinstance(value, dict) and part in case else value
            for part, value in SET[advice].items()
        }
        assert not advises({**case, **settings}, advice), name


def test_cures_do_not_contradict_each_other() -> None:
    """Rates are not raised and lowered, a warm-up is not lengthened and shortened, and random weights not frozen."""
    slow = examine(make_run(**BROKEN["lr_too_low"], top_score=0.02))
    assert not any("Lower train.lr" in each.cure for each in slow)
    warming = make_run(lr=0.1, warmup_steps=2500, history=SHORT)
    assert {"lr_too_high", "warmup_too_long"} <= set(names(warming))
    assert "train.warmup_steps" not in only(examine(warming), "lr_too_high").cure
    random = {**BROKEN["overfitting"], "model": {"backbone_weights": None}}
    assert not advises(random, "train.freeze=[backbone]")


def test_only_the_recipe_of_auto_is_advised() -> None:
    cures = " ".join(each.cure for case in BROKEN.values() for each in examine(make_run(**case)))
    assert set(re.findall(r"recipe=(\w+)", cures)) == {FOR_FEW_IMAGES}
    refining = {**BROKEN["loose_boxes"], "recipe": "deformable_detr_small"}
    assert only(examine(make_run(**refining)), "loose_boxes")
    assert not advises(refining, "recipe=")


def test_full_precision_is_advised_to_runs_in_another() -> None:
    failed = BROKEN["failed"]
    assert not advises(failed, "train.precision")
    assert advises({**failed, "precision": "bf16"}, "train.precision=float32")


def advises(case: dict[str, Any], advice: str) -> bool:
    """Return whether a cure of the findings in a run names a setting, an option or a recipe."""
    return any(advice in finding.cure for finding in examine(make_run(**case)))


def test_weak_classes_are_not_mixed_up() -> None:
    """One that answers for all others is a detector that does not know them, not a mistake in the files."""
    names_ = names(
        make_run(
            classes=(
                CAT,
                dataclasses.replace(DOG, right=0, taken=35),
                dataclasses.replace(DOG, name="cow", right=0, taken=35),
            ),
            history=FAILED,
        )
    )
    assert "mixed_up_labels" not in names_
    assert "confused_classes" in names_


RARE = dataclasses.replace(CAT, name="ant", objects=5, located=5, right=5, taken=0, tiny=0, tiny_located=0)


def test_classes_count_alike_as_in_the_ap() -> None:
    """Two rare classes of three are swapped, or random: few of the objects, but two thirds of the AP."""
    cat = dataclasses.replace(CAT, objects=1000, located=1000, right=1000, taken=0, tiny=0, tiny_located=0)
    swapped = [
        dataclasses.replace(RARE, name=name, right=0, taken=5, taken_for=other)
        for name, other in (("ant", "bee"), ("bee", "ant"))
    ]
    mixed = only(examine(make_run(classes=(cat, *swapped), AP50=0.1, history=FAILED)), "mixed_up_labels")
    assert mixed.explains == pytest.approx(2 / 3 / 0.9)
    random = [dataclasses.replace(each, taken_for="cat") for each in swapped]
    confused = only(examine(make_run(classes=(cat, *random), history=FAILED)), "confused_classes")
    assert confused.explains == pytest.approx(0.3 * 2 / 3)
    assert confused.evidence["fraction of 'bee' classified as 'cat'"] == 1
    chance = [dataclasses.replace(each, located=1, taken=1) for each in random]
    assert "confused_classes" not in names(make_run(classes=(cat, *chance), history=FAILED))


def test_similar_classes_are_not_mixed_up() -> None:
    """As after a minute with playing cards: tens are taken for nines, which are recognised."""
    cards = {"ace": (16, 15, "jack", 1), "jack": (21, 6, "king", 13), "king": (24, 15, "jack", 6)} | {
        "nine": (19, 16, "ten", 3), "queen": (17, 2, "king", 10), "ten": (18, 5, "nine", 13)
    }  # fmt: skip
    classes = tuple(
        dataclasses.replace(
            CAT, name=name, objects=located, located=located, right=right, taken_for=other, taken=taken
        )
        for name, (located, right, other, taken) in cards.items()
    )
    found = names(make_run(classes=classes, history=FAILED))
    assert "mixed_up_labels" not in found
    assert "confused_classes" in found


UNRELATED = BROKEN["unrelated_boxes"]


@pytest.mark.parametrize(
    "change",
    [
        {"other_iou": 0.2},  # than that of chance
        {"sameness": 0.99},  # blind queries
        {"best_iou": 0.15, "other_iou": 0.14},  # random weights
        {
            "history": {**FLAT, "step": [500.0 * n for n in range(1, 10)]}
        },  # of 5,000, in which DETR does not learn places
        {"history": {}},
    ],
)
def test_boxes_are_unrelated_only_after_training_that_learned_their_sizes(change: dict[str, Any]) -> None:
    assert "unrelated_boxes" not in names(make_run(**{**UNRELATED, **change}))


@pytest.mark.parametrize("loss", [{"loss_iou": [0.4] * 9}, {**UNFIT, "loss": [20.0 - n for n in range(9)]}])
def test_boxes_are_unrelated_also_where_the_training_images_are_memorised(loss: dict[str, Any]) -> None:
    assert names(make_run(**{**UNRELATED, "history": {**FAILED, **loss}}))[0] == "unrelated_boxes"


def test_boxes_near_objects_by_chance_are_not_loose() -> None:
    assert "loose_boxes" in names(make_run(**BROKEN["loose_boxes"], best_iou=0.4, other_iou=0.2))
    assert "loose_boxes" not in names(make_run(**BROKEN["loose_boxes"], best_iou=0.4, other_iou=0.39))


def test_tiny_objects_count_by_class() -> None:
    """A class of few, tiny objects costs as much AP as one of many."""
    speck = dataclasses.replace(CAT, name="speck", objects=4, located=0, right=0, tiny=4, tiny_located=0)
    finding = only(examine(make_run(classes=(CAT, DOG, speck))), "tiny_objects")
    assert finding.explains > 1 / 3
    assert finding.evidence["stride of the finest feature map, pixels"] == 32


@pytest.mark.parametrize("tiny", [30, 20])  # of 30: of the others, half are located by chance
def test_a_run_of_a_few_steps_is_too_short_before_its_objects_are_too_small(tiny: int) -> None:
    located = (30 - tiny) // 2
    few = classes(objects=30, located=located, right=located, taken=0, tiny=tiny, tiny_located=0)
    assert names(make_run(**few, history=SHORT))[:2] == ["too_few_steps", "tiny_objects"]
    assert names(make_run(**few, history=UNFIT))[0] == "tiny_objects"


@pytest.mark.parametrize(
    ("training", "cure"),
    [
        (split(objects={"cat": 100, "dog": 0}, most_objects=3), "model.queries=10,"),
        (split(empty_images=190), "Remove most of the training images without objects"),
        (split(objects={"cat": 2000, "dog": 2000}), "Lower train.lr"),
    ],
)
def test_a_collapse_is_cured_by_its_reason(training: Any, cure: str) -> None:
    finding = only(examine(make_run(training=training, top_score=0.01, history=FLAT)), "no_object_collapse")
    assert finding.cure.startswith(cure) or f"Set {cure}" in finding.cure


def test_what_could_not_learn_is_not_asked_what_it_answers() -> None:
    found = names(make_run(lr=10.0, top_score=0.0, repeated=1.0, sameness=1.0, history=UNFIT))
    assert found[0] == "lr_too_high"
    assert not {"duplicates", "blind_queries"} & set(found)


def names(run: Run) -> list[str]:
    return [finding.name for finding in examine(run)]
