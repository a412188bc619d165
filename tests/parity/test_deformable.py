"""Deformable DETR equals transformers' own, on random weights in float64: plain, with refinement, two-stage."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from querybox import Detector, ImageBatch
from querybox.structures import Memory, Predictions, Queries

transformers = pytest.importorskip("transformers")

LAYERS, WIDTH, QUERIES, CLASSES = 3, 64, 15, 5
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


def peer(variant: dict[str, bool]) -> Any:
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.DeformableDetrConfig(
        backbone_config=backbone,
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=LAYERS,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=QUERIES,
        two_stage_num_proposals=QUERIES,
        num_labels=CLASSES,
        **variant,
    )
    torch.manual_seed(0)
    model = transformers.DeformableDetrForObjectDetection(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.double()


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


class Given(nn.Module):
    """Stands in for the backbone: the features are the peer's own."""

    def __init__(self, features: list[Tensor]) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.features


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert_close(ours, theirs, rtol=0, atol=1e-5)


def padded_batch() -> ImageBatch:
    """Return two images, the second of which is padded."""
    images = torch.randn(2, 3, 96, 128, dtype=torch.float64)
    padding_mask = torch.zeros(2, 96, 128, dtype=torch.bool)
    padding_mask[1, 70:], padding_mask[1, :, 100:] = True, True
    images = images.masked_fill(padding_mask[:, None], 0.0)
    return ImageBatch(images=images, padding_mask=padding_mask, sizes=torch.tensor([[96, 128], [70, 100]]))


def detector_of(model: Any, name: str, features: list[Tensor]) -> Detector:
    """Return our detector with the weights of the peer, whose backbone gave these features."""
    detector = Detector.from_recipe(
        name,
        num_classes=CLASSES,
        backbone="resnet18.tv_in1k",
        width=WIDTH,
        heads=4,
        feedforward=96,
        encoder_layers=2,
        decoder_layers=LAYERS,
        queries=QUERIES,
    )
    detector.neck = type(detector.neck)([each.shape[1] for each in features], WIDTH, 4)
    detector.backbone = Given(features)
    detector.load_state_dict(translate(model.state_dict(), refine="with_box_refine" in VARIANTS[name]))
    return detector.double().eval()


@pytest.mark.parametrize("name", VARIANTS)
def test_all_layers_are_those_of_transformers(name: str) -> None:
    model, batch = peer(VARIANTS[name]), padded_batch()
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
