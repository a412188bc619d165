"""Deformable DETR equals transformers' own, on random weights in float64: plain, with refinement, two-stage."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from peers import LAYERS, QUERIES, WIDTH, assert_same, like_peer, padded_batch, peer
from torch import Tensor

from querybox import Detector
from querybox.structures import Memory, Predictions, Queries

pytest.importorskip("transformers")

VARIANTS: dict[str, dict[str, bool]] = {
    "deformable_detr_r50": {},
    "deformable_detr_r50_refine": {"with_box_refine": True},
    "deformable_detr_r50_two_stage": {"with_box_refine": True, "two_stage": True},
}
RULES = (
    (r"^model\.input_proj", "neck.projections"),
    (r"^model\.level_embed", "encoder.level"),
    (r"^model\.query_position_embeddings\.weight", "queries.embedding"),
    (r"^model\.reference_points", "queries.reference"),
    (r"^model\.enc_output_norm", "queries.proposals.norm"),
    (r"^model\.enc_output", "queries.proposals.projection"),
    (r"^model\.pos_trans_norm", "queries.norm"),
    (r"^model\.pos_trans", "queries.projection"),
    (r"^model\.(encoder|decoder)\.", r"\1."),
    (r"^decoder\.(class|bbox)_embed", r"\1_embed"),
    (r"self_attn_layer_norm", "self_attention_residual.norm"),
    (r"encoder_attn_layer_norm", "cross_attention_residual.norm"),
    (r"final_layer_norm", "feedforward_residual.norm"),
    (r"\.self_attn\.", ".self_attention."),
    (r"\.encoder_attn\.", ".cross_attention."),
    (r"sampling_offsets", "offset"),
    (r"attention_weights", "weight"),
    (r"value_proj|v_proj", "value"),
    (r"output_proj|o_proj", "output"),
    (r"q_proj", "query"),
    (r"k_proj", "key"),
    (r"mlp\.fc1", "feedforward.0"),
    (r"mlp\.fc2", "feedforward.3"),
)


def translate(state: dict[str, Tensor], *, refine: bool) -> dict[str, Tensor]:
    """Give the peer's tensors our names; heads that it lists once a layer although they are one come out once."""
    result = {}
    for name, tensor in state.items():
        for theirs, ours in RULES:
            name = re.sub(theirs, ours, name)
        head = re.fullmatch(r"(class|bbox)_embed\.(\d+)(?:\.layers\.(\d))?\.(\w+)", name)
        if head:
            kind, index, layer, leaf = head.groups()
            inner = f".{2 * int(layer)}" if layer else ""
            if int(index) == LAYERS:  # the last is the encoder's
                name = (
                    f"queries.proposals.{ {'class': 'class_head', 'bbox': 'box_head'}[kind] }{inner}.{leaf}"
                )
            else:
                place = index if refine else "0"
                name = (
                    f"decoder.{ {'class': 'class_heads', 'bbox': 'box_heads'}[kind] }.{place}{inner}.{leaf}"
                )
        if not name.startswith("model.backbone"):
            result[name] = tensor
    return result


def detector_of(model: Any, name: str, features: list[Tensor]) -> Detector:
    """Return our detector with the weights of the peer, whose backbone gave these features."""
    detector = like_peer(name, features)
    detector.neck = type(detector.neck)([each.shape[1] for each in features], WIDTH, 4)
    detector.load_state_dict(translate(model.state_dict(), refine="with_box_refine" in VARIANTS[name]))
    return detector.double().eval()


@pytest.mark.parametrize("name", VARIANTS)
def test_all_layers_are_those_of_transformers(name: str) -> None:
    settings = {"two_stage_num_proposals": QUERIES, **VARIANTS[name]}
    model, batch = peer("DeformableDetr", (2, 3, 4), **settings), padded_batch((96, 128), (70, 100))
    features: list[Tensor] = []
    model.model.backbone.register_forward_hook(
        lambda _module, _inputs, maps: features.extend(each for each, _ in maps)
    )
    with torch.no_grad():
        theirs = model(batch.images, pixel_mask=(~batch.padding_mask).long())

    detector = detector_of(model, name, features)
    seen: dict[str, Any] = {}
    for part in ("encoder", "queries"):
        module = getattr(detector, part)
        module.register_forward_hook(lambda _m, _i, result, part=part: seen.update({part: result}))
    with torch.no_grad():
        ours = detector(batch)

    memory, queries = seen["encoder"], seen["queries"]
    assert isinstance(memory, Memory)
    assert isinstance(queries, Queries)
    assert queries.reference is not None
    assert memory.padding_mask is not None
    # Not compared at padding, which nothing attends to: its encoding may have a sine of -pi / 1e-6, which depends on
    # whether it is computed in float64 (theirs) or float32 (ours).
    image = ~memory.padding_mask
    assert_same(memory.tokens[image], theirs.encoder_last_hidden_state[image])
    assert_same(queries.reference, theirs.init_reference_points)
    assert len(ours.layers) == LAYERS
    for layer, reference in zip(ours.layers, theirs.intermediate_reference_points.unbind(1), strict=True):
        if "with_box_refine" in VARIANTS[name]:  # the reference after a layer is its box
            assert_same(layer.boxes, reference)
    assert_same(ours.layers[-1].logits, theirs.logits)
    assert_same(ours.layers[-1].boxes, theirs.pred_boxes)
    if "two_stage" in VARIANTS[name]:
        proposals = ours.proposals
        assert isinstance(proposals, Predictions)
        assert_same(proposals.logits, theirs.enc_outputs_class)
        assert_same(proposals.boxes, theirs.enc_outputs_coord_logits.sigmoid())
