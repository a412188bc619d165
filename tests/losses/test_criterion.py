"""The losses are what equation 2 says, in float32, with the names of MMDetection."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from querybox.boxes import giou, to_xyxy
from querybox.errors import ConfigError
from querybox.losses.classification import FocalLoss
from querybox.losses.criterion import Criterion, mean_over_processes
from querybox.structures import DetectorOutput, Predictions, Target


def case(counts: list[int], *, layers: int = 3, queries: int = 7) -> tuple[DetectorOutput, list[Target]]:
    generator = torch.Generator().manual_seed(len(counts))
    outputs = tuple(
        Predictions(
            logits=torch.randn(len(counts), queries, 5, generator=generator),
            boxes=torch.rand(len(counts), queries, 4, generator=generator) * 0.5 + 0.1,
        )
        for _ in range(layers)
    )
    targets = [
        Target(
            boxes=torch.rand(count, 4, generator=generator) * 0.5 + 0.1,
            labels=torch.randint(4, (count,), generator=generator),
        )
        for count in counts
    ]
    return DetectorOutput(layers=outputs), targets


def direct(layer: Predictions, targets: list[Target]) -> dict[str, Tensor]:
    """One layer's losses, image by image, as facebookresearch's description has them."""
    criterion = Criterion()
    wanted = torch.full(layer.logits.shape[:2], 4)
    l1, looseness, count = torch.zeros(()), torch.zeros(()), 0
    for image, target in enumerate(targets):
        matches = criterion.matcher(layer.logits[None, [image]], layer.boxes[None, [image]], [target])
        query, objects = matches.query[0], matches.object[0]
        wanted[image, query] = target.labels[objects]
        found, truth = layer.boxes[image, query], target.boxes[objects]
        l1 = l1 + F.l1_loss(found, truth, reduction="sum")
        looseness = looseness + (1 - giou(to_xyxy(found), to_xyxy(truth))).sum()
        count += len(query)
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.1])
    return {
        # With any object in the batch the weighted mean is the same thing as the published average factor.
        "loss_cls": F.cross_entropy(layer.logits.flatten(0, 1), wanted.flatten(), weight),
        "loss_bbox": 5 * l1 / max(count, 1),
        "loss_iou": 2 * looseness / max(count, 1),
    }


@pytest.mark.parametrize("counts", [[3, 2], [4], [0, 1, 6], [9, 2], [1]])
def test_equals_the_direct_definition(counts: list[int]) -> None:
    output, targets = case(counts)
    losses = Criterion()(output, targets)
    for index, prefix in enumerate(["d0.", "d1.", ""]):
        for name, value in direct(output.layers[index], targets).items():
            assert_close(losses[prefix + name], value, rtol=1e-5, atol=1e-6)


def test_a_single_layer_is_the_last() -> None:
    output, targets = case([3, 2], layers=1)
    losses = Criterion()(output, targets)
    assert list(losses) == ["loss_cls", "loss_bbox", "loss_iou"]
    assert_close(losses, direct(output.layers[0], targets), rtol=1e-5, atol=1e-6)


def test_proposals_have_to_say_the_class_unless_any_will_do() -> None:
    output, targets = case([3, 2])
    proposed = replace(output, proposals=output.layers[0])
    enough = Criterion(class_agnostic_proposals=True)(proposed, targets)
    losses = Criterion()(proposed, targets)
    for name in ("loss_cls", "loss_bbox", "loss_iou"):
        assert losses[f"enc_{name}"] == losses[f"d0.{name}"]
    alike = [Target(boxes=target.boxes, labels=torch.zeros_like(target.labels)) for target in targets]
    assert enough["enc_loss_cls"] == Criterion()(output, alike)["d0.loss_cls"] != losses["enc_loss_cls"]


def test_counts_are_averaged_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda counts: counts.add_(torch.tensor([1.0, 9.0])))
    assert torch.stack(mean_over_processes(3, 5, like=torch.empty(0))).tolist() == [2, 7]


@pytest.mark.parametrize(
    ("precision", "computed"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_losses_are_in_float32_at_least(precision: torch.dtype, computed: torch.dtype) -> None:
    output, targets = case([3, 0, 2])
    layers = tuple(
        Predictions(logits=layer.logits.to(precision), boxes=layer.boxes.to(precision))
        for layer in output.layers
    )
    exact = tuple(Predictions(logits=layer.logits.double(), boxes=layer.boxes.double()) for layer in layers)
    losses = Criterion()(DetectorOutput(layers=layers), targets)
    wanted = Criterion()(DetectorOutput(layers=exact), targets)
    for name, loss in losses.items():
        assert loss.dtype == computed, name
        assert_close(loss.double(), wanted[name], rtol=torch.finfo(computed).eps * 16, atol=0.0, msg=name)


def test_images_without_objects_are_negatives() -> None:
    output, targets = case([0, 0])
    losses = Criterion()(output, targets)
    cross_entropy = -output.layers[-1].logits.log_softmax(-1)[..., -1].sum()
    assert_close(losses["loss_cls"], 0.1 * cross_entropy / max(1.0, 0.1 * 14))
    assert losses["loss_bbox"] == 0
    assert losses["loss_iou"] == 0


def test_few_queries_do_not_divide_by_less_than_one() -> None:
    output, targets = case([0], queries=3)
    losses = Criterion()(output, targets)
    assert_close(losses["loss_cls"], -0.1 * output.layers[-1].logits.log_softmax(-1)[..., -1].sum())


def test_names_and_order() -> None:
    output, targets = case([2])
    assert list(Criterion()(output, targets)) == [
        "loss_cls", "loss_bbox", "loss_iou",
        "d0.loss_cls", "d0.loss_bbox", "d0.loss_iou",
        "d1.loss_cls", "d1.loss_bbox", "d1.loss_iou",
    ]  # fmt: skip
    assert list(Criterion(auxiliary=False)(output, targets)) == ["loss_cls", "loss_bbox", "loss_iou"]


def test_weights_scale_their_terms() -> None:
    output, targets = case([2, 3])
    plain = Criterion()(output, targets)
    weighted = Criterion(class_weight=2, box_weight=15, giou_weight=8)(output, targets)
    for name, value in plain.items():
        factor = {"cls": 2, "bbox": 3, "iou": 4}[name.rpartition("_")[2]]
        assert_close(weighted[name], factor * value)


def test_float32_and_finite_under_half_precision() -> None:
    output, targets = case([3, 0])
    half = DetectorOutput(
        layers=tuple(
            replace(layer, logits=80 * layer.logits.half(), boxes=layer.boxes.half())
            for layer in output.layers
        )
    )
    losses = Criterion()(half, targets)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())


def test_gradients_reach_every_layer() -> None:
    output, targets = case([3])
    leaves = [replace(layer, boxes=layer.boxes.requires_grad_()) for layer in output.layers]
    losses = Criterion()(DetectorOutput(layers=tuple(leaves)), targets)
    torch.stack(list(losses.values())).sum().backward()
    assert all(leaf.boxes.grad is not None and leaf.boxes.grad.abs().sum() > 0 for leaf in leaves)


def test_labels_are_those_of_classes_whatever_their_rows() -> None:
    """Rows 0 and 2 belong to no class, as in heads whose rows are category ids."""
    output, targets = case([2, 1])
    targets = [replace(target, labels=target.labels % 2) for target in targets]
    rows = (1, 3)
    on_rows = [replace(target, labels=torch.tensor(rows)[target.labels]) for target in targets]
    expected = Criterion()(output, on_rows)
    found = replace(output, layers=tuple(replace(layer, class_rows=rows) for layer in output.layers))
    losses = Criterion()(found, targets)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert_close(loss, expected[name], rtol=0, atol=0)
    assert not torch.equal(losses["loss_cls"], Criterion()(output, targets)["loss_cls"])


def test_a_criterion_for_other_scores_is_refused() -> None:
    """With cross-entropy, the last class of a sigmoid detector would be "no object"."""
    output, targets = case([2, 1])
    sigmoid = replace(output, layers=tuple(replace(layer, no_object=False) for layer in output.layers))
    with pytest.raises(
        ConfigError, match=r"CrossEntropyLoss, but .* a sigmoid for each class; use detector.criterion"
    ):
        Criterion()(sigmoid, targets)
    focal = Criterion(classification=FocalLoss())
    assert focal(sigmoid, targets)["loss_cls"] > 0
    with pytest.raises(ConfigError, match=r"FocalLoss, but .* a softmax with a no-object class"):
        focal(output, targets)


@pytest.mark.parametrize(("rows", "classes"), [(None, 4), ((1, 3), 2)])
def test_a_label_that_no_class_has_is_refused(rows: tuple[int, ...] | None, classes: int) -> None:
    """One label too high would mean "no object" in a softmax."""
    output, _ = case([1])
    output = replace(output, layers=tuple(replace(layer, class_rows=rows) for layer in output.layers))
    box = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    Criterion()(output, [Target(boxes=box, labels=torch.tensor([classes - 1]))])
    with pytest.raises(
        ConfigError, match=rf"label {classes} for {classes} classes; expected labels from 0 to"
    ):
        Criterion()(output, [Target(boxes=box, labels=torch.tensor([classes]))])
