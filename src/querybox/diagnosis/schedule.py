"""Rules about the schedule: duration, learning rates and initial weights."""

from __future__ import annotations

import math

from querybox.diagnosis.finding import Finding, alternatives
from querybox.diagnosis.run import UNSURE, Run
from querybox.evaluation.average_precision import MAX_DETECTIONS
from querybox.models import FOR_FEW_IMAGES, find

WILD_RATE = 0.05
"""Relative change of the weights per step, of about learning rate / weight size with AdamW, that prevents
convergence."""
FAST_RATE = 0.01
"""Relative change per step that is too large for some models, if the loss does not decrease."""
USUAL_RATE = 0.003
"""Relative change per step of DETR, with 1e-4 at width 256."""
SLOW_RATE = 2e-4
"""Relative change per step that needs ten times as many steps."""
PLATEAU = 0.9
"""A loss above this fraction of the loss of the first epoch has not decreased."""
REBOUND = 1.3
"""A loss above this multiple of its minimum has diverged."""
FALLING = 0.02
"""A loss with at least this relative decrease in the last third of the epochs is still decreasing."""
HIGH_DECAY = 1.0
"""Weight decay from which weights, such as the scales of norms, cannot stay at 1: AdamW's bound is its inverse."""
USUAL_DECAY = 1e-4
"""The default of `train.weight_decay`."""
ADAM_EPSILON = 1e-8
"""AdamW's steps are of the size of the learning rate only if gradients are larger than this."""
USUAL_CLIP = 0.1
"""The default of `train.clip`."""
MOSTLY_TRAINED = 0.5
"""Fraction of the parameters of a module that must be trained if they start from random weights."""
WARMUP_STEPS = 100
"""Number of warm-up steps to try against a learning rate that is too high at the start."""
RISING = 0.05
"""Part of the best AP50 that the last third of the evaluations must have added for it to be still rising."""
MIN_EVALUATIONS = 3
"""Number of evaluations from which the AP50 can be said to be rising."""
ENOUGH_STEPS_FINE_TUNED = 200
GOOD_FIT = 0.8
"""Mean GIoU of the boxes on the training images above which more steps help little."""
OVERFIT_GAP = 0.2
"""Difference of the IoU of boxes between training and validation images."""
OVERFIT_DROP = 0.2
"""Relative decrease of AP50 from its maximum to the end."""
OVERFIT_MIN_DROP = 0.01
"""Decrease of AP50 below which it is noise."""


def failed(run: Run) -> Finding | None:
    """The run ended with an error."""
    if not run.record.failed:
        return None
    return Finding(
        name="failed",
        area="schedule",
        explains=1.0,
        cause=f"The run ended with an error: {run.record.ended}",
        evidence={"steps": run.steps},
        cure="If no other finding explains it, check the images named in the error"
        f"{'' if run.plan.precision == 'float32' else ', train with train.precision=float32'}, and lower train.lr (it "
        f"is {run.plan.lr:g}).",
    )


def lr_too_high(run: Run) -> Finding | None:
    """The learning rate is large relative to the weights, and the loss shows it."""
    rates = learning_rates(run)
    if not rates or not run.poor:
        return None
    setting, (lr, rate) = max(rates.items(), key=lambda item: item[1][1])
    if not (rate >= WILD_RATE or (rate >= FAST_RATE and diverges(run))):
        return None
    course = {}
    if losses := run.finite("loss"):
        course = {
            "loss of the first epoch": losses[0],
            "minimum": min(losses),
            "of the last epoch": losses[-1],
        }
    return Finding(
        name="lr_too_high",
        area="schedule",
        explains=1.0 if rate >= WILD_RATE else 0.8,
        cause=f"The learning rate is too high: at {setting}={lr:g} every step overwrites the weights.",
        evidence={"relative change of weights per step": rate, "usual": USUAL_RATE, **course},
        cure=f"Set {setting}={one_digit(lr * USUAL_RATE / rate)}{with_warmup(run)}.",
    )


def with_warmup(run: Run) -> str:
    """Return the advice to warm up, which is empty if the run did, at least for half of its steps."""
    warmed_up = run.plan.warmup_steps >= min(WARMUP_STEPS, run.steps / 2)
    return "" if warmed_up else f", and train.warmup_steps={WARMUP_STEPS}"


def diverges(run: Run) -> bool:
    """Return whether the loss does not decrease, increases again, or the run ended with an error."""
    losses = run.finite("loss")
    stuck = len(losses) > 2 and losses[-1] > min(PLATEAU * losses[0], REBOUND * min(losses))
    return run.record.failed or stuck


def lr_too_low(run: Run) -> Finding | None:
    """The learning rate is so small relative to the weights that they hardly change."""
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
        cause=f"The learning rate is too low: at train.lr={lr:g} the weights hardly change.",
        evidence={
            "relative change of weights per step": rate,
            "usual": USUAL_RATE,
            "maximum relative change over all steps": rate * run.steps,
        },
        cure=f"Set train.lr={one_digit(lr * USUAL_RATE / rate)}.",
    )


def weight_decay_too_high(run: Run) -> Finding | None:
    """The weight decay has shrunk the weights more than the gradients can restore them."""
    plan = run.plan
    decay = plan.weight_decay * plan.lr * run.steps
    if plan.weight_decay < HIGH_DECAY or decay < 1 or not run.poor:
        return None
    return Finding(
        name="weight_decay_too_high",
        area="schedule",
        explains=1.0,
        cause=f"The weight decay is too high: at train.weight_decay={plan.weight_decay:g} the weights shrink faster "
        "than they learn.",
        evidence={
            "decrease of weights per step": plan.weight_decay * plan.lr,
            "over all steps, unless gradients restore them": 1 - math.exp(-decay),
            "largest size that weights can keep": 1 / plan.weight_decay,
        },
        cure=f"Set train.weight_decay={USUAL_DECAY:g}.",
    )


def clip_too_low(run: Run) -> Finding | None:
    """Clipped gradients are below AdamW's epsilon, so that its steps are much smaller than the learning rate."""
    trained = sum(part.trained for part in (run.record.parts or {}).values())
    if run.plan.clip is None or not trained or not run.poor or run.record.failed:
        return None
    gradient = run.plan.clip / math.sqrt(trained)
    if gradient > ADAM_EPSILON:
        return None
    norms = run.finite("grad_norm")
    return Finding(
        name="clip_too_low",
        area="schedule",
        explains=1.0,
        cause=f"Gradients are clipped too much: at train.clip={run.plan.clip:g} the weights hardly change.",
        evidence={
            **({"norm of the gradients before": norms[-1]} if norms else {}),
            "mean size of a gradient after": gradient,
            "below which steps shrink": ADAM_EPSILON,
        },
        cure=f"Set train.clip={USUAL_CLIP:g}.",
    )


def learning_rates(run: Run) -> dict[str, tuple[float, float]]:
    """Return the learning rates by setting: the value, and the value relative to the size of the weights."""
    parts = run.record.parts or {}
    sizes = {name: part.weight_size for name, part in parts.items() if part.weight_size}
    rates = {}
    if rest := [size for name, size in sizes.items() if name != "backbone"]:
        rates["train.lr"] = run.plan.lr, run.plan.lr / sorted(rest)[len(rest) // 2]
    if "backbone" in sizes:
        rates["train.backbone_lr"] = run.plan.backbone_lr, run.plan.backbone_lr / sizes["backbone"]
    return rates


def one_digit(value: float) -> str:
    """Format a number with one significant digit."""
    return f"{float(f'{value:.0e}'):g}"


def frozen_parts(run: Run) -> Finding | None:
    """Modules with random weights are frozen."""
    parts = run.record.parts or {}
    fresh = {"decoder"} if run.fine_tuned else set(parts)
    if not run.random_backbone:
        fresh -= {"backbone"}
    # Of a trained decoder only the class head may be new, as far as it is told by the record.
    least = 0.0 if run.fine_tuned else MOSTLY_TRAINED
    frozen = sorted(
        name for name in fresh & set(parts) if parts[name].trained <= least * parts[name].parameters
    )
    if not frozen or not run.poor:
        return None
    trained = sum(part.trained for part in parts.values())
    return Finding(
        name="frozen_parts",
        area="schedule",
        explains=1.0,
        cause=f"Modules with random weights are frozen, so they cannot learn: {', '.join(frozen)}.",
        evidence={
            "fraction of parameters that is trained": trained
            / sum(part.parameters for part in parts.values()),
            **{
                f"frozen parameters of '{name}'": parts[name].parameters - parts[name].trained
                for name in frozen
            },
        },
        cure=f"Remove them from train.freeze{'' if run.fine_tuned else ', or start from trained weights (--weights)'}.",
    )


def random_backbone(run: Run) -> Finding | None:
    """The backbone starts from random weights."""
    training = run.record.training
    if not run.random_backbone or not run.poor:
        return None
    return Finding(
        name="random_backbone",
        area="schedule",
        explains=0.3,
        cause="The backbone starts from random weights; training it takes far more images than training the rest of "
        "the detector.",
        evidence={"training images": training.images} if training else {},
        cure="Set model.backbone_weights=imagenet, or to a file with weights.",
    )


def warmup_too_long(run: Run) -> Finding | None:
    """The learning rate was warming up for most of the run."""
    # Of a run that is too short, a short warm-up is not at fault.
    if not run.poor or not run.steps or run.plan.warmup_steps < max(run.steps, enough_steps(run)) / 2:
        return None
    return Finding(
        name="warmup_too_long",
        area="schedule",
        explains=min(1.0, run.plan.warmup_steps / run.steps) / 2,
        cause="The learning rate was warming up for at least half of the run.",
        evidence={"warm-up steps": run.plan.warmup_steps, "steps": run.steps},
        cure=f"Set train.warmup_steps={run.steps // 20}, or train longer.",
    )


def too_few_steps(run: Run) -> Finding | None:
    """The run ended before the model can have learned, or while the loss was still decreasing."""
    enough = enough_steps(run)
    fewest = find(FOR_FEW_IMAGES).steps_to_learn
    decrease = run.decrease()
    if not run.poor or not run.steps or (run.steps >= enough and decrease is not None and decrease < FALLING):
        return None
    left = 1 - min(max(run.fit or 0.0, 0.0) / GOOD_FIT, 1.0)
    faster = f"set recipe={FOR_FEW_IMAGES}, which needs a tenth of the steps" if enough >= 10 * fewest else ""
    trained = "" if run.fine_tuned else "start from the weights of a trained detector (--weights)"
    return Finding(
        name="too_few_steps",
        area="schedule",
        # If the boxes fit the training images already, more steps help little.
        explains=max(1 - run.steps / enough, 0.3) * left,
        cause="The detector was trained for too few steps.",
        evidence={
            "steps": run.steps,
            "steps until such a model begins to detect objects": enough,
            "epochs": run.history["epoch"][-1],
            **({} if run.plan.max_time else {"planned epochs": run.plan.epochs}),
            **({} if decrease is None else {"relative decrease of the loss at the end": decrease}),
        },
        cure=f"{alternatives(run.longer(max(enough, 2 * run.steps)), faster, trained)}.",
    )


def enough_steps(run: Run) -> int:
    """Return the number of steps after which such a model begins to detect objects."""
    return ENOUGH_STEPS_FINE_TUNED if run.fine_tuned else run.recipe.steps_to_learn


def still_improving(run: Run) -> Finding | None:
    """The AP was still rising when the run ended."""
    scores = run.finite("AP50")
    if len(scores) < MIN_EVALUATIONS or run.record.failed or too_few_steps(run):
        return None
    third = len(scores) // 3
    before, best = max(scores[:-third]), max(scores[-third:])
    if best - before < RISING * best or best == 0:
        return None
    return Finding(
        name="still_improving",
        area="schedule",
        explains=min(0.5, (best - before) / (1 - before)),  # as much again in as many steps again
        cause="The AP was still rising at the end: training stopped before the detector had converged.",
        evidence={
            "best AP50 in the last third of the evaluations": best,
            "best AP50 before": before,
            "steps": run.steps,
        },
        cure=f"{run.longer(2 * run.steps)}.",
    )


def overfitting(run: Run) -> Finding | None:
    """The boxes fit the training images but not new ones, or the AP has decreased since its maximum."""
    facts, fit, scores = run.record.evaluation, run.fit, run.finite("AP50")
    known = facts and facts.top_score >= UNSURE and not crowded(run)
    gap = fit - facts.best_iou if facts and fit and known else 0.0
    best, last = (max(scores), scores[-1]) if scores else (0.0, 0.0)
    overfit = gap / fit if fit and gap >= OVERFIT_GAP else 0.0
    declined = 1 - last / best if best - last >= OVERFIT_DROP * best > OVERFIT_MIN_DROP else 0.0
    if not (overfit or declined) or diverges(run) or (facts and facts.offset):
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
        explains=max(overfit, declined),
        cause="The detector overfits the training images: its predictions on new ones are much worse.",
        evidence={**evidence, "best AP50": best, "AP50 at the end": last},
        cure=f"Annotate more images; {alternatives(*less_overfitting(run))}. The best detector was saved.",
    )


def crowded(run: Run) -> bool:
    """Return whether images of the validation data have more objects than detections, so that some are missed."""
    most = run.record.validation.most_objects if run.record.validation else 0
    return most > min(run.recipe.queries, MAX_DETECTIONS[-1])


def less_overfitting(run: Run) -> list[str]:
    """Return the settings against overfitting that the run did not use."""
    data, options = run.data, []
    unused = {
        "crop": data.crop < 1,
        "color_jitter": data.color_jitter == 0,
        "vertical_flip": data.vertical_flip == 0,
    }
    if names := [f"data.{name}" for name, useful in unused.items() if useful]:
        options.append(f"increase augmentation ({', '.join(names)})")
    if not run.random_backbone and "backbone" not in run.plan.freeze:
        options.append("freeze the backbone (train.freeze=[backbone])")
    if run.plan.patience is None:
        options.append("stop earlier (train.patience)")
    return [*options, "use a smaller model"]
