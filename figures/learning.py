"""Stages 8 to 11: matching, targets, losses and the step."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from figures.image import stage
from figures.sheet import CARD, COLOURS, DASHES, HATCHES, INK, bare, frame, sheet, show, write
from figures.specimen import Specimen
from querybox import ImageBatch
from querybox.training.optim import Schedule
from querybox.training.settings import TrainSettings

TERMS = {"loss_cls": "class", "loss_bbox": "L1", "loss_iou": "GIoU"}


def matching(made: Specimen) -> Figure:
    """Stage 8: the costs of the last layer, and the assignment with the lowest cost."""
    figure, (top, bottom) = sheet(7.6, nrows=2, height_ratios=[1.1, 1])
    trace, compared = made.trace, made.comparison
    matched = compared.matched[-1]
    show(top, trace.pixels, grey=True)
    for number, (box, query) in enumerate(zip(compared.target.boxes, matched.tolist(), strict=True)):
        predicted = trace.boxes[-1, query]
        frame(top, box.tolist(), COLOURS[1])
        frame(top, predicted.tolist(), COLOURS[0], dashes=DASHES[1])
        top.plot([box[0], predicted[0]], [box[1], predicted[1]], color=INK, linewidth=2)
        write(top, float(box[0]), float(box[1]), str(number), ha="center", va="center")
    lines = [Line2D([], [], color=COLOURS[1]), Line2D([], [], color=COLOURS[0], linestyle=DASHES[1])]
    figure.legend(lines, ["annotated", "predicted"], loc="outside upper center", ncols=2)
    others = [query for query in trace.ranking if query not in matched.tolist()][:5]
    queries = [*matched.tolist(), *others]
    cost = compared.cost[-1][:, queries]
    picture = bottom.imshow(cost.numpy(), cmap="cividis", aspect="auto")
    for number in range(len(cost)):
        bottom.plot(number, number, "o", color="white", markeredgecolor=INK, markersize=7)
    bottom.axvline(len(matched) - 0.5, color="white", linewidth=3)
    bottom.set_xticks(range(len(queries)), [str(query) for query in queries], rotation=90)
    bottom.set_yticks(range(len(cost)))
    bottom.set_xlabel("query: matched ones, then the best of the others")
    bottom.set_ylabel("object")
    figure.colorbar(picture, ax=bottom, label="cost")
    return figure


def targets(made: Specimen) -> Figure:
    """Stage 9: the annotated objects, and the target of each query."""
    figure, (left, right) = sheet(3.4, ncols=2, width_ratios=[1.25, 1])
    target = made.comparison.target
    show(left, made.trace.pixels, "objects")
    names = [category.name for category in made.trace.categories]
    for number, (box, label) in enumerate(zip(target.boxes.tolist(), target.labels.tolist(), strict=True)):
        frame(left, box, COLOURS[label], dashes=DASHES[label], label=str(number))
    assigned = stage(made.trace, "object of each query")[-1]  # [Q]
    side = int(len(assigned) ** 0.5)
    for query, number in enumerate(assigned.tolist()):
        row, column = divmod(query, side)
        colour = CARD if number < 0 else COLOURS[target.labels[number]]
        right.add_patch(
            Rectangle((column, row), 0.9, 0.9, facecolor=colour, edgecolor="#9aa0a6", linewidth=0.6)
        )
        if number >= 0:
            right.text(
                column + 0.45,
                row + 0.47,
                str(number),
                ha="center",
                va="center",
                fontsize=9,
                color="white" if names[int(target.labels[number])] == "WBC" else INK,
            )
    right.set_xlim(-0.1, side)
    right.set_ylim(side, -0.1)
    right.set_aspect("equal")
    bare(right, f"targets of the {len(assigned)} queries")
    return figure


def losses(made: Specimen) -> Figure:
    """Stage 10: the three losses of every layer."""
    figure, axes = sheet(3.2)
    layers = len(made.trace.boxes)
    base = [0.0] * layers
    for at, (term, name) in enumerate(TERMS.items()):
        prefixes = [*(f"d{layer}." for layer in range(layers - 1)), ""]
        values = [made.comparison.losses[f"{prefix}{term}"] for prefix in prefixes]
        bars = axes.barh(
            range(layers),
            values,
            left=base,
            color=COLOURS[(0, 5, 4)[at]],
            edgecolor=INK,
            hatch=HATCHES[at],
            label=name,
        )
        axes.bar_label(
            bars,
            [f"{value:.2f}" for value in values],
            label_type="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )
        base = [low + value for low, value in zip(base, values, strict=True)]
    axes.set_yticks(range(layers), [f"layer {layer + 1}" for layer in range(layers)])
    axes.invert_yaxis()
    axes.set_xlabel("loss, weighted")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def step(made: Specimen) -> Figure:
    """Stage 11: the gradient norm of each part, and the learning rate of the 150-epoch schedule."""
    figure, (top, bottom) = sheet(5.6, nrows=2, height_ratios=[1.6, 1])
    everything = gradient_norms(made, auxiliary=True)
    last = gradient_norms(made, auxiliary=False)
    places = range(len(everything))
    for norms, name, shift, hatch in (
        (everything, "losses of all layers", -0.2, ""),
        (last, "losses of the last layer alone", 0.2, "//"),
    ):
        top.barh(
            [place + shift for place in places],
            list(norms.values()),
            0.4,
            label=name,
            hatch=hatch,
            edgecolor=INK,
            color=COLOURS[5 if shift < 0 else 0],
        )
    top.set_yticks(places, list(everything))
    top.invert_yaxis()
    top.set_xlabel("norm of the gradient, before clipping")
    top.legend()
    settings = TrainSettings(epochs=150, milestones=(100,))
    schedule = Schedule.of(settings, steps_per_epoch=1)
    epochs = range(settings.epochs)
    for lr, name, dashes in ((settings.lr, "transformer", "-"), (settings.backbone_lr, "backbone", "--")):
        bottom.semilogy(
            epochs, [lr * schedule.factor(epoch) for epoch in epochs], dashes, color=INK, label=name
        )
    bottom.set_xlabel("epoch")
    bottom.set_ylabel("learning rate")
    bottom.legend()
    return figure


def gradient_norms(made: Specimen, *, auxiliary: bool) -> dict[str, float]:
    """Return the gradient norm of each trained part, from the losses of all layers or of the last one only."""
    detector = made.detector
    assert detector.recipe is not None
    criterion = detector.recipe.criterion()
    criterion.auxiliary = auxiliary
    output = detector(ImageBatch.from_images([made.trace.pixels], detector.preprocessing))
    total = sum(criterion(output, [made.comparison.target]).values())
    layers = {f"decoder layer {at + 1}": f"decoder.layers.{at}" for at in range(len(made.trace.boxes))}
    parts = {
        "backbone": "backbone",
        "projection": "neck",
        "encoder": "encoder",
        "queries": "queries",
        **layers,
        "class head": "decoder.class_head",
        "box head": "decoder.box_head",
    }
    trained = {
        name: [p for p in detector.get_submodule(part).parameters() if p.requires_grad]
        for name, part in parts.items()
    }
    flat = [parameter for group in trained.values() for parameter in group]
    grads = iter(torch.autograd.grad(total, flat))
    return {
        name: float(torch.stack([next(grads).norm() for _ in group]).norm())
        for name, group in trained.items()
    }
