"""D-FINE in all that a kind of detector takes part in: training, files, fine-tuning, inspection."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from dataset_writers import write_boxes
from hybrid_models import PETS, make, square
from report_pages import without_charts
from rich.console import Console
from tiny_models import HYBRID
from torch import nn
from torch.testing import assert_close

from querybox import Category, Detector, QueryboxError, RunSettings, Target, train
from querybox.checkpoints.convert import convert
from querybox.cli.trace import tables
from querybox.data import read_dataset
from querybox.diagnosis import diagnose
from querybox.diagnosis.record import METRICS
from querybox.fast.training import for_training
from querybox.inspect import query_view
from querybox.inspect.attention import AttentionPoints
from querybox.inspect.page import image_data
from querybox.models import find
from querybox.models.dfine import DFINE
from querybox.modules.fine import BoundedResidual, FineDecoder, Gate
from querybox.training.finetune import initialize_from

TARGETS = [
    Target(boxes=torch.tensor([[0.4, 0.5, 0.3, 0.4], [0.7, 0.3, 0.2, 0.2]]), labels=torch.tensor([0, 2])),
    Target(boxes=torch.tensor([[0.5, 0.5, 0.6, 0.2]]), labels=torch.tensor([1])),
]

LEARNER: dict[str, Any] = {**HYBRID, "backbone": "test_resnet", "backbone_weights": None, "denoising": 4}


def test_published_settings() -> None:
    nano, small, medium, large, extra = (find(f"dfine_{size}") for size in "nsmlx")
    assert isinstance(nano, DFINE)
    assert isinstance(small, DFINE)
    assert isinstance(medium, DFINE)
    assert isinstance(large, DFINE)
    assert isinstance(extra, DFINE)
    assert [each.size for each in (nano, small, medium, large, extra)] == ["N", "S", "M", "L", "X"]
    assert (nano.strides, nano.points, nano.width, nano.feedforward) == ((16, 32), (6, 6), 128, 512)
    assert (small.points, small.expansion, small.fusion_blocks) == ((3, 6, 3), 0.5, 1)
    assert [each.decoder_layers for each in (nano, small, medium, large, extra)] == [3, 3, 4, 6, 6]
    assert (medium.fusion_blocks, large.fusion_blocks) == (2, 3)
    assert (extra.width, extra.encoder_width, extra.reg_scale, large.reg_scale) == (256, 384, 8.0, 4.0)
    backbones = [each.backbone for each in (nano, small, medium, large, extra)]
    assert backbones == [f"hgnetv2_{each}.ssld_stage1_in22k_in1k" for each in ("b0", "b0", "b2", "b4", "b5")]
    assert make("dfine_n").preprocessing.std == (255.0,) * 3


def test_what_is_frozen_is_as_published() -> None:
    small = make("dfine_s").train()
    assert all(parameter.requires_grad for parameter in small.parameters())
    large = make("dfine_l").train()
    frozen = {name for name, parameter in large.named_parameters() if not parameter.requires_grad}
    kernels = {name for name in frozen if large.get_parameter(name).ndim == 4}
    assert kernels == {
        name for name, _ in large.named_parameters() if re.search(r"stem\.\w+\.conv\.weight", name)
    }
    norms = {name: each for name, each in large.named_modules() if isinstance(each, nn.BatchNorm2d)}
    assert {name for name in norms if norms[name].training} == {
        name for name in norms if not name.startswith("backbone.")
    }


def test_a_gate_is_at_first_the_mean_of_both() -> None:
    gate, x, y = Gate(8, 0.0), torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    assert_close(gate(x, lambda _: y), gate.norm((x + y) / 2))
    residual = BoundedResidual(8, 0.0)
    huge = torch.full((1, 1, 8), 1e6)
    huge[..., :4] *= -1
    assert_close(residual(x, lambda _: huge.expand_as(x)), residual.norm(huge.sign() * 65504).expand_as(x))


def test_distributions_are_in_float32_under_autocast() -> None:
    detector = make("dfine_n")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        layers = detector(square()).layers
    for layer in layers:
        assert layer.edges is not None
        assert layer.edges.logits.dtype == layer.boxes.dtype == torch.float32
    with torch.no_grad():
        exact = detector(square()).layers[0]
    assert exact.edges is not None
    assert_close(exact.boxes, exact.edges.boxes())


def test_a_step_of_training_reaches_every_weight() -> None:
    detector = make("dfine_n", reg_scale=8.0).train()
    losses = detector.criterion()(detector(square(), TARGETS), TARGETS)
    assert {
        "loss_fgl",
        "d0.loss_ddf",
        "pre_loss_bbox",
        "enc_loss_iou",
        "d0.dn_loss_fgl",
        "dn_pre_loss_cls",
    } <= (losses.keys())
    sum(losses.values()).backward()
    assert not [name for name, p in detector.named_parameters() if p.grad is None]


def test_it_learns_two_images() -> None:
    torch.manual_seed(1)
    detector = Detector.from_recipe("dfine_n", categories=PETS, **LEARNER).train()
    batch, criterion = square(), detector.criterion()
    fast = for_training(detector)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    history = []
    for _ in range(40):
        losses = criterion(fast(batch, TARGETS), TARGETS)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    for name in ("loss_bbox", "loss_iou", "pre_loss_bbox", "enc_loss_bbox", "dn_loss_cls"):
        first, last = (sum(step[name] for step in part) for part in (history[:5], history[-5:]))
        assert last < 0.7 * first, name


def test_files_of_all_layouts_give_the_same_model(tmp_path: Path) -> None:
    detector = make("dfine_s", reg_scale=8.0, points=(2, 4, 2))
    detector.save(tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / "folder", to="huggingface")
    given = square()
    with torch.no_grad():
        expected = detector(given).layers[-1]
        for name in ("ours.safetensors", "folder"):
            loaded = Detector.load(tmp_path / name)
            assert loaded.recipe == detector.recipe
            assert_close(loaded(given).layers[-1].boxes, expected.boxes, rtol=0, atol=0)
            assert_close(loaded(given).layers[-1].logits, expected.logits, rtol=0, atol=0)
    decoder = loaded.decoder
    assert isinstance(decoder, FineDecoder)
    assert decoder.distances.scale.item() == 8.0


def test_a_config_that_the_model_does_not_follow_is_refused() -> None:
    for key, value in (("max_num_bins", 16), ("layer_scale", 2), ("encode_proj_layers", [1])):
        with pytest.raises(QueryboxError, match=f"'{key}' is .*; querybox supports only"):
            DFINE.settings_from_config({key: value})
    settings = DFINE.settings_from_config(
        {"num_feature_levels": 2, "encode_proj_layers": [1], "decoder_n_points": [6, 6], "num_queries": 9}
    )
    assert (settings["points"], settings["queries"]) == ((6, 6), 9)
    assert DFINE.settings_from_config({})["points"] == (4, 4, 4)


def test_classes_are_kept_by_name_in_fine_tuning() -> None:
    source, names = make("dfine_n"), ("dog", "emu", "cat")
    tuned = make(
        "dfine_n", categories=tuple(Category(id=number, name=name) for number, name in enumerate(names))
    )
    initialize_from(tuned, source, "source")
    for name, row in (("dog", 1), ("cat", 0)):
        for module in ("decoder.class_heads.1", "queries.proposals.class_head", "denoising.label"):
            ours, theirs = (each.get_parameter(f"{module}.weight") for each in (tuned, source))
            assert_close(ours[names.index(name)], theirs[row], rtol=0, atol=0)


def test_inference_needs_only_the_last_layer() -> None:
    detector = make("dfine_n", decoder_layers=3, inference_layers=2)
    given = square()
    with torch.no_grad():
        layers = detector(given).layers
    assert len(layers) == 2
    (answer,) = detector.optimize()(given).layers
    assert answer.initial is None
    assert_close(answer.boxes, layers[-1].boxes, rtol=0, atol=1e-4)
    assert_close(answer.logits, layers[-1].logits, rtol=0, atol=1e-3)


def test_a_trace_tells_how_sure_each_edge_is() -> None:
    detector = make("dfine_s")
    seen = detector.trace(square(1), TARGETS[1])
    assert seen.grids == ((8, 8), (4, 4), (2, 2))
    assert [
        attention.points()[0].shape[2]
        for attention in seen.decoder_cross_attention
        if isinstance(attention, AttentionPoints)
    ] == [12, 12]
    deviations = seen.edge_deviations
    assert deviations is not None
    with torch.no_grad():
        edges = detector(square(1)).layers[1].edges
    assert edges is not None
    probabilities, distances = edges.logits[0, 3, 2].softmax(-1), edges.distances
    mean = sum(float(p * d) for p, d in zip(probabilities, distances, strict=True))
    variance = sum(float(p) * (float(d) - mean) ** 2 for p, d in zip(probabilities, distances, strict=True))
    wanted = variance**0.5 * float(edges.start[0, 3, 2])  # of the right edge, relative to the width
    assert float(deviations[1, 3, 2]) == pytest.approx(wanted, rel=1e-4)
    assert (deviations > 0).all()
    data = image_data(seen, 3, [0])
    assert data["edge_deviations"]["shape"] == [2, len(data["queries"]), 4]
    text = io.StringIO()
    Console(file=text, width=200).print(*tables(seen, 2))
    assert "± standard deviation of each edge" in text.getvalue()
    assert re.search(r"\d\.\d ± \d+\.\d", text.getvalue())
    assert re.search(r"start boxes", text.getvalue())
    assert "loss_fgl" in text.getvalue()
    losses = seen.comparison.losses if seen.comparison else {}
    assert {"pre_loss_cls", "loss_fgl", "d0.loss_ddf"} <= losses.keys()


def test_a_run_trains_it(tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "boxes", (96, 64), sides=(16, 40))
    settings: dict[str, Any] = {
        "recipe": "dfine_s",
        "model": LEARNER,
        "data": {"train": str(data), "image_size": 64, "workers": 0, "multi_scale": 0},
        "train": {"epochs": 2, "batch_size": 4, "accumulate": 2, "lr": 1e-3},
        "output": str(tmp_path / "run"),
    }
    with without_charts():
        result = train(RunSettings.parse(settings))
    with (tmp_path / "run" / METRICS).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert all(math.isfinite(float(row[name])) for row in rows for name in ("loss_fgl", "d0.loss_ddf"))
    (found,) = result.detector.predict(data.parent / "1.png", threshold=0.0)
    assert found.size == (64, 96)
    diagnose(tmp_path / "run")
    view = query_view(result.detector, read_dataset(data))
    assert view.proposed
    assert view.boxes.shape[1:] == (7, 4)
