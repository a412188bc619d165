"""RT-DETR equals transformers' own, on random weights in float64: every stage and every decoder layer."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from querybox import Detector, ImageBatch
from querybox.models.layouts.rtdetr import HUGGINGFACE_RTDETR
from querybox.structures import Memory

transformers = pytest.importorskip("transformers")

CLASSES, QUERIES = 5, 20
CONFIGS: dict[str, dict[str, Any]] = {
    "r18": {"decoder_layers": 3, "hidden_expansion": 0.5, "encoder_hidden_dim": 32, "d_model": 32},
    "r50": {"decoder_layers": 2, "hidden_expansion": 1.0, "encoder_hidden_dim": 48, "d_model": 32},
}
"""The second has an encoder that is wider than the decoder, as the r101 has."""
BACKBONES: dict[str, dict[str, Any]] = {
    "r18": {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"},
    "r50": {"hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3], "layer_type": "bottleneck"},
}


@cache
def peer(name: str) -> Any:
    """Return a model of transformers, with statistics of batch norms that are not those of a new model."""
    sizes = CONFIGS[name]
    channels = BACKBONES[name]["hidden_sizes"][1:]
    config = transformers.RTDetrConfig(
        backbone_config=transformers.RTDetrResNetConfig(**BACKBONES[name], out_indices=[2, 3, 4]),
        encoder_in_channels=channels,
        decoder_in_channels=[sizes["encoder_hidden_dim"]] * 3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=40,
        decoder_ffn_dim=56,
        num_queries=QUERIES,
        num_labels=CLASSES,
        **sizes,
    )
    torch.manual_seed(0)
    model = transformers.RTDetrForObjectDetection(config).eval()
    with torch.no_grad():
        for tensor_name, tensor in model.state_dict().items():
            if tensor_name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor_name.endswith("running_mean"):
                tensor.normal_(0, 0.1)
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn_like(tensor))
                if tensor_name.endswith("norm.weight") or ".enc_output.1.weight" in tensor_name:
                    tensor.uniform_(0.5, 1.5)
            elif "bbox" in tensor_name or "score" in tensor_name or "class_embed" in tensor_name:
                tensor.normal_(0, 0.2)
        model.model.denoising_class_embed.weight[-1] = 0  # of no class; zero in published models
    return model.double()


def detector_of(name: str) -> Detector:
    sizes = CONFIGS[name]
    detector = Detector.from_recipe(
        f"rtdetr_{name}",
        num_classes=CLASSES,
        width=sizes["d_model"],
        encoder_width=sizes["encoder_hidden_dim"],
        heads=4,
        feedforward=56,
        encoder_feedforward=40,
        decoder_layers=sizes["decoder_layers"],
        queries=QUERIES,
    )
    detector.load_state_dict(HUGGINGFACE_RTDETR.to_ours(peer(name).state_dict()))
    return detector.double().eval()


def images(height: int, width: int) -> ImageBatch:
    generator = torch.Generator().manual_seed(1)
    return ImageBatch(
        images=torch.randn(2, 3, height, width, dtype=torch.float64, generator=generator),
        padding_mask=torch.zeros(2, height, width, dtype=torch.bool),
        sizes=torch.tensor([[height, width]] * 2),
    )


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(96, 96), (64, 160)], ids=["square", "oblong"])
@pytest.mark.parametrize("name", CONFIGS)
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

    assert len(ours.layers) == CONFIGS[name]["decoder_layers"]
    for index, layer in enumerate(ours.layers):
        assert_same(layer.logits, inner.intermediate_logits[:, index])
        assert_same(layer.boxes, inner.intermediate_reference_points[:, index])
        assert not layer.no_object
    assert ours.layers[-1].logits.std() > 0.1
    assert_same(ours.layers[-1].logits, theirs.logits)
    assert_same(ours.layers[-1].boxes, theirs.pred_boxes)


@pytest.mark.parametrize("name", CONFIGS)
def test_names_and_values_are_the_same_in_both_directions(name: str) -> None:
    state = {key: tensor.float() for key, tensor in peer(name).state_dict().items()}
    written = HUGGINGFACE_RTDETR.to_theirs(HUGGINGFACE_RTDETR.to_ours(state))
    in_files = {rename(key): tensor for key, tensor in state.items()}
    assert written.keys() == in_files.keys()
    for key, tensor in in_files.items():
        assert torch.equal(written[key], tensor), key


def rename(name: str) -> str:
    """Return the name in files on the Hub of a tensor in memory (transformers 5)."""
    name = name.replace("encoder.aifi.0", "encoder.encoder.0").replace(".o_proj.", ".out_proj.")
    return name.replace(".mlp.fc", ".fc")
