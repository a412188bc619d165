"""RT-DETR and RT-DETRv2 equal transformers' own, on random weights in float64: every stage and decoder layer."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from peers import assert_same, images, in_file, randomized

from querybox import Detector
from querybox.models.layouts.layout import Layout
from querybox.models.layouts.rtdetr import HUGGINGFACE_RTDETR
from querybox.models.layouts.rtdetrv2 import HUGGINGFACE_RTDETRV2
from querybox.structures import Memory

transformers = pytest.importorskip("transformers")

CLASSES, QUERIES = 5, 20
CONFIGS: dict[str, dict[str, Any]] = {
    "r18": {"decoder_layers": 3, "hidden_expansion": 0.5, "encoder_hidden_dim": 32, "d_model": 32},
    "r50": {"decoder_layers": 2, "hidden_expansion": 1.0, "encoder_hidden_dim": 48, "d_model": 32},
}
"""The second has an encoder that is wider than the decoder, as the r101 has."""
VERSIONS: dict[str, tuple[str, Layout, dict[str, Any], dict[str, Any]]] = {
    "rtdetr_r18": ("RTDetr", HUGGINGFACE_RTDETR, {}, {}),
    "rtdetr_r50": ("RTDetr", HUGGINGFACE_RTDETR, {}, {}),
    "rtdetrv2_s": ("RTDetrV2", HUGGINGFACE_RTDETRV2, {"decoder_n_points": 2}, {"points": (2, 2, 2)}),
    "rtdetrv2_l": (
        "RTDetrV2",
        HUGGINGFACE_RTDETRV2,
        {"decoder_method": "discrete"},
        {"discrete": True},
    ),
}
"""By recipe: prefix of the classes in transformers, the layout, and further settings there and here."""
SIZES = {"rtdetrv2_s": "r18", "rtdetrv2_l": "r50"}
BACKBONES: dict[str, dict[str, Any]] = {
    "r18": {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"},
    "r50": {"hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3], "layer_type": "bottleneck"},
}


@cache
def peer(name: str) -> Any:
    """Return a model of transformers, with statistics of batch norms that are not those of a new model."""
    prefix, _, settings, _ = VERSIONS[name]
    size = size_of(name)
    sizes = CONFIGS[size]
    channels = BACKBONES[size]["hidden_sizes"][1:]
    config = getattr(transformers, f"{prefix}Config")(
        backbone_config=transformers.RTDetrResNetConfig(**BACKBONES[size], out_indices=[2, 3, 4]),
        encoder_in_channels=channels,
        decoder_in_channels=[sizes["encoder_hidden_dim"]] * 3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=40,
        decoder_ffn_dim=56,
        num_queries=QUERIES,
        num_labels=CLASSES,
        **sizes,
        **settings,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{prefix}ForObjectDetection")(config).eval()
    return randomized(model)


def size_of(name: str) -> str:
    return SIZES.get(name, name.removeprefix("rtdetr_"))


def detector_of(name: str) -> Detector:
    _, layout, _, settings = VERSIONS[name]
    sizes = CONFIGS[size_of(name)]
    detector = Detector.from_recipe(
        name,
        num_classes=CLASSES,
        width=sizes["d_model"],
        encoder_width=sizes["encoder_hidden_dim"],
        heads=4,
        feedforward=56,
        encoder_feedforward=40,
        decoder_layers=sizes["decoder_layers"],
        queries=QUERIES,
        **settings,
    )
    detector.load_state_dict(layout.to_ours(peer(name).state_dict()))
    return detector.double().eval()


@pytest.mark.parametrize("size", [(96, 96), (64, 160)], ids=["square", "oblong"])
@pytest.mark.parametrize("name", VERSIONS)
def test_all_stages_are_those_of_transformers(name: str, size: tuple[int, int]) -> None:
    model, detector, given = peer(name), detector_of(name), images(*size)
    stages: dict[str, Any] = {}
    names = {"backbone": model.model.backbone, "projected": model.model.encoder, "memory": detector.encoder}
    names |= {"features": detector.backbone, "neck": detector.neck, "queries": detector.queries}
    hooks = [
        module.register_forward_hook(lambda _m, _i, output, stage=stage: stages.update({stage: output}))
        for stage, module in names.items()
    ]
    with torch.no_grad():
        theirs = model(given.images)
        inner = model.model(given.images)
        ours = detector(given)
    for hook in hooks:
        hook.remove()

    for feature, (expected, _) in zip(stages["features"], stages["backbone"], strict=True):
        assert feature.std() > 1e-3
        assert_same(feature, expected)
    projected = [
        model.model.decoder_input_proj[i](each) for i, each in enumerate(inner.encoder_last_hidden_state)
    ]
    memory = stages["memory"]
    assert isinstance(memory, Memory)
    assert memory.tokens.std() > 1e-3
    assert_same(memory.tokens, torch.cat([each.flatten(2).transpose(1, 2) for each in projected], 1))

    queries = stages["queries"]
    assert_same(queries.proposals.logits, inner.enc_topk_logits)
    assert_same(queries.proposals.boxes, inner.enc_topk_bboxes)
    assert_same(queries.reference, inner.init_reference_points.sigmoid())

    assert len(ours.layers) == CONFIGS[size_of(name)]["decoder_layers"]
    for index, layer in enumerate(ours.layers):
        assert_same(layer.logits, inner.intermediate_logits[:, index])
        assert_same(layer.boxes, inner.intermediate_reference_points[:, index])
        assert not layer.no_object
    assert ours.layers[-1].logits.std() > 0.1
    assert_same(ours.layers[-1].logits, theirs.logits)
    assert_same(ours.layers[-1].boxes, theirs.pred_boxes)


@pytest.mark.parametrize("name", VERSIONS)
def test_names_and_values_are_the_same_in_both_directions(name: str) -> None:
    state = {key: tensor.float() for key, tensor in peer(name).state_dict().items()}
    recipe, layout = detector_of(name).recipe, VERSIONS[name][1]
    assert recipe is not None
    written = layout.to_theirs({**layout.to_ours(state), **recipe.computed_tensors()})
    in_files = in_file(state)
    assert written.keys() == in_files.keys()
    for key, tensor in in_files.items():
        assert torch.equal(written[key], tensor), key
