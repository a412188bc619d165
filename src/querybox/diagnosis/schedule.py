"""What can be wrong with how long, how fast and from where the detector was trained."""

from __future__ import annotations

from querybox.diagnosis.finding import Finding
from querybox.diagnosis.run import UNSURE, Run
from querybox.models import find

WILD_RATE = 0.05
"""AdamW moves a weight by about the learning rate a step. So large a share of its size, and nothing settles."""
FAST_RATE = 0.01
"""So large a share is too much for some models: it takes a loss that does not fall to say so."""
USUAL_RATE = 0.003
"""DETR's 1e-4 at width 256."""
SLOW_RATE = 2e-4
"""So small a share takes ten times the steps."""
PLATEAU = 0.9
"""A loss that stays above this share of the first epoch's has not fallen."""
REBOUND = 1.3
"""A loss that ends above so many times its lowest has gone astray."""
FALLING = 0.02
"""A loss that fell by this share from one third of the epochs to the next is still falling."""
ENOUGH_STEPS_FINE_TUNED = 200
GOOD_FIT = 0.8
"""Mean GIoU of the boxes on the training images at which little is left for more steps."""
OVERFIT_GAP = 0.2
"""IoU by which the boxes fit the training images better than new ones."""
OVERFIT_DROP = 0.2
"""Share of the best AP50 that was lost again at the end."""
OVERFIT_LEAST = 0.01
"""AP50 of which the loss is no noise."""


def failed(run: Run) -> Finding | None:
    """A run that an error ended."""
    if not run.record.failed:
        return None
    return Finding(
        name="failed",
        area="schedule",
        explains=1.0,
        cause=f"The run ended with an error: {run.record.ended}",
        evidence={"steps made": run.steps},
        cure="If nothing below says why: look at the images that the error names, train with train.precision=no, and "
        f"lower train.lr (it is {run.plan.lr:g}).",
    )


def lr_too_high(run: Run) -> Finding | None:
    """A learning rate that is large beside the weights, and a loss that shows it."""
    rates = learning_rates(run)
    if not rates or not run.poor:
        return None
    setting, (lr, rate) = max(rates.items(), key=lambda item: item[1][1])
    if not (rate >= WILD_RATE or (rate >= FAST_RATE and goes_astray(run))):
        return None
    losses = run.losses
    course = (
        {"loss of the first epoch": losses[0], "lowest": min(losses), "of the last": losses[-1]}
        if losses
        else {}
    )
    return Finding(
        name="lr_too_high",
        area="schedule",
        explains=1.0 if rate >= WILD_RATE else 0.8,
        cause=f"The learning rate is too high: at {setting}={lr:g} a step changes weights beyond recognition.",
        evidence={
            "change of a weight in a step, as a share of its size": rate,
            "usual": USUAL_RATE,
            **course,
        },
        cure=f"Set {setting}={one_digit(lr * USUAL_RATE / rate)}, and train.warmup_steps=100.",
    )


def goes_astray(run: Run) -> bool:
    """Tell whether the loss does not fall, rises again or ends in an error."""
    losses = run.losses
    stuck = len(losses) > 2 and losses[-1] > min(PLATEAU * losses[0], REBOUND * min(losses))
    return run.record.failed or stuck


def lr_too_low(run: Run) -> Finding | None:
    """A learning rate that is so small beside the weights that they hardly move."""
    rates = learning_rates(run)
    if "train.lr" not in rates or not run.poor or run.record.failed:
        return None
    lr, rate = rates["train.lr"]
    if rate > SLOW_RATE:
        return None
    return Finding(
        name="lr_too_low",
        area="schedule",
        explains=1.0,
        cause=f"The learning rate is too low: at train.lr={lr:g} the weights hardly move.",
        evidence={
            "change of a weight in a step, as a share of its size": rate,
            "usual": USUAL_RATE,
            "most that all steps together can change": rate * run.steps,
        },
        cure=f"Set train.lr={one_digit(lr * USUAL_RATE / rate)}.",
    )


def learning_rates(run: Run) -> dict[str, tuple[float, float]]:
    """Return the learning rates by their settings: as set, and as a share of the weights that they move."""
    parts = run.record.parts or {}
    sizes = {name: part.weight_size for name, part in parts.items() if part.weight_size}
    rates = {}
    if rest := [size for name, size in sizes.items() if name != "backbone"]:
        rates["train.lr"] = run.plan.lr, run.plan.lr / sorted(rest)[len(rest) // 2]
    if "backbone" in sizes:
        rates["train.backbone_lr"] = run.plan.backbone_lr, run.plan.backbone_lr / sizes["backbone"]
    return rates


def one_digit(value: float) -> str:
    """Write a number with one significant digit."""
    return f"{float(f'{value:.0e}'):g}"


def frozen_parts(run: Run) -> Finding | None:
    """Parts that are not trained although they were never trained before."""
    parts = run.record.parts or {}
    fresh = {"decoder"} if run.fine_tuned else set(parts) - {"backbone"}
    if run.recipe.backbone_weights is None and not run.fine_tuned:
        fresh = set(parts)
    frozen = sorted(name for name in fresh & set(parts) if not parts[name].trained)
    if not frozen or not run.poor:
        return None
    trained = sum(part.trained for part in parts.values())
    return Finding(
        name="frozen_parts",
        area="schedule",
        explains=1.0,
        cause=f"Parts with random weights are frozen, so that they can never learn: {', '.join(frozen)}.",
        evidence={
            "share of all parameters that is trained": trained
            / sum(part.parameters for part in parts.values()),
            **{f"parameters of '{name}', none of them trained": parts[name].parameters for name in frozen},
        },
        cure="Take them out of train.freeze, or start from trained weights (--weights).",
    )


def random_backbone(run: Run) -> Finding | None:
    """A backbone that has never seen an image."""
    training = run.record.training
    if run.recipe.backbone_weights is not None or run.fine_tuned or not run.poor:
        return None
    return Finding(
        name="random_backbone",
        area="schedule",
        explains=0.3,
        cause="The backbone starts from random weights; to learn to see takes far more images than to learn to detect.",
        evidence={"training images": training.images} if training else {},
        cure="Set model.backbone_weights=imagenet, or a file of weights.",
    )


def warmup_too_long(run: Run) -> Finding | None:
    """A learning rate that was still rising for most of the run."""
    if not run.poor or not run.steps or run.plan.warmup_steps < run.steps / 2:
        return None
    return Finding(
        name="warmup_too_long",
        area="schedule",
        explains=min(1.0, run.plan.warmup_steps / run.steps) / 2,
        cause="The learning rate was still warming up for half of the run or more.",
        evidence={"steps of the warm-up": run.plan.warmup_steps, "steps made": run.steps},
        cure=f"Set train.warmup_steps={run.steps // 20}, or train longer.",
    )


def too_few_steps(run: Run) -> Finding | None:
    """A run that ended before anything can be learnt, or while the loss was still falling."""
    enough = ENOUGH_STEPS_FINE_TUNED if run.fine_tuned else run.recipe.steps_to_learn
    quick = find("deformable_detr_small").steps_to_learn
    fall = run.fall()
    if not run.poor or not run.steps or (run.steps >= enough and fall is not None and fall < FALLING):
        return None
    left = 1 - min(max(run.fit or 0.0, 0.0) / GOOD_FIT, 1.0)
    epochs = int(run.history["epoch"][-1])
    per_epoch = run.steps / epochs
    longer = max(enough, 2 * run.steps)
    faster = (
        " or set recipe=deformable_detr_small, which takes a tenth of the steps,"
        if enough >= 10 * quick
        else ""
    )
    return Finding(
        name="too_few_steps",
        area="schedule",
        # Where the boxes of the training images fit already, there is little left for more steps.
        explains=max(1 - run.steps / enough, 0.3) * left,
        cause="The detector was trained for too few steps.",
        evidence={
            "steps made": run.steps,
            "steps that such a model takes to begin to find objects": enough,
            "epochs made": epochs,
            "epochs planned": run.plan.epochs,
            **({} if fall is None else {"share by which the loss still fell at the end": fall}),
        },
        cure=f"Set train.epochs={round(longer / per_epoch)} and no shorter train.max_time,{faster} or start from the "
        "weights of a trained detector (--weights).",
    )


def overfitting(run: Run) -> Finding | None:
    """Boxes that fit the training images but not new ones, or an AP that has passed its best."""
    facts, fit, scores = run.record.evaluation, run.fit, run.ap50s
    gap = fit - facts.best_iou if facts and fit and facts.top_score >= UNSURE else 0.0
    best, last = (max(scores), scores[-1]) if scores else (0.0, 0.0)
    by_heart = gap / fit if fit and gap >= OVERFIT_GAP else 0.0
    past_best = 1 - last / best if best - last >= OVERFIT_DROP * best > OVERFIT_LEAST else 0.0
    if not (by_heart or past_best) or goes_astray(run):
        return None
    evidence = {}
    if facts and fit:
        evidence = {
            "mean GIoU of the boxes on the training images": fit,
            "mean IoU of the best boxes on the validation images": facts.best_iou,
        }
    return Finding(
        name="overfitting",
        area="schedule",
        explains=max(by_heart, past_best),
        cause="The detector has learnt the training images by heart: new ones are answered much worse.",
        evidence={**evidence, "best AP50": best, "AP50 at the end": last},
        cure="Label more images; vary them more (data.crop, data.color_jitter, data.vertical_flip); freeze the "
        "backbone (train.freeze=[backbone]) or take a smaller model; stop in time (train.patience). The best detector "
        "was kept.",
    )
