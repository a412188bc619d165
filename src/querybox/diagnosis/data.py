"""What can be wrong with the data, or with the sizes that were chosen for them."""

from __future__ import annotations

from collections.abc import Sequence

from querybox.diagnosis.facts import ClassFacts
from querybox.diagnosis.finding import Finding
from querybox.diagnosis.run import Run
from querybox.models import find

FAULTY_SHARE = 0.1
"""Annotators make a few faulty boxes, programs make many."""
FAULTY_WEIGHT = 2.5
"""If so many boxes do not fit into their images, those that happen to fit are wrong, too."""
MIXED_SHARE = 0.5
"""Of a class's objects that were located: so many taken for one other class are no accident."""
MIXED_OBJECTS = 3
"""Fewer say nothing."""


def faulty_boxes(run: Run) -> Finding | None:
    """Boxes that reach out of their images: usually corners where sides were expected, or the reverse."""
    splits = {"training": run.record.training, "validation": run.record.validation}
    shares = {
        f"share of {name} boxes that reach out of their image or have no extent": facts.faulty_boxes
        / max(1, sum(facts.objects.values()) + facts.faulty_boxes)
        for name, facts in splits.items()
        if facts
    }
    worst = max(shares.values(), default=0.0)
    if worst < FAULTY_SHARE:
        return None
    return Finding(
        name="faulty_boxes",
        area="data",
        explains=min(1.0, FAULTY_WEIGHT * worst),
        cause="Many boxes do not fit into their images: they are probably written in another format than the file's.",
        evidence=shares,
        cure="COCO's bbox is x, y, width, height in pixels, YOLO's is the centre and the sides in shares of the image; "
        "write them so, and look at the report's worst images.",
    )


def repeated_objects(run: Run) -> Finding | None:
    """Objects that were labelled twice, so that two queries have to find each of them."""
    training = run.record.training
    if training is None or not training.repeated_objects:
        return None
    objects = sum(training.objects.values())
    return Finding(
        name="repeated_objects",
        area="data",
        explains=training.repeated_objects / objects,
        cause="Objects stand in the training data more than once, so that several queries learn to answer for each.",
        evidence={
            "objects in the training data": objects,
            "that have box and class of another one": training.repeated_objects,
        },
        cure="Remove the repetitions from the annotations.",
    )


def too_many_objects(run: Run) -> Finding | None:
    """Objects that no query is left for."""
    splits = [facts for facts in (run.record.training, run.record.validation) if facts]
    if not any(facts.lost_objects for facts in splits):
        return None
    most = max(facts.most_objects for facts in splits)
    return Finding(
        name="too_many_objects",
        area="boxes",
        explains=max(facts.lost_objects / sum(facts.objects.values()) for facts in splits),
        cause="Some images have more objects than the model has queries; the surplus can neither be learnt nor found.",
        evidence={
            "queries": run.recipe.queries,
            "most objects in one image": most,
            "objects without a query": sum(facts.lost_objects for facts in splits),
        },
        cure=f"Set model.queries={most * 3 // 2}, or cut the images into smaller ones.",
    )


def tiny_objects(run: Run) -> Finding | None:
    """Objects smaller than a cell of the feature map, unless they are found all the same."""
    facts, validation = run.record.evaluation, run.record.validation
    if facts is None or validation is None or not any(each.tiny for each in facts.classes):
        return None
    tiny, tiny_located = (
        sum(each.tiny for each in facts.classes),
        sum(each.tiny_located for each in facts.classes),
    )
    others = sum(each.objects for each in facts.classes) - tiny
    others_located = sum(each.located for each in facts.classes) - tiny_located
    # AP is the mean over the classes: so a small class of tiny objects weighs as much as any other.
    unseen = [(each.tiny - each.tiny_located) / each.objects for each in facts.classes]
    # Where the others are not located either, there may be another cause.
    doubt = 0.5 if others_located < 0.5 * others else 1.0
    size = round(run.image_size * 1.5 * run.cell / validation.median_size)
    fine = find("deformable_detr_small")
    finer = (
        ", or a model with finer maps: recipe=deformable_detr_small" if run.cell > fine.finest_stride else ""
    )
    cure = f"Set data.image_size={size}{finer}" if size > run.image_size else f"Raise data.image_size{finer}"
    return Finding(
        name="tiny_objects",
        area="boxes",
        explains=doubt * sum(unseen) / len(unseen),
        cause="Objects are too small at this input size: smaller than a cell of the finest feature map.",
        evidence={
            "pixels of the input that a cell is wide": run.cell,
            "median size of an object there, pixels": validation.median_size,
            "share of objects smaller than a cell": tiny / (tiny + others),
            "share of these that are located": tiny_located / tiny,
            "share of the others that are located": others_located / max(1, others),
        },
        cure=f"{cure}; or cut the images into smaller ones.",
    )


def unseen_classes(run: Run) -> Finding | None:
    """Classes to be found that training has no object of."""
    training, validation = run.record.training, run.record.validation
    if training is None or validation is None:
        return None
    wanted = {name: count for name, count in validation.objects.items() if count}
    unseen = {name: count for name, count in wanted.items() if not training.objects.get(name)}
    if not unseen:
        return None
    return Finding(
        name="unseen_classes",
        area="data",
        explains=len(unseen) / len(wanted),
        cause=f"No training image has an object of: {', '.join(sorted(unseen))}.",
        evidence={f"objects of '{name}' in the validation data": count for name, count in unseen.items()},
        cure="Draw the split anew so that both parts have all classes; check that both call them the same.",
    )


def mixed_up_labels(run: Run) -> Finding | None:
    """Classes that are found well, each under another one's name: that is a fault of the files."""
    classes = run.record.evaluation.classes if run.record.evaluation else ()
    mixed = permuted(classes)
    if not mixed:
        return None
    objects = sum(each.objects for each in classes)
    return Finding(
        name="mixed_up_labels",
        area="data",
        explains=sum(each.taken for each in mixed) / objects,
        cause="Labels of training and validation data are mixed up: objects are found, but one class bears the name of "
        f"another ({', '.join(f'{each.name} is called {each.taken_for}' for each in mixed)}).",
        evidence={
            f"share of located '{each.name}' that are called '{each.taken_for}'": each.taken / each.located
            for each in mixed
        },
        cure="Compare the order of the classes and their ids in both files (querybox info DATA shows them), and write "
        "them alike.",
    )


def permuted(classes: Sequence[ClassFacts]) -> list[ClassFacts]:
    """Return the classes most of whose objects are called by one other name, each by a name of its own."""
    moved = [
        each
        for each in classes
        if each.taken >= max(MIXED_OBJECTS, MIXED_SHARE * each.located) and each.taken_for
    ]
    names = [each.taken_for for each in moved]
    return [each for each in moved if names.count(each.taken_for) == 1] if len(moved) > 1 else []
