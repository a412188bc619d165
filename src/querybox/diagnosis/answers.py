"""What can be wrong with the answers of the queries: their number, their classes, their boxes."""

from __future__ import annotations

from querybox.diagnosis.data import permuted
from querybox.diagnosis.finding import Finding
from querybox.diagnosis.run import UNSURE, Run
from querybox.diagnosis.schedule import FALLING

REPEATED = 0.3
"""Share of the confident detections that repeat another one."""
ALL_ALIKE = 0.8
"""The same, where next to nothing else is said."""
GAIN = 0.05
"""AP50 that is won when each object is detected once."""
SETTLED_EPOCHS = 9
"""Fewer say nothing of whether a loss still falls."""
MOSTLY_EMPTY = 0.8
"""Share of training images without objects."""
QUERIES_AN_OBJECT = 20
"""More queries than these share a softmax's "no object" among them so that it always wins."""
SAME = 0.95
"""IoU of the best boxes of two images that says that they are answered alike."""
CONFUSED = 0.3
"""Share of the located objects that get another class."""
LOOSE = 0.3
"""Share of the objects with a box near them and none on them."""
WHERE_NOT_WHY = 0.3
"""Weight of what says where it hurts rather than why."""


def duplicates(run: Run) -> Finding | None:
    """Several queries that answer for the same object."""
    facts = run.record.evaluation
    if facts is None or facts.repeated < REPEATED:
        return None
    gain = facts.AP50_once - facts.AP50
    alike = run.poor and facts.repeated >= ALL_ALIKE
    if gain < GAIN and not alike:
        return None
    return Finding(
        name="duplicates",
        area="matching",
        explains=max(gain / (1 - facts.AP50), 0.6 if alike else 0.0),
        cause="Several queries answer for the same object: they do not tell each other apart.",
        evidence={
            "share of confident detections that repeat another one": facts.repeated,
            "confident detections an image": facts.confident,
            "AP50": facts.AP50,
            "AP50 if each object were detected once": facts.AP50_once,
        },
        cure="Train longer: the decoder's self-attention learns it late; with fewer model.queries or more "
        "model.decoder_layers it is easier, and recipe=dino_small begins with distinct queries. Until then, predict "
        "with --nms 0.5.",
    )


def no_object_collapse(run: Run) -> Finding | None:
    """Every query says "no object", whatever it looks at."""
    facts, training = run.record.evaluation, run.record.training
    if facts is None or not run.poor or facts.top_score >= UNSURE:
        return None
    objects, empty = 0.0, 0.0
    if training:
        objects, empty = (
            sum(training.objects.values()) / training.images,
            training.empty_images / training.images,
        )
    crowded = run.recipe.no_object and run.recipe.queries > QUERIES_AN_OBJECT * objects > 0
    cure = "Lower train.lr, set train.warmup_steps=100, and train longer"
    if empty > MOSTLY_EMPTY:
        cure = "Leave out most of the training images without objects"
    elif crowded:
        enough = max(10, 3 * training.most_objects) if training else 10
        cure = (
            f"Set model.queries={enough}, or recipe=deformable_detr_small, which judges every class by itself"
        )
    fall = run.fall("loss_cls")
    settled = fall is not None and fall < FALLING and len(run.losses) >= SETTLED_EPOCHS
    return Finding(
        name="no_object_collapse",
        area="classification",
        explains=0.95 if settled else 0.7,
        cause='Every query answers "no object": that is right so often that nothing else was learnt.',
        evidence={
            "mean of the best score of an image": facts.top_score,
            "queries": run.recipe.queries,
            "objects a training image": objects,
            "share of training images without objects": empty,
        },
        cure=f"{cure}.",
    )


def blind_queries(run: Run) -> Finding | None:
    """Every image gets the same answer: the queries do not look at it."""
    facts = run.record.evaluation
    if facts is None or facts.sameness is None or facts.sameness < SAME or not run.poor:
        return None
    return Finding(
        name="blind_queries",
        area="matching",
        explains=WHERE_NOT_WHY,
        cause="Every image gets the same boxes: the queries have not learnt to look at it.",
        evidence={"mean IoU of the best box of an image with the nearest box of the next": facts.sameness},
        cure=run.recipe.blind_queries_cure,
    )


def confused_classes(run: Run) -> Finding | None:
    """Objects that are located but get another class."""
    classes = run.record.evaluation.classes if run.record.evaluation else ()
    located = sum(each.located for each in classes)
    wrong = located - sum(each.right for each in classes)
    if not located or wrong < CONFUSED * located or permuted(classes):
        return None
    worst = sorted((each for each in classes if each.taken), key=lambda each: -each.taken)[:5]
    return Finding(
        name="confused_classes",
        area="classification",
        explains=WHERE_NOT_WHY * wrong / sum(each.objects for each in classes),
        cause="Objects are located but taken for another class.",
        evidence={
            "share of located objects with another class": wrong / located,
            **{
                f"'{each.name}' taken for '{each.taken_for}', share": each.taken / each.located
                for each in worst
            },
        },
        cure="Label more of the rare classes, join those that look alike, and check that one thing has one name "
        "throughout; a larger data.image_size shows finer differences.",
    )


def loose_boxes(run: Run) -> Finding | None:
    """Boxes that are near the objects but do not fit them."""
    facts = run.record.evaluation
    if facts is None:
        return None
    located = sum(each.located for each in facts.classes) / sum(each.objects for each in facts.classes)
    if facts.near - located < LOOSE:
        return None
    return Finding(
        name="loose_boxes",
        area="boxes",
        explains=WHERE_NOT_WHY * (facts.near - located),
        cause="Boxes are near the objects but do not fit them.",
        evidence={
            "share of objects with a box of IoU 0.2 or more": facts.near,
            "of IoU 0.5 or more": located,
            "mean IoU of the best box": facts.best_iou,
        },
        cure="Train longer, at a larger data.image_size; a model that refines its boxes fits them sooner: "
        "recipe=deformable_detr_small. If labels are loose themselves, the report's worst images show it.",
    )
