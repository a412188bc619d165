"""Rules about the predictions: their number, classes and boxes."""

from __future__ import annotations

from statistics import fmean

from querybox.diagnosis.data import MIXED_OBJECTS, permuted
from querybox.diagnosis.facts import NEAR_IOU, EvaluationFacts
from querybox.diagnosis.finding import Finding
from querybox.diagnosis.run import UNSURE, Run
from querybox.diagnosis.schedule import (
    FALLING,
    clip_too_low,
    enough_steps,
    lr_too_low,
    too_few_steps,
    weight_decay_too_high,
    with_warmup,
)
from querybox.evaluation.confusion import MATCH_IOU
from querybox.models import FOR_FEW_IMAGES

DUPLICATES = 0.3
"""Fraction of confident detections that are duplicates."""
MOSTLY_DUPLICATES = 0.8
"""Fraction of confident detections that are duplicates above which there is hardly any other detection."""
GAIN = 0.05
"""Increase of AP50 without duplicates."""
SETTLED_EPOCHS = 9
"""Minimum number of epochs to judge whether a loss is still decreasing."""
MOSTLY_EMPTY = 0.8
"""Fraction of training images without objects."""
QUERIES_PER_OBJECT = 20
"""With more queries per object, the no-object class dominates the softmax loss."""
SAME = 0.95
"""IoU of the best boxes of two images above which their predictions are the same."""
CONFUSED = 0.3
"""Fraction of located objects with another class, averaged over the classes."""
LOOSE = 0.3
"""Fraction of objects with a box near them but none that matches."""
CHANCE = 0.05
"""Difference of the IoU of boxes with the objects of their image and of another one that is due to chance."""
SYMPTOM_WEIGHT = 0.3
"""Weight of symptoms relative to causes."""


def duplicates(run: Run) -> Finding | None:
    """Several queries detect the same object."""
    facts = run.record.evaluation
    if facts is None or facts.repeated < DUPLICATES:
        return None
    gain = facts.AP50_once - facts.AP50
    has_distinct = "distinct" in type(run.recipe).model_fields
    distinct = "" if has_distinct else f", and recipe={FOR_FEW_IMAGES} starts from distinct queries"
    mostly_duplicates = run.poor and facts.repeated >= MOSTLY_DUPLICATES
    if gain < GAIN and not mostly_duplicates:
        return None
    return Finding(
        name="duplicates",
        area="matching",
        explains=max(gain / (1 - facts.AP50), 0.6 if mostly_duplicates else 0.0),
        cause="Several queries detect the same object: self-attention does not suppress duplicates yet.",
        evidence={
            "fraction of confident detections that are duplicates": facts.repeated,
            "confident detections per image": facts.confident,
            "AP50": facts.AP50,
            "AP50 without duplicates": facts.AP50_once,
        },
        cure="Train longer, because the decoder's self-attention learns it late; fewer model.queries or more "
        f"model.decoder_layers make it easier{distinct}. Until then, predict with --nms 0.5.",
    )


def no_object_collapse(run: Run) -> Finding | None:
    """All queries predict no object in all images."""
    facts, training = run.record.evaluation, run.record.training
    if facts is None or not run.poor or facts.top_score >= UNSURE:
        return None
    if lr_too_low(run) or clip_too_low(run) or weight_decay_too_high(run):
        return None  # weights that hardly change, or vanish, predict nothing, either
    objects, empty, enough = 0.0, 0.0, 10
    if training:
        objects = sum(training.objects.values()) / training.images
        empty = training.empty_images / training.images
        enough = max(enough, 3 * training.most_objects)
    crowded = (
        run.recipe.class_head_type.no_object
        and run.recipe.queries > max(QUERIES_PER_OBJECT * objects, enough)
        and objects > 0
    )
    decrease = run.decrease("loss_cls")
    settled = decrease is not None and decrease < FALLING and len(run.finite("loss")) >= SETTLED_EPOCHS
    if not settled and not crowded and empty <= MOSTLY_EMPTY and too_few_steps(run):
        return None  # scores are low at the beginning
    cure = f"Lower train.lr{with_warmup(run)}, and train longer"
    if empty > MOSTLY_EMPTY:
        cure = "Remove most of the training images without objects"
    elif crowded:
        cure = f"Set model.queries={enough}, or recipe={FOR_FEW_IMAGES}, which has no no-object class"
    return Finding(
        name="no_object_collapse",
        area="classification",
        explains=0.95 if settled else 0.7,
        cause="All queries predict no object, which is correct for so many of them that nothing else was learned.",
        evidence={
            "mean of the highest score of each image": facts.top_score,
            "queries": run.recipe.queries,
            "objects per training image": objects,
            "fraction of training images without objects": empty,
        },
        cure=f"{cure}.",
    )


def blind_queries(run: Run) -> Finding | None:
    """The predictions are the same for all images."""
    facts = run.record.evaluation
    if facts is None or facts.sameness is None or facts.sameness < SAME or not run.poor:
        return None
    pretrained = "; set model.backbone_weights=imagenet" if run.random_backbone else ""
    return Finding(
        name="blind_queries",
        area="matching",
        explains=SYMPTOM_WEIGHT,
        cause="The predictions are the same for all images: the queries have not learned to attend to the image.",
        evidence={
            "mean IoU of the best box of an image with the closest box of the next image": facts.sameness
        },
        cure=f"{run.recipe.constant_predictions_cure}{pretrained}.",
    )


def unrelated_boxes(run: Run) -> Finding | None:
    """The predictions differ between images, but have nothing to do with their objects."""
    facts = run.record.evaluation
    if facts is None or facts.other_iou is None or facts.sameness is None or facts.sameness >= SAME:
        return None
    learned = NEAR_IOU <= facts.best_iou < MATCH_IOU  # the sizes of objects, but not their places
    # Early in training it is the same: places are learned last. With few images, these are learnt by heart first.
    if not (run.poor and learned and by_chance(facts) and run.steps >= enough_steps(run)):
        return None
    return Finding(
        name="unrelated_boxes",
        area="data",
        explains=0.65,
        cause="The predicted boxes fit the objects of an image no better than those of another one: annotations may "
        "belong to other images, or boxes to other places of the image.",
        evidence={
            "mean IoU of the best box with an object": facts.best_iou,
            "with an object of another image": facts.other_iou,
            "mean IoU of the best box of an image with the closest box of the next image": facts.sameness,
        },
        cure="Look at the objects of the worst images in the report: check that annotations have the ids or the names "
        "of their own images, and that boxes are neither (y, x) nor mirrored. If they are right, train "
        f"longer{refinement(run)}.",
    )


def by_chance(facts: EvaluationFacts) -> bool:
    """Return whether the boxes of an image fit its objects as well as those of another image."""
    return facts.other_iou is not None and facts.best_iou - facts.other_iou < CHANCE


def confused_classes(run: Run) -> Finding | None:
    """Objects are located but classified as another class."""
    classes = run.record.evaluation.classes if run.record.evaluation else ()
    located = [each for each in classes if each.located >= MIXED_OBJECTS]
    if not located or permuted(classes):
        return None
    # AP is the mean over classes, so every class has the same weight.
    wrong = fmean(1 - each.right / each.located for each in located)
    if wrong < CONFUSED:
        return None
    worst = sorted((each for each in classes if each.taken), key=lambda each: -each.taken)[:5]
    return Finding(
        name="confused_classes",
        area="classification",
        explains=SYMPTOM_WEIGHT
        * sum((each.located - each.right) / each.objects for each in located)
        / len(classes),
        cause="Objects are located but classified as another class.",
        evidence={
            "fraction of located objects with another class, mean over classes": wrong,
            **{
                f"fraction of '{each.name}' classified as '{each.taken_for}'": each.taken / each.located
                for each in worst
            },
        },
        cure="Annotate more objects of rare classes, merge classes that look alike, and check that classes "
        "are annotated consistently; a larger data.image_size shows finer differences.",
    )


def loose_boxes(run: Run) -> Finding | None:
    """Boxes are near the objects but do not match them."""
    facts = run.record.evaluation
    if facts is None or facts.offset or by_chance(facts):
        return None
    located = facts.located
    if facts.near - located < LOOSE:
        return None
    return Finding(
        name="loose_boxes",
        area="boxes",
        explains=SYMPTOM_WEIGHT * (facts.near - located),
        cause="Boxes are near the objects but do not match them.",
        evidence={
            "fraction of objects with a box of IoU >= 0.2": facts.near,
            "with a box of IoU >= 0.5": located,
            "mean IoU of the best box": facts.best_iou,
        },
        cure=f"Train longer, with a larger data.image_size{refinement(run)}. If the annotated boxes are inaccurate, "
        "the worst images in the report show it.",
    )


def refinement(run: Run) -> str:
    """Return the advice to take a model that refines boxes, which is empty if the run has one."""
    advice = f"; a model with box refinement learns boxes faster: recipe={FOR_FEW_IMAGES}"
    return "" if run.recipe.refines_boxes else advice
