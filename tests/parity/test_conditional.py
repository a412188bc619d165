"""Conditional DETR equals transformers' own, on random weights in float64: every decoder layer, and the losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peers import LAYERS, WIDTH, assert_same, like_peer, padded_batch, peer
from torch import Tensor

from querybox import Detector, DetectorOutput, ImageBatch, Target
from querybox.models.layouts.conditional import HUGGINGFACE_CONDITIONAL
from querybox.structures import Memory

pytest.importorskip("transformers")


def answers(model: Any, given: ImageBatch, labels: list[dict[str, Tensor]] | None = None) -> Any:
    """Return the peer's output, what its decoder layers made, and the backbone's features."""
    states: list[Tensor] = []
    features: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, state: states.append(state))
        for layer in model.model.decoder.layers
    ]
    hooks.append(
        model.model.backbone.register_forward_hook(
            lambda _m, _i, maps: features.extend(each for each, _ in maps[-1:])
        )
    )
    with torch.no_grad():
        output = model(given.images, pixel_mask=(~given.padding_mask).long(), labels=labels)
    for hook in hooks:
        hook.remove()
    return output, states, features


def detector_of(model: Any, features: list[Tensor]) -> Detector:
    detector = like_peer("conditional_detr_r50", features)
    detector.neck = type(detector.neck)([each.shape[1] for each in features], WIDTH)
    state = {
        name: tensor for name, tensor in model.state_dict().items() if not name.startswith("model.backbone.")
    }
    detector.load_state_dict(HUGGINGFACE_CONDITIONAL.to_ours(state))
    return detector.double().eval()


@pytest.mark.parametrize(
    "sizes",
    [[(96, 96)], [(64, 160)], [(96, 128), (70, 100)]],
    ids=["square", "oblong", "padded"],
)
def test_all_layers_are_those_of_transformers(sizes: list[tuple[int, int]]) -> None:
    model, given = peer("ConditionalDetr", (4,)), padded_batch(*sizes)
    theirs, states, features = answers(model, given)
    detector = detector_of(model, features)
    seen: dict[str, Any] = {}
    detector.encoder.register_forward_hook(lambda _m, _i, memory: seen.update(memory=memory))
    with torch.no_grad():
        ours = detector(given)

    memory = seen["memory"]
    assert isinstance(memory, Memory)
    image = ~memory.padding_mask if memory.padding_mask is not None else slice(None)
    assert_same(memory.tokens[image], theirs.encoder_last_hidden_state[image])
    assert len(ours.layers) == len(states) == LAYERS
    reference = model.model.decoder.ref_point_head(model.model.query_position_embeddings.weight)
    for layer, state in zip(ours.layers, states, strict=True):
        answer = model.model.decoder.layernorm(state)
        assert_same(layer.logits, model.class_labels_classifier(answer))
        deltas = model.bbox_predictor(answer)
        deltas[..., :2] += reference
        assert_same(layer.boxes, deltas.sigmoid())
    assert_same(ours.layers[-1].logits, theirs.logits)
    assert_same(ours.layers[-1].boxes, theirs.pred_boxes)
    assert not ours.layers[-1].no_object


def test_losses_are_those_of_transformers() -> None:
    model, given = peer("ConditionalDetr", (4,)), padded_batch((96, 128), (70, 100))
    boxes = torch.rand(5, 4, dtype=torch.float64) * 0.3 + 0.2
    labels = torch.tensor([0, 3, 1, 4, 4])
    targets = [Target(boxes=boxes[:2], labels=labels[:2]), Target(boxes=boxes[2:], labels=labels[2:])]
    theirs, _, features = answers(
        model, given, [{"class_labels": each.labels, "boxes": each.boxes} for each in targets]
    )
    detector = detector_of(model, features)
    assert detector.recipe is not None
    with torch.no_grad():
        output = detector(given)
        losses = detector.recipe.criterion()(DetectorOutput(layers=output.layers[-1:]), targets)
    # The weights are those of the authors' code; transformers' sum weighs the classes by 1.
    weights = {"loss_cls": ("loss_ce", 2), "loss_bbox": ("loss_bbox", 5), "loss_iou": ("loss_giou", 2)}
    for name, (theirs_name, weight) in weights.items():
        assert losses[name].item() == pytest.approx(weight * float(theirs.loss_dict[theirs_name]), rel=1e-5)
