"""Detectors of transformers with random weights, to which ours have to be equal in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from querybox import Detector, ImageBatch

LAYERS, WIDTH, QUERIES, CLASSES = 3, 64, 15, 5
CONSTANTS = ("points_scale", ".up", ".reg_scale")
NORMS = ("norm.weight", "enc_output.1.weight", "normalization.weight")
HEADS = ("bbox", "score", "class_embed", "gate", "reg_conf")


def peer(kind: str, stages: tuple[int, ...], **settings: Any) -> Any:
    """Return a small model of `kind`, such as "ConditionalDetr", with feature maps of these stages."""
    transformers: Any = pytest.importorskip("transformers")
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=[f"stage{stage}" for stage in stages],
    )
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=backbone,
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=LAYERS,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=QUERIES,
        num_labels=CLASSES,
        **settings,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForObjectDetection")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.double()


class Given(nn.Module):
    """Stands in for the backbone: the features are the peer's own."""

    def __init__(self, features: list[Tensor]) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.features


def like_peer(name: str, features: list[Tensor]) -> Detector:
    """Return our detector with the sizes of `peer`, whose backbone gave these features."""
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
    detector.backbone = Given(features)
    return detector


def padded_batch(*sizes: tuple[int, int]) -> ImageBatch:
    """Return images of these (height, width), padded to the largest."""
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    padding_mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for mask, (h, w) in zip(padding_mask, sizes, strict=True):
        mask[:h, :w] = False
    pixels = torch.randn(len(sizes), 3, height, width, dtype=torch.float64)
    return ImageBatch(
        images=pixels.masked_fill(padding_mask[:, None], 0.0),
        padding_mask=padding_mask,
        sizes=torch.tensor(sizes),
    )


@torch.no_grad()
def randomized(model: Any) -> Any:
    """Return a real-time detector in float64, with weights and statistics that are not those of a new one."""
    for key, tensor in model.state_dict().items():
        if key.endswith(CONSTANTS):
            continue
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif key.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif key.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif key.endswith(NORMS):
            tensor.uniform_(0.5, 1.5)
        elif tensor.ndim == 1:
            tensor.add_(0.1 * torch.randn_like(tensor))
        elif any(part in key for part in HEADS):
            tensor.normal_(0, 0.2)
    model.model.denoising_class_embed.weight[-1] = 0  # of no class; zero in published models
    return model.double()


def images(height: int, width: int) -> ImageBatch:
    generator = torch.Generator().manual_seed(1)
    return ImageBatch(
        images=torch.randn(2, 3, height, width, dtype=torch.float64, generator=generator),
        padding_mask=torch.zeros(2, height, width, dtype=torch.bool),
        sizes=torch.tensor([[height, width]] * 2),
    )


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 1e-3
    assert_close(ours, theirs, rtol=0, atol=1e-5)


def in_file(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state in memory (transformers 5) as it is in files on the Hub.

    They do not repeat the heads, which most models have outside of the decoder as well.
    """
    names = {
        "encoder.aifi.0": "encoder.encoder.0",
        ".o_proj.": ".out_proj.",
        ".mlp.layers.0": ".fc1",
        ".mlp.layers.1": ".fc2",
        ".mlp.fc": ".fc",
    }
    found = {}
    for key, tensor in state.items():
        if not key.startswith(("class_embed", "bbox_embed")):
            for name, in_files in names.items():
                key = key.replace(name, in_files)
            found[key] = tensor
    return found
