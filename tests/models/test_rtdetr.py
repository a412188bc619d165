"""RT-DETR in all that a kind of detector takes part in: files, fine-tuning, training, inspection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dataset_writers import write_boxes
from hybrid_models import PETS, make, square
from report_pages import without_charts
from run_records import make_run
from tiny_models import HYBRID
from torch import Tensor, nn
from torch.testing import assert_close

from querybox import Category, Detector, ImageBatch, QueryboxError, RunSettings, Target, train
from querybox.benchmark import count_flops, photo_size
from querybox.checkpoints.backbone import copy_weights
from querybox.checkpoints.convert import convert
from querybox.cli.info import describe_size
from querybox.diagnosis.predictions import blind_queries, no_object_collapse
from querybox.diagnosis.schedule import too_few_steps
from querybox.fast.training import for_training
from querybox.inspect.attention import AttentionMaps, AttentionPoints
from querybox.inspect.page import image_data
from querybox.models import find
from querybox.models.rtdetr import RTDETR
from querybox.modules.backbone import Backbone
from querybox.modules.deformable_attention import sample
from querybox.modules.meta import shapes_only
from querybox.training.finetune import initialize_from
from querybox.training.processes import synchronize_batch_norms
from querybox.training.start import build_detector, resolve


def test_published_settings() -> None:
    r18, r50, medium, r101 = (find(f"rtdetr_{name}") for name in ("r18", "r50", "r50_m", "r101"))
    assert isinstance(r18, RTDETR)
    assert isinstance(medium, RTDETR)
    assert isinstance(r101, RTDETR)
    assert (r18.decoder_layers, r18.expansion, r18.frozen_stride, r18.frozen_batch_norms) == (
        3,
        0.5,
        0,
        False,
    )
    assert (medium.decoder_layers, medium.inference_layers, medium.expansion) == (6, 3, 0.5)
    assert (r101.width, r101.encoder_width, r101.encoder_feedforward, r101.feedforward) == (
        256,
        384,
        2048,
        1024,
    )
    assert r50.queries == 300
    preprocessing = make("rtdetr_r18").preprocessing
    assert (preprocessing.resizing, preprocessing.short_side, preprocessing.long_side) == (
        "stretch",
        640,
        640,
    )
    assert (preprocessing.mean, preprocessing.std) == ((0.0,) * 3, (255.0,) * 3)


@pytest.mark.parametrize(
    ("recipe", "gflops"),
    [("r18", 60), ("r34", 92), ("r50_m", 100), ("r50", 136), ("r101", 259)],
)
def test_arithmetic_is_that_of_the_published_models(recipe: str, gflops: int) -> None:
    with shapes_only():
        detector = Detector.from_recipe(f"rtdetr_{recipe}", num_classes=80)
    assert count_flops(detector, (640, 640)) / 1e9 == pytest.approx(gflops, abs=1.5)  # which are rounded


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": 4}, "'levels' is 4; expected the number of 'strides', 3"),
        ({"inference_layers": 3}, "'inference_layers' is 3; expected at most 'decoder_layers', 2"),
        ({"encoder_width": 36, "heads": 8}, "'encoder_width' is 36, expected a multiple of 'heads', 8"),
    ],
)
def test_inconsistent_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(QueryboxError, match=message):
        make("rtdetr_r18", **settings)


def test_what_is_frozen_is_as_published() -> None:
    small, large = make("rtdetr_r18").train(), make("rtdetr_r50").train()
    assert all(parameter.requires_grad for parameter in small.parameters())
    assert all(norm.training for norm in small.modules() if isinstance(norm, nn.BatchNorm2d))
    frozen = {name for name, parameter in large.named_parameters() if not parameter.requires_grad}
    kernels = {name for name in frozen if large.get_parameter(name).ndim == 4}
    assert kernels == {f"backbone.body.conv1.{index}.weight" for index in (0, 3, 6)}  # the stem
    norms = {name: each for name, each in large.named_modules() if isinstance(each, nn.BatchNorm2d)}
    assert {name for name in norms if norms[name].training} == {
        name for name in norms if not name.startswith("backbone.")
    }


def test_batch_norms_of_a_frozen_encoder_keep_their_statistics() -> None:
    detector = make("rtdetr_r18")
    detector.encoder.requires_grad_(requires_grad=False)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    detector.train()(square())
    after = detector.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not [name for name in changed if name.startswith("encoder.")]


def test_the_first_shortcut_is_the_identity_for_timms_weights() -> None:
    backbone = Backbone("resnet18d", strides=(8, 16, 32), frozen_stride=0, first_shortcut=True).eval()
    plain = Backbone("resnet18d", strides=(8, 16, 32), frozen_stride=0).eval()
    copy_weights(backbone, plain.body.state_dict(), "timm")
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        maps = list(zip(backbone(images), plain(images), strict=True))
    for ours, timm in maps:
        assert_close(ours, timm, rtol=1e-4, atol=1e-4 * float(timm.abs().max()))  # eps of the batch norm


def test_content_of_queries_is_the_best_tokens_without_gradient() -> None:
    detector = make("rtdetr_r18").train()
    seen: dict[str, Any] = {}
    detector.get_submodule("queries.proposals").register_forward_hook(
        lambda _m, _i, output: seen.update(proposals=output)
    )
    detector.queries.register_forward_hook(lambda _m, _i, output: seen.update(queries=output))
    detector(square())
    tokens, logits, _ = seen["proposals"]
    queries = seen["queries"]
    best = logits.amax(-1).argsort(dim=1, descending=True)[:, :7]
    expected = torch.stack([rows[index] for rows, index in zip(tokens, best, strict=True)])
    assert_close(queries.content, expected)
    assert not queries.content.requires_grad
    assert not queries.reference.requires_grad
    assert queries.proposals.logits.requires_grad


def test_inference_runs_fewer_layers_than_training() -> None:
    detector = make("rtdetr_r18", decoder_layers=3, inference_layers=2)
    full = make("rtdetr_r18", decoder_layers=3)
    with torch.no_grad():
        ours, theirs = detector(square()), full(square())
        assert len(ours.layers) == 2
        assert_close(ours.layers[-1].boxes, theirs.layers[1].boxes, rtol=0, atol=0)
    assert len(detector.train()(square()).layers) == 3
    fast = make("rtdetr_r18", decoder_layers=3, inference_layers=2).optimize()
    assert_close(fast(square()).layers[-1].boxes, theirs.layers[1].boxes, rtol=0, atol=1e-4)


def test_a_step_of_training_reaches_every_weight() -> None:
    detector = make("rtdetr_r18").train()
    assert detector.recipe is not None
    targets = [
        Target(boxes=torch.tensor([[0.4, 0.5, 0.3, 0.4], [0.7, 0.3, 0.2, 0.2]]), labels=torch.tensor([0, 2])),
        Target(boxes=torch.tensor([[0.5, 0.5, 0.6, 0.2]]), labels=torch.tensor([1])),
    ]
    losses = detector.recipe.criterion()(detector(square(), targets), targets)
    assert {"loss_cls", "d0.loss_bbox", "enc_loss_iou", "dn_loss_cls", "d0.dn_loss_iou"} <= losses.keys()
    sum(losses.values()).backward()
    assert not [name for name, p in detector.named_parameters() if p.grad is None]


def test_predictions_on_padded_images_are_close_to_those_without_padding() -> None:
    """Images of published models are never padded; positions and references are still those of the image."""
    detector = make("rtdetr_r18")
    image = torch.randint(256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    other = torch.zeros(3, 96, 128, dtype=torch.uint8)
    padded = ImageBatch.from_images([image, other], detector.preprocessing)
    with torch.no_grad():
        output = detector(padded)
    assert output.layers[-1].boxes.isfinite().all()
    assert ((output.layers[-1].boxes >= 0) & (output.layers[-1].boxes <= 1)).all()


def test_a_file_of_ones_own_is_read_again(tmp_path: Path) -> None:
    detector = make("rtdetr_r50", expansion=0.5, inference_layers=1)
    detector.save(tmp_path / "ours.safetensors")
    loaded = Detector.load(tmp_path / "ours.safetensors")
    assert loaded.recipe == detector.recipe
    assert loaded.preprocessing == detector.preprocessing
    with torch.no_grad():
        ours, theirs = detector(square()).layers[-1], loaded(square()).layers[-1]
    assert_close(ours.boxes, theirs.boxes, rtol=0, atol=0)


def test_weights_of_the_authors_give_the_same_after_a_round_trip(tmp_path: Path) -> None:
    detector = make("rtdetr_r18")
    detector.save(tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / "theirs.pth", to="facebook")
    loaded = Detector.load(tmp_path / "theirs.pth")
    with torch.no_grad():
        ours, theirs = detector(square()).layers[-1], loaded(square()).layers[-1]
    assert_close(ours.logits, theirs.logits, rtol=0, atol=0)
    assert_close(ours.boxes, theirs.boxes, rtol=0, atol=0)


@pytest.mark.parametrize("recipe", ["rtdetr_r18", "rtdetr_r50"])
def test_a_hugging_face_folder_is_written_and_read(recipe: str, tmp_path: Path) -> None:
    detector = make(recipe)
    detector.save(tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / "folder", to="huggingface")
    loaded = Detector.load(tmp_path / "folder")
    assert loaded.recipe == detector.recipe
    assert loaded.preprocessing.resizing == "stretch"
    assert (loaded.preprocessing.mean, loaded.preprocessing.std) == ((0.0,) * 3, (255.0,) * 3)
    assert [each.name for each in loaded.categories] == ["cat", "dog", "ant"]
    assert loaded.state_dict().keys() == detector.state_dict().keys()
    for name, tensor in detector.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    images = json.loads((tmp_path / "folder" / "preprocessor_config.json").read_text())
    assert images["size"] == {"height": 640, "width": 640}


def test_a_config_that_the_model_does_not_follow_is_refused(tmp_path: Path) -> None:
    make("rtdetr_r18").save(tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / "folder", to="huggingface")
    path = tmp_path / "folder" / "config.json"
    config = json.loads(path.read_text())
    for key, value in (
        ("eval_size", [640, 640]),
        ("activation_function", "relu"),
        ("learn_initial_query", True),
    ):
        path.write_text(json.dumps({**config, key: value}))
        with pytest.raises(QueryboxError, match=f"'{key}' is .*; querybox supports only"):
            Detector.load(tmp_path / "folder")


def test_classes_are_kept_by_name_in_fine_tuning() -> None:
    source = make("rtdetr_r18")
    names = ("dog", "emu", "cat")
    tuned = make(
        "rtdetr_r18",
        categories=tuple(Category(id=number, name=name) for number, name in enumerate(names)),
        queries=4,
    )
    initialize_from(tuned, source, "source")
    with torch.no_grad():
        theirs, ours = source(square()).layers[-1], tuned.eval()(square()).layers[-1]
    for name, row in (("dog", 1), ("cat", 0)):
        for module in ("decoder.class_heads.1", "queries.proposals.class_head", "denoising.label"):
            ours_rows, theirs_rows = (each.get_parameter(f"{module}.weight") for each in (tuned, source))
            assert_close(ours_rows[names.index(name)], theirs_rows[row], rtol=0, atol=0)
    assert ours.boxes.shape == (2, 4, 4)
    assert theirs.boxes.shape == (2, 7, 4)


def test_a_run_from_a_file_stretches_images_as_it_says(tmp_path: Path) -> None:
    make("rtdetr_r18").save(tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / "folder", to="huggingface")
    begun = RunSettings.parse({"weights": str(tmp_path / "folder"), "data": {"train": "x"}})
    run = resolve(begun)
    assert {name: getattr(run.data, name) for name in RTDETR.data} == RTDETR.data
    assert (run.train.epochs, run.train.milestones, run.train.ema) == (72, (), 0.9999)
    assert build_detector(run, PETS).preprocessing == Detector.load(tmp_path / "folder").preprocessing
    smaller = resolve(begun.replace(data={"train": "x", "image_size": 320}))
    preprocessing = build_detector(smaller, PETS).preprocessing
    assert (preprocessing.resizing, preprocessing.short_side, preprocessing.long_side) == (
        "stretch",
        320,
        320,
    )
    assert describe_size(preprocessing)["image size"] == "320 x 320 pixels"
    assert photo_size(preprocessing) == (320, 320)
    whole = resolve(begun.replace(data={"train": "x", "stretch": False}))
    assert build_detector(whole, PETS).preprocessing.resizing == "querybox"


def test_a_trace_has_the_attention_that_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = make("rtdetr_r18", encoder_layers=2)
    maps: list[Tensor] = []
    points: list[Tensor] = []

    def explicit(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **_: object) -> Tensor:
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        maps.append(scores.softmax(-1)[0])
        return scores.softmax(-1) @ v

    def noting(
        value: Tensor, shapes: Any, places: Tensor, weight: Tensor, counts: Any, *others: Any
    ) -> Tensor:
        points.append(weight[0].transpose(0, 1))
        return sample(value, shapes, places, weight, counts, *others)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", explicit)
    monkeypatch.setattr("querybox.modules.deformable_attention.sample", noting)
    target = Target(boxes=torch.tensor([[0.5, 0.5, 0.2, 0.2]]), labels=torch.tensor([1]))
    seen = detector.trace(square(1), target)
    assert seen.grids == ((8, 8), (4, 4), (2, 2))
    assert len(seen.encoder_attention) == 2
    for each, weights in zip((*seen.encoder_attention, *seen.decoder_self_attention), maps, strict=True):
        assert isinstance(each, AttentionMaps)
        assert_close(each.weights(), weights, rtol=0, atol=1e-5)
    assert maps[0].shape == (4, 4, 4)  # heads, and the cells of the coarsest map alone
    for each, weights in zip(seen.decoder_cross_attention, points, strict=True):
        assert isinstance(each, AttentionPoints)
        assert_close(each.points()[1], weights, rtol=0, atol=1e-5)
    names = {stage.name for stage in seen.stages}
    assert {
        "features 3",
        "projection 3",
        "positional encoding",
        "encoder layer 2",
        "decoder layer 2",
    } <= names
    data = image_data(seen, 3, [0, 1])
    assert [(each["grid"], each["cells"]) for each in data["encoder"]] == [((2, 2), [2, 2])] * 2


def test_a_diagnosis_knows_it() -> None:
    failed: dict[str, Any] = {"recipe": "rtdetr_r18", "history": {"AP50": [0.001] * 9}}
    blind = blind_queries(make_run(**failed, sameness=0.99))
    assert blind is not None
    assert "local_start" not in blind.cure  # which it does not have
    settled = {"AP50": [0.001] * 9, "loss_cls": [0.5] * 9}
    collapsed = no_object_collapse(make_run(**failed | {"history": settled}, top_score=0.01))
    assert collapsed is not None
    short = too_few_steps(make_run(**failed | {"history": {"AP50": [0.001] * 9, "step": list(range(1, 10))}}))
    assert short is not None
    assert short.evidence["steps until such a model begins to detect objects"] == 500


def test_statistics_are_shared_by_processes_where_batch_norms_are_trained() -> None:
    detector = make("rtdetr_r50").train()
    fast = for_training(detector)
    synchronize_batch_norms(fast)
    shared = {name for name, module in fast.named_modules() if isinstance(module, nn.SyncBatchNorm)}
    trained = {
        name
        for name, module in detector.named_modules()
        if isinstance(module, nn.BatchNorm2d) and not name.startswith("backbone.")
    }
    assert shared == trained
    assert {id(p) for p in fast.parameters()} == {id(p) for p in detector.parameters()}
    assert {id(b) for b in fast.buffers()} == {id(b) for b in detector.buffers()}
    small = for_training(make("rtdetr_r18").train())
    synchronize_batch_norms(small)
    assert not [norm for norm in small.modules() if type(norm) is nn.BatchNorm2d]


def test_a_run_trains_stretched_images(tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "boxes", (96, 64), sides=(16, 40))
    settings: dict[str, Any] = {
        "recipe": "rtdetr_r18",
        "model": {**HYBRID, "backbone": "test_resnet", "backbone_weights": None, "denoising": 4},
        "data": {"train": str(data), "image_size": 64, "workers": 0},
        "train": {"epochs": 2, "batch_size": 4, "lr": 1e-3},
        "output": str(tmp_path / "run"),
    }
    with without_charts():
        result = train(RunSettings.parse(settings))
    preprocessing = result.detector.preprocessing
    assert (preprocessing.resizing, preprocessing.short_side, preprocessing.long_side) == ("stretch", 64, 64)
    assert preprocessing.std == (255.0,) * 3
    counters = {
        name: int(tensor)
        for name, tensor in Detector.load(tmp_path / "run" / "last.safetensors").state_dict().items()
        if name.endswith("num_batches_tracked")
    }
    assert set(counters.values()) == {2}  # updates; also those of the backbone
    (found,) = result.detector.predict(data.parent / "1.png", threshold=0.0)
    assert found.size == (64, 96)
    assert (tmp_path / "run" / "report.html").is_file()
