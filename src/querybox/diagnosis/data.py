"""Rules about the data, and about settings that depend on them."""

from __future__ import annotations

from collections.abc import Sequence

from querybox.diagnosis.facts import ClassFacts
from querybox.diagnosis.finding import Finding
from querybox.diagnosis.run import Run
from querybox.diagnosis.schedule import too_few_steps
from querybox.models import FOR_FEW_IMAGES, find

FAULTY_FRACTION = 0.1
"""A larger fraction of invalid boxes is not due to mistakes of annotators but to the file format."""
FAULTY_WEIGHT = 2.5
"""If many boxes do not fit into their images, the others are wrong, too."""
MIXED_FRACTION = 0.5
"""If a larger fraction of a class's located objects is classified as one other class, this is not chance."""
MIXED_OBJECTS = 3
"""Minimum number of such objects."""
SIZE_RATIO = 1.5
"""Ratio of the median object sizes of training and validation images; splits of the same data differ by 1.1."""
SHIFTS = {"size": "sizes of the object", "pixel": "pixels", "position": "fraction of the position"}
"""Units of shifts, by name."""
REASONS = {
    "size": "corners may be given for centers, or boxes drawn more tightly",
    "pixel": "images may have been padded or cropped after they were annotated",
    "position": "boxes may be in pixels of resized images",
}
"""Reasons why boxes are shifted, by the unit in which the shift is the same for all."""
SPARSE = 0.6
"""Objects per validation image, relative to training images, below which objects may be missing."""
UNLABELLED = 0.75
"""Confident detections without an object, per object; of missing objects and of errors there are few together."""
COVERED = 0.6
"""Fraction of the objects that a detector finds if its other confident detections are objects, too."""
AS_MANY = 1.5
"""Maximum number of confident detections per image, relative to the objects of training images."""


def faulty_boxes(run: Run) -> Finding | None:
    """Boxes extend beyond their images, usually because corners were written for width and height, or the reverse."""
    splits = {"training": run.record.training, "validation": run.record.validation}
    fractions = {
        f"fraction of {name} boxes that extend beyond their image or have no area": facts.faulty_fraction
        for name, facts in splits.items()
        if facts
    }
    worst = max(fractions.values(), default=0.0)
    evaluation = run.record.evaluation
    if worst < FAULTY_FRACTION or (evaluation and evaluation.offset):
        return None
    return Finding(
        name="faulty_boxes",
        area="data",
        explains=min(1.0, FAULTY_WEIGHT * worst),
        cause="Many boxes do not fit into their images: their format is probably not that of the file.",
        evidence=fractions,
        cure="COCO boxes are (x, y, width, height) in pixels, YOLO boxes (cx, cy, width, height) in 0-1; convert them, "
        "and check the worst images in the report.",
    )


def repeated_objects(run: Run) -> Finding | None:
    """Objects are annotated more than once, so several queries have to detect each of them."""
    training = run.record.training
    if training is None or not training.repeated_objects:
        return None
    objects = sum(training.objects.values())
    return Finding(
        name="repeated_objects",
        area="data",
        explains=training.repeated_objects / objects,
        cause="Objects occur more than once in the training data, so several queries learn to detect each of them.",
        evidence={
            "objects in the training data": objects,
            "with the box and class of another one": training.repeated_objects,
        },
        cure="Remove the duplicates from the annotations.",
    )


def different_sizes(run: Run) -> Finding | None:
    """Objects of the training and the validation data differ in size, and the latter are not located."""
    training, validation, facts = run.record.training, run.record.validation, run.record.evaluation
    if training is None or validation is None or facts is None:
        return None
    sizes = training.median_size, validation.median_size
    unlocated = 1 - facts.located
    if max(sizes) < SIZE_RATIO * min(sizes) or unlocated < 0.5 or not run.poor or facts.offset:
        return None
    short = too_few_steps(run)
    return Finding(
        name="different_sizes",
        area="data",
        explains=unlocated * (1 - short.explains / 2 if short else 1),
        cause="The objects of the validation data are "
        f"{'smaller' if sizes[0] > sizes[1] else 'larger'} than those of the training data, and are not located.",
        evidence={
            "median size in the training data, pixels of the input": sizes[0],
            "in the validation data": sizes[1],
            "fraction of objects with a box of IoU >= 0.5": facts.located,
        },
        cure="Look at the worst images in the report, where predictions have the sizes of the training data: boxes may "
        "be in pixels of resized images, or drawn in another way. If they are right, train with images like those of "
        f"the validation data{'' if run.data.crop else ', or with data.crop, which varies the sizes'}.",
    )


def shifted_boxes(run: Run) -> Finding | None:
    """Predicted boxes, which follow the training data, differ from those of the validation data in a systematic way."""
    facts = run.record.evaluation
    if facts is None or facts.offset is None or facts.AP is None:
        return None
    offset = facts.offset
    return Finding(
        name="shifted_boxes",
        area="data",
        explains=(offset.AP - facts.AP) / (1 - facts.AP),
        cause="The predicted boxes, which are like those of the training data, are shifted or scaled relative to those "
        "of the validation data: one of both is annotated in another way.",
        evidence={
            f"horizontal shift, {SHIFTS[offset.unit]}": offset.shift[0],
            "vertical shift": offset.shift[1],
            "width relative to that of the object": offset.ratio[0],
            "height": offset.ratio[1],
            "fraction of the boxes that differ in this direction": offset.consistent,
            "AP": facts.AP,
            "AP without the difference": offset.AP,
        },
        cure=f"Compare both parts in the report of querybox validate: {REASONS[offset.unit]}. Correct the boxes of the "
        "wrong one.",
    )


def missing_objects(run: Run) -> Finding | None:
    """Objects of the validation images are not annotated: the detector finds as many as there are in training."""
    training, validation, facts = run.record.training, run.record.validation, run.record.evaluation
    if training is None or validation is None or facts is None:
        return None
    if facts.background is None or facts.covered is None or facts.covered < COVERED:
        return None
    usual, annotated = training.objects_per_image, validation.objects_per_image
    detected = annotated + facts.background
    if annotated > SPARSE * usual or facts.background < UNLABELLED * annotated or detected > AS_MANY * usual:
        return None
    return Finding(
        name="missing_objects",
        area="data",
        explains=facts.background / detected,
        cause="Many objects of the validation images may not be annotated: the detector finds the others, and about as "
        "many as there are in training images.",
        evidence={
            "objects per training image with objects": usual,
            "per validation image with objects": annotated,
            "confident detections per image without an object": facts.background,
            "fraction of the objects with a confident detection": facts.covered,
        },
        cure="Look at the false positives of the worst images in the report, and annotate the objects among them.",
    )


def too_many_objects(run: Run) -> Finding | None:
    """There are more objects than queries."""
    splits = [facts for facts in (run.record.training, run.record.validation) if facts]
    if not any(facts.lost_objects for facts in splits):
        return None
    most = max(facts.most_objects for facts in splits)
    return Finding(
        name="too_many_objects",
        area="boxes",
        explains=max(facts.lost_objects / sum(facts.objects.values()) for facts in splits),
        cause="Some images have more objects than the model has queries; the others cannot be learned or detected.",
        evidence={
            "queries": run.recipe.queries,
            "maximum number of objects in an image": most,
            "objects without a query": sum(facts.lost_objects for facts in splits),
        },
        cure=f"Set model.queries={most * 3 // 2}, or split the images into tiles.",
    )


def tiny_objects(run: Run) -> Finding | None:
    """Objects are smaller than a cell of the feature map, and are not detected."""
    facts, validation = run.record.evaluation, run.record.validation
    if facts is None or validation is None or not any(each.tiny for each in facts.classes):
        return None
    stride, image_size = run.recipe.finest_stride, run.data.image_size
    tiny = sum(each.tiny for each in facts.classes)
    tiny_located = sum(each.tiny_located for each in facts.classes)
    others = sum(each.objects for each in facts.classes) - tiny
    others_located = sum(each.located for each in facts.classes) - tiny_located
    # AP is the mean over classes, so every class has the same weight.
    unseen = [(each.tiny - each.tiny_located) / each.objects for each in facts.classes]
    # If the other objects are not located either, or the run was short, there may be another cause.
    doubt = 0.5 if others_located < 0.5 * others or too_few_steps(run) else 1.0
    size = round(image_size * 1.5 * stride / validation.median_size)
    cure = f"Set data.image_size={size}" if size > image_size else "Raise data.image_size"
    if stride > find(FOR_FEW_IMAGES).finest_stride:
        cure += f", or a model with finer maps: recipe={FOR_FEW_IMAGES}"
    return Finding(
        name="tiny_objects",
        area="boxes",
        explains=doubt * sum(unseen) / len(unseen),
        cause="Objects are too small at this input size: smaller than a cell of the finest feature map.",
        evidence={
            "stride of the finest feature map, pixels": stride,
            "median object size in the input, pixels": validation.median_size,
            "fraction of objects smaller than a cell": tiny / (tiny + others),
            "fraction of these that is located": tiny_located / tiny,
            "fraction of the others that is located": others_located / max(1, others),
        },
        cure=f"{cure}; or split the images into tiles.",
    )


def unseen_classes(run: Run) -> Finding | None:
    """Classes of the validation data do not occur in the training data."""
    training, validation = run.record.training, run.record.validation
    if training is None or validation is None:
        return None
    present = {name: count for name, count in validation.objects.items() if count}
    unseen = {name: count for name, count in present.items() if not training.objects.get(name)}
    if not unseen:
        return None
    return Finding(
        name="unseen_classes",
        area="data",
        explains=len(unseen) / len(present),
        cause=f"No training image has an object of: {', '.join(sorted(unseen))}.",
        evidence={f"objects of '{name}' in the validation data": count for name, count in unseen.items()},
        cure="Split the data again so that both parts have all classes; check that class names are the same in both.",
    )


def mixed_up_labels(run: Run) -> Finding | None:
    """Objects are located well but classes are permuted, which is an error in the files."""
    facts = run.record.evaluation
    if facts is None or not (mixed := permuted(facts.classes)):
        return None
    # AP is the mean over classes, so every class has the same weight.
    lost = sum(each.taken / each.objects for each in mixed) / len(facts.classes)
    return Finding(
        name="mixed_up_labels",
        area="data",
        explains=lost / max(lost, 1 - facts.AP50),
        cause="Labels of training and validation data are permuted: objects are located, but classified as "
        f"another class ({', '.join(f'{each.name} as {each.taken_for}' for each in mixed)}).",
        evidence={
            f"fraction of located '{each.name}' that is classified as '{each.taken_for}'": each.taken
            / each.located
            for each in mixed
        },
        cure="Compare the order and ids of the classes in both files (querybox info DATA shows them), and make them "
        "the same.",
    )


def permuted(classes: Sequence[ClassFacts]) -> list[ClassFacts]:
    """Return the classes most of whose objects are classified as one other class, each as a different one.

    The other class must not be recognised itself: a class that is merely taken for a similar one is not permuted.
    """
    moved = [
        each
        for each in classes
        if each.taken >= max(MIXED_OBJECTS, MIXED_FRACTION * each.located) and each.taken_for
    ]
    names = [each.taken_for for each in moved]
    recognised = {each.name for each in classes if 2 * each.right > each.located}
    found = [each for each in moved if names.count(each.taken_for) == 1 and each.taken_for not in recognised]
    return found if len(found) > 1 else []
