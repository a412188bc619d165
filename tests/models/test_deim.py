"""What DEIM changes in the models that it trains."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hybrid_models import make, square
from torch import Tensor, nn
from torch.testing import assert_close

from querybox import Detector, QueryboxError, RunSettings, load
from querybox.checkpoints.convert import convert
from querybox.losses.classification import MatchabilityLoss
from querybox.models import DEIM_RECIPES, DFINE, PUBLIC_WEIGHTS, find
from querybox.training.optim import Schedule
from querybox.training.start import build_detector, resolve

DEIM: dict[str, Any] = {"activation": "silu", "position_layers": 3}


@torch.no_grad()
def answer(detector: Any) -> list[Tensor]:
    layer = detector(square(1)).layers[-1]
    return [layer.logits, layer.boxes]


@pytest.mark.parametrize(
    ("parent", "epochs", "rates", "batch_size", "multi_scale"),
    [
        ("rtdetrv2_s", (120, 64, 117), (2e-4, 2e-4, 2e-4), 16, 3),
        ("rtdetrv2_ms", (120, 64, 117), (2e-4, 1e-4, 2e-4), 16, 3),
        ("rtdetrv2_m", (60, 34, 58), (2e-4, 2e-5, 2e-4), 16, 3),
        ("rtdetrv2_l", (60, 34, 58), (2e-4, 2e-5, 2e-4), 16, 3),
        ("rtdetrv2_x", (60, 34, 58), (2e-4, 2e-6, 2e-4), 16, 3),
        ("dfine_n", (160, 78, 148), (8e-4, 4e-4, None), 128, 0),
        ("dfine_s", (132, 64, 120), (4e-4, 2e-4, 4e-4), 32, 20),
        ("dfine_m", (102, 49, 90), (4e-4, 4e-5, 4e-4), 32, 6),
        ("dfine_l", (58, 29, 50), (5e-4, 2.5e-5, None), 32, 4),
        ("dfine_x", (58, 29, 50), (5e-4, 5e-6, None), 32, 3),
    ],
)
def test_models_are_trained_as_the_authors_configure_it(
    parent: str,
    epochs: tuple[int, int, int],
    rates: tuple[float, float, float | None],
    batch_size: int,
    multi_scale: int,
) -> None:
    run = resolve(RunSettings.parse({"recipe": f"deim_{parent}", "data": {"train": "x"}}))
    train, data = run.train, run.data
    assert (train.epochs, train.batch_size) == (epochs[0], batch_size)
    assert (train.lr, train.backbone_lr, train.backbone_norm_lr) == rates
    decay = 1.25e-4 if parent in ("dfine_l", "dfine_x") else 1e-4
    assert (train.weight_decay, train.decay_norms, train.clip) == (decay, False, 0.1)
    assert (train.ema, train.ema_warmup) == (0.9999, 1000 if parent.startswith("dfine") else 2000)
    assert train.ema_restart == (0.9998 if parent == "dfine_x" else 0.9999)
    total, flat, stop = epochs
    factors = [Schedule.of(train, 100).factor(100 * epoch) for epoch in (10, 25, flat, stop, total - 1)]
    end = 1.0 if parent == "dfine_n" else 0.5
    assert_close(factors, [(1001 / 2000) ** 2, 1.0, 1.0, end, end])
    assert (data.mosaic, data.mixup, data.photometric, data.zoom_out, data.iou_crop) == (
        0.5,
        0.5,
        0.5,
        0.5,
        0.8,
    )
    shares = (data.strong_from, data.mosaic_until, data.strong_until)
    assert [round(share * total) for share in shares] == [4, flat, stop]
    assert (data.image_size, data.stretch, data.crop, data.multi_scale) == (640, True, 0.0, multi_scale)


@pytest.mark.parametrize("name", DEIM_RECIPES)
def test_models_are_those_of_the_parents(name: str) -> None:
    parent = name.removeprefix("deim_")
    recipe = find(name)
    ours, theirs = recipe.model_dump(), find(parent).model_dump()
    changed = {key for key in ours if ours[key] != theirs[key]}
    expected = {"matchability", "activation"}
    if parent.startswith("rtdetrv2"):
        expected |= {"position_layers"}
    if parent == "rtdetrv2_m":
        expected |= {"decoder_layers", "inference_layers"}
    if theirs["frozen_batch_norms"]:
        expected |= {"frozen_stride", "frozen_batch_norms"}
    assert changed == expected
    assert isinstance(recipe.criterion().classification, MatchabilityLoss)
    weights, old = (PUBLIC_WEIGHTS.get(each.replace("_", "-")) for each in (name, parent))
    assert weights is not None
    assert (51.9 if old is None else old.AP) < weights.AP  # RT-DETRv2-M has no weights on the Hub


@pytest.mark.parametrize("recipe", ["rtdetrv2_s", "dfine_s"])
def test_the_activation_is_that_of_the_decoder_and_of_all_heads(recipe: str) -> None:
    detector = make(recipe, **DEIM)
    kinds = {
        name: type(module)
        for name, module in detector.named_modules()
        if isinstance(module, nn.ReLU | nn.SiLU | nn.GELU) and name.startswith(("queries", "decoder"))
    }
    assert set(kinds.values()) == {nn.SiLU}
    parts = {
        "queries.proposals.box_head",
        "decoder.box_heads.1",
        "decoder.position",
        "decoder.layers.1.feedforward",
    }
    if recipe == "dfine_s":
        parts |= {"decoder.first_box", "decoder.quality.1"}
    assert all(any(name.startswith(part) for name in kinds) for part in parts)
    shapes = [
        tuple(each.weight.shape)
        for each in detector.get_submodule("decoder.position").modules()
        if isinstance(each, nn.Linear)
    ]
    assert shapes == [(32, 4), (32, 32), (32, 32)]
    fast = detector.optimize()
    assert_close(answer(fast), answer(detector), rtol=0, atol=1e-4)
    with pytest.raises(AssertionError):
        assert_close(answer(make(recipe, position_layers=3)), answer(detector), rtol=0, atol=1e-3)


def test_weights_of_dfine_do_not_show_the_activation() -> None:
    sentences = DFINE.assumptions(
        {"heads": 8, "discrete": False, "inference_layers": None}, "deim_dfine_s.pth"
    )
    assert sentences[-1].startswith(
        "ReLU in the decoder, although its name says DEIM; pass activation='silu'"
    )


def test_its_weights_are_read_whose_tensors_show_the_activation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="querybox")
    detector = make("rtdetrv2_s", **DEIM, queries=300)
    detector.save(tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / "theirs.pth", to="facebook")
    assert "set activation and mlp_act to silu in DEIM" in caplog.text
    state = torch.load(tmp_path / "theirs.pth", weights_only=True)["model"]
    assert "decoder.query_pos_head.layers.2.weight" in state
    torch.save({"ema": {"module": state}}, tmp_path / "deim_s.pth")  # without the card of querybox
    caplog.clear()
    loaded = load(tmp_path / "deim_s.pth", activation="silu", heads=4)
    assert isinstance(loaded, Detector)
    assert_close(answer(loaded), answer(detector), rtol=0, atol=0)
    assert "ReLU" not in caplog.text
    assert_close(answer(load(tmp_path / "deim_s.pth", heads=4)), answer(detector), rtol=0, atol=0)
    assert "in the decoder" not in caplog.text
    settings = {"heads": 4, "activation": "silu"}
    run = resolve(
        RunSettings.parse(
            {"weights": str(tmp_path / "deim_s.pth"), "data": {"train": "x"}, "model": settings}
        )
    )
    assert (run.model["activation"], run.model["position_layers"]) == ("silu", 3)
    assert_close(answer(build_detector(run, loaded.categories).eval()), answer(detector), rtol=0, atol=0)


def test_a_file_of_ones_own_states_it(tmp_path: Path) -> None:
    make("rtdetrv2_s", **DEIM).save(tmp_path / "ours.safetensors")
    loaded = load(tmp_path / "ours.safetensors")
    assert loaded.recipe.activation == "silu"  # type: ignore[union-attr]
    with pytest.raises(QueryboxError, match="got activation=relu, but the file says silu; omit activation"):
        load(tmp_path / "ours.safetensors", activation="relu")
    convert(tmp_path / "ours.safetensors", tmp_path / "theirs.pth", to="facebook")
    assert load(tmp_path / "theirs.pth").recipe == loaded.recipe  # type: ignore[union-attr]
    with pytest.raises(QueryboxError, match="activation='silu', position_layers=3"):
        convert(tmp_path / "ours.safetensors", tmp_path / "folder", to="huggingface")


def test_other_kinds_have_no_such_setting(tmp_path: Path) -> None:
    make("rtdetr_r18", **DEIM).save(tmp_path / "first.safetensors")
    with pytest.raises(QueryboxError, match="RT-DETR with activation='silu'"):
        convert(tmp_path / "first.safetensors", tmp_path / "first.pth", to="facebook")
    settings: dict[str, Any] = {
        "width": 16,
        "heads": 2,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "queries": 5,
    }
    Detector.from_recipe("detr_r18", num_classes=2, **settings).save(tmp_path / "detr.safetensors")
    convert(tmp_path / "detr.safetensors", tmp_path / "detr.pth", to="facebook")
    state = torch.load(tmp_path / "detr.pth", weights_only=True)
    torch.save({"model": state["model"]}, tmp_path / "plain.pth")
    with pytest.raises(
        QueryboxError, match="got activation='silu' for DETR, where it is always 'relu'; omit it"
    ):
        load(tmp_path / "plain.pth", activation="silu", heads=2)
    with pytest.raises(QueryboxError, match="got discrete=True for DETR, where it is always False; omit it"):
        load(tmp_path / "plain.pth", discrete=True, heads=2)
