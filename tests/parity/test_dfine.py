"""D-FINE equals transformers' own, on random weights in float64: memory, proposals and every decoder layer."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from peers import assert_same, images, in_file, randomized

from querybox import Detector
from querybox.models.layouts.dfine import HUGGINGFACE_DFINE
from querybox.structures import Memory

transformers = pytest.importorskip("transformers")

TINY: dict[str, Any] = {
    "width": 32,
    "encoder_width": 32,
    "heads": 4,
    "feedforward": 56,
    "encoder_feedforward": 40,
    "queries": 20,
}
SIZES: dict[str, dict[str, Any]] = {
    "dfine_n": {"decoder_layers": 3},
    "dfine_s": {"decoder_layers": 2, "points": (3, 6, 3)},
    "dfine_x": {"decoder_layers": 2, "encoder_width": 48, "backbone": "hgnetv2_b4.ssld_stage1_in22k_in1k"},
}
"""The last has an encoder that is wider than the decoder, and distances of another curvature."""
CLASSES = 5


def make(name: str) -> Detector:
    return Detector.from_recipe(name, num_classes=CLASSES, **{**TINY, **SIZES[name]})


@cache
def peer(name: str) -> Any:
    """Return a model of transformers with the config that is written for it, and weights that are not a new model's."""
    recipe = make(name).recipe
    assert recipe is not None
    written = recipe.huggingface_config()
    assert written.pop("architectures") == ["DFineForObjectDetection"]
    config = transformers.DFineConfig(**written, num_labels=CLASSES)
    torch.manual_seed(0)
    model = transformers.DFineForObjectDetection(config).eval()
    return randomized(model)


def detector_of(name: str) -> Detector:
    detector = make(name)
    detector.load_state_dict(HUGGINGFACE_DFINE.to_ours(peer(name).state_dict()))
    return detector.double().eval()


@pytest.mark.parametrize("size", [(128, 128), (64, 160)], ids=["square", "oblong"])
@pytest.mark.parametrize("name", SIZES)
def test_all_layers_are_those_of_transformers(name: str, size: tuple[int, int]) -> None:
    model, detector, given = peer(name), detector_of(name), images(*size)
    seen: dict[str, Any] = {}
    for stage in ("encoder", "queries"):
        getattr(detector, stage).register_forward_hook(
            lambda _m, _i, output, stage=stage: seen.update({stage: output})
        )
    with torch.no_grad():
        inner = model.model(given.images)
        ours = detector(given)
        # transformers computes the predictions of all layers in training, where nothing else is random.
        model.model.decoder.training = True
        every = model.model(given.images)
        model.model.decoder.training = False

    projected = [
        model.model.decoder_input_proj[i](each) for i, each in enumerate(inner.encoder_last_hidden_state)
    ]
    assert isinstance(seen["encoder"], Memory)
    assert_same(seen["encoder"].tokens, torch.cat([each.flatten(2).transpose(1, 2) for each in projected], 1))
    assert_same(seen["queries"].proposals.logits, inner.enc_topk_logits)
    assert_same(seen["queries"].proposals.boxes, inner.enc_topk_bboxes)

    first = ours.layers[0].initial
    assert first is not None
    assert_same(first.logits, every.intermediate_logits[:, 0])
    assert_same(first.boxes, every.intermediate_reference_points[:, 0])
    for index, layer in enumerate(ours.layers):
        assert layer.edges is not None
        assert_same(layer.logits, every.intermediate_logits[:, index + 1])
        assert_same(layer.boxes, every.intermediate_reference_points[:, index + 1])
        assert_same(layer.edges.start, every.initial_reference_points[:, index])
        assert_same(layer.edges.logits.flatten(2), every.intermediate_predicted_corners[:, index])
    assert ours.layers[-1].logits.std() > 0.1
    assert_same(ours.layers[-1].boxes, inner.intermediate_reference_points[:, -1])


@pytest.mark.parametrize("name", SIZES)
def test_names_and_values_are_the_same_in_both_directions(name: str) -> None:
    state = {key: tensor.float() for key, tensor in peer(name).state_dict().items()}
    recipe = make(name).recipe
    assert recipe is not None
    ours = HUGGINGFACE_DFINE.to_ours(state)
    written = HUGGINGFACE_DFINE.to_theirs({**ours, **recipe.computed_tensors()})
    in_files = in_file(state)
    assert written.keys() == in_files.keys()
    for key, tensor in in_files.items():
        assert torch.equal(written[key], tensor), key
