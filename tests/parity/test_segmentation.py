"""DETR's segmentation models: those of transformers give the same numbers here, and files go there and back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import assert_same, padded_batch
from tiny_models import SEGMENTATION
from torch import Tensor

from querybox import Detector
from querybox.checkpoints.convert import convert
from querybox.checkpoints.read import read_checkpoint

transformers: Any = pytest.importorskip("transformers")
CLASSES = 5


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "dilated"])
def model(request: pytest.FixtureRequest) -> Any:
    """A segmentation model of transformers in evaluation mode, with random weights and statistics."""
    config = transformers.DetrConfig(
        backbone="resnet18",
        dilation=request.param,
        d_model=SEGMENTATION["width"],
        encoder_layers=SEGMENTATION["encoder_layers"],
        decoder_layers=SEGMENTATION["decoder_layers"],
        encoder_ffn_dim=SEGMENTATION["feedforward"],
        decoder_ffn_dim=SEGMENTATION["feedforward"],
        encoder_attention_heads=SEGMENTATION["heads"],
        decoder_attention_heads=SEGMENTATION["heads"],
        num_queries=SEGMENTATION["queries"],
        num_labels=CLASSES,
    )
    torch.manual_seed(0)
    model = transformers.DetrForSegmentation(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
            else:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
        # Queries differ, and masks depend on where they attend to.
        model.detr.model.query_position_embeddings.weight.normal_(0, 3)
        for layer in model.detr.model.decoder.layers:
            layer.encoder_attn.q_proj.weight.mul_(10)
        model.bbox_attention.q_proj.weight.mul_(4)
        model.mask_head.conv1.conv.weight[:, -SEGMENTATION["heads"] :].mul_(200)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return model


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("segmentation")
    model.save_pretrained(path)
    return path


def answers(model: Any, *sizes: tuple[int, int]) -> tuple[Any, Any]:
    given = padded_batch(*sizes)
    with torch.no_grad():
        return given, model(given.images, pixel_mask=(~given.padding_mask).long())


@pytest.mark.parametrize(
    "sizes",
    [[(96, 96)], [(75, 160)], [(96, 128), (70, 100)]],
    ids=["square", "oblong", "padded"],
)
def test_masks_are_those_of_transformers(model: Any, folder: Path, sizes: list[tuple[int, int]]) -> None:
    detector = Detector.load(folder).double()
    given, theirs = answers(model.double(), *sizes)
    with torch.no_grad():
        ours = detector(given).layers[-1]
    assert ours.masks is not None
    query = torch.arange(SEGMENTATION["queries"]).flip(0).expand(len(sizes), -1)
    assert theirs.pred_masks.std(1).mean() > 0.01  # by far more than the tolerance
    assert_same(ours.masks.logits(query), theirs.pred_masks.flip(1))
    assert_same(ours.masks.of_queries(slice(3, 5)).logits(query[:, -2:]), theirs.pred_masks[:, 3:5].flip(1))
    assert_same(ours.logits, theirs.logits)
    assert_same(ours.boxes, theirs.pred_boxes)


def test_files_there_and_back(
    model: Any, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "querybox")
    original = model.float().state_dict()
    convert(folder, tmp_path / "facebook.pth", to="facebook")
    assert "its class head has 5 rows" in caplog.text
    assert "it has a mask head: pass --masks there" in caplog.text
    convert(tmp_path / "facebook.pth", tmp_path / "huggingface", to="huggingface")
    back = transformers.DetrForSegmentation.from_pretrained(tmp_path / "huggingface").state_dict()
    assert back.keys() == original.keys()
    for name, tensor in original.items():
        assert torch.equal(back[name], tensor), name
    assert read_checkpoint(tmp_path / "huggingface").blueprint.recipe.model_dump()["masks"] == "attention"


def test_names_in_memory(model: Any, folder: Path, tmp_path: Path) -> None:
    torch.save(model.float().state_dict(), tmp_path / "model.pth")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    wanted: dict[str, Tensor] = read_checkpoint(folder).state
    found = read_checkpoint(tmp_path / "model.pth").state
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
