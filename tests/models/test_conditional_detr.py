"""Conditional DETR in all that a kind of detector takes part in: layouts, fine-tuning, training, inspection, export.

The names of the layouts are facts of the public sources: Atten4Vis/ConditionalDETR, MMDetection 3.x and transformers.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attention_weights import assert_maps, recorded_weights
from references import REFERENCE
from run_records import make_run
from torch import Tensor, nn
from torch.testing import assert_close

from querybox import Category, Detector, ImageBatch, Preprocessing, QueryboxError, Target
from querybox.checkpoints import coco
from querybox.checkpoints.convert import System, convert
from querybox.checkpoints.find import EXPORTED, Format
from querybox.checkpoints.read import count_class_rows, infer_recipe, read_checkpoint
from querybox.checkpoints.recognise import recognise
from querybox.diagnosis.predictions import blind_queries, no_object_collapse
from querybox.diagnosis.schedule import too_few_steps
from querybox.exporting.card import Card
from querybox.exporting.check import verify
from querybox.exporting.graph import trace
from querybox.exporting.write import write_model
from querybox.fast.training import for_training
from querybox.inference.predict import predict
from querybox.models.conditional_detr import ConditionalDETR
from querybox.models.layouts.conditional import ATTEN4VIS, HUGGINGFACE_CONDITIONAL, MMDET3_CONDITIONAL
from querybox.models.layouts.layout import Layout
from querybox.modules.meta import shapes_only
from querybox.precision import Precision
from querybox.training.finetune import initialize_from

Names = Iterator[tuple[str, list[int]]]
D, FEEDFORWARD, LAYERS, QUERIES = 256, 2048, 6, 300
TINY: dict[str, Any] = {
    "width": 16,
    "heads": 2,
    "feedforward": 24,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "queries": 5,
}


def linear(name: str, inputs: int = D, outputs: int = D) -> Names:
    yield f"{name}.weight", [outputs, inputs]
    yield f"{name}.bias", [outputs]


def norms(*names: str) -> Names:
    for name in names:
        yield f"{name}.weight", [D]
        yield f"{name}.bias", [D]


def backbone(system: str, prefix: str) -> Names:
    """ResNet-50's names are those of DETR's published checkpoints."""
    known = json.loads((REFERENCE / f"keys_{system}.json").read_text())
    yield from ((name, shape) for name, shape, *_ in known if name.startswith(prefix))


def fused(name: str) -> Names:
    yield f"{name}.in_proj_weight", [3 * D, D]
    yield f"{name}.in_proj_bias", [3 * D]
    yield from linear(f"{name}.out_proj")


def projections(layer: str, index: int) -> Names:
    """Those of the decoder layers in the authors' code and on Hugging Face's hub."""
    for part in ("qcontent", "qpos", "kcontent", "kpos", "v"):
        yield from linear(f"{layer}.sa_{part}_proj")
        if part != "qpos" or index == 0:
            yield from linear(f"{layer}.ca_{part}_proj")
    yield from linear(f"{layer}.ca_qpos_sine_proj")


def decoder_heads(prefix: str) -> Names:
    for step, outputs in ((0, D), (1, 2)):
        yield from linear(f"{prefix}.ref_point_head.layers.{step}", D, outputs)
        yield from linear(f"{prefix}.query_scale.layers.{step}")


def box_layers(*names: str) -> Names:
    for name, outputs in zip(names, (D, D, 4), strict=True):
        yield from linear(name, D, outputs)


def atten4vis() -> Names:
    yield from backbone("facebook", "backbone.0.body.")
    yield "input_proj.weight", [D, 2048, 1, 1]
    yield "input_proj.bias", [D]
    yield "query_embed.weight", [QUERIES, D]
    for index in range(LAYERS):
        layer = f"transformer.encoder.layers.{index}"
        yield from fused(f"{layer}.self_attn")
        yield from norms(f"{layer}.norm1", f"{layer}.norm2")
        yield from linear(f"{layer}.linear1", D, FEEDFORWARD)
        yield from linear(f"{layer}.linear2", FEEDFORWARD, D)
        layer = f"transformer.decoder.layers.{index}"
        yield from projections(layer, index)
        yield from linear(f"{layer}.self_attn.out_proj")
        yield from linear(f"{layer}.cross_attn.out_proj")
        yield from norms(f"{layer}.norm1", f"{layer}.norm2", f"{layer}.norm3")
        yield from linear(f"{layer}.linear1", D, FEEDFORWARD)
        yield from linear(f"{layer}.linear2", FEEDFORWARD, D)
    yield from norms("transformer.decoder.norm")
    yield from decoder_heads("transformer.decoder")
    yield from linear("class_embed", D, 91)
    yield from box_layers(*(f"bbox_embed.layers.{step}" for step in range(3)))


def huggingface() -> Names:
    """The files on the hub, of transformers 4."""
    yield from backbone("huggingface", "model.backbone.")
    yield "model.input_projection.weight", [D, 2048, 1, 1]
    yield "model.input_projection.bias", [D]
    yield "model.query_position_embeddings.weight", [QUERIES, D]
    for index in range(LAYERS):
        layer = f"model.encoder.layers.{index}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from linear(f"{layer}.self_attn.{part}")
        yield from norms(f"{layer}.self_attn_layer_norm", f"{layer}.final_layer_norm")
        yield from linear(f"{layer}.fc1", D, FEEDFORWARD)
        yield from linear(f"{layer}.fc2", FEEDFORWARD, D)
        layer = f"model.decoder.layers.{index}"
        yield from projections(layer, index)
        yield from linear(f"{layer}.self_attn.out_proj")
        yield from linear(f"{layer}.encoder_attn.out_proj")
        yield from norms(*(f"{layer}.{part}_layer_norm" for part in ("self_attn", "encoder_attn", "final")))
        yield from linear(f"{layer}.fc1", D, FEEDFORWARD)
        yield from linear(f"{layer}.fc2", FEEDFORWARD, D)
    yield from norms("model.decoder.layernorm")
    yield from decoder_heads("model.decoder")
    yield from linear("class_labels_classifier", D, 91)
    yield from box_layers(*(f"bbox_predictor.layers.{step}" for step in range(3)))


def mmdet3() -> Names:
    yield from backbone("mmdet3", "backbone.")
    yield "neck.convs.0.conv.weight", [D, 2048, 1, 1]
    yield "neck.convs.0.conv.bias", [D]
    yield "query_embedding.weight", [QUERIES, D]
    for index in range(LAYERS):
        for side in ("encoder", "decoder"):
            layer = f"{side}.layers.{index}"
            yield from linear(f"{layer}.ffn.layers.0.0", D, FEEDFORWARD)
            yield from linear(f"{layer}.ffn.layers.1", FEEDFORWARD, D)
            yield from norms(*(f"{layer}.norms.{number}" for number in range(2 + (side == "decoder"))))
        yield from fused(f"encoder.layers.{index}.self_attn.attn")
        for part in ("qcontent", "qpos", "kcontent", "kpos", "v", "out"):
            yield from linear(f"decoder.layers.{index}.self_attn.{part}_proj")
            if part != "qpos" or index == 0:
                yield from linear(f"decoder.layers.{index}.cross_attn.{part}_proj")
        yield from linear(f"decoder.layers.{index}.cross_attn.qpos_sine_proj")
    yield from norms("decoder.post_norm")
    yield from decoder_heads("decoder")
    yield from linear("bbox_head.fc_cls", D, 80)
    yield from box_layers("bbox_head.reg_ffn.layers.0.0", "bbox_head.reg_ffn.layers.1", "bbox_head.fc_reg")


PUBLISHED: dict[str, tuple[Layout, Callable[[], Names]]] = {
    "Atten4Vis": (ATTEN4VIS, atten4vis),
    "Hugging Face": (HUGGINGFACE_CONDITIONAL, huggingface),
    "MMDetection": (MMDET3_CONDITIONAL, mmdet3),
}


@pytest.mark.parametrize("system", PUBLISHED)
def test_published_models_there_and_back(system: str) -> None:
    layout, names = PUBLISHED[system]
    # One value a tensor, so that each can be told from all others.
    theirs = {
        name: torch.tensor(1 + zlib.crc32(name.encode()) / 2**32).expand(shape) for name, shape in names()
    }
    assert recognise(theirs) == (ConditionalDETR, layout)
    ours = layout.to_ours(theirs)
    inferred, assumed = infer_recipe(ours, ConditionalDETR, {}, {}, Path("model.pth"), {})
    assert inferred == ConditionalDETR()
    assert len(assumed) == 2  # heads, dilation
    rows = count_class_rows(ours, ConditionalDETR)
    assert rows == (80 if system == "MMDetection" else 91)
    with shapes_only():
        wanted = inferred.build([Category(id=row, name=str(row)) for row in range(rows)]).state_dict()
    assert {name: each.shape for name, each in ours.items()} == {
        name: each.shape for name, each in wanted.items()
    }
    back = layout.to_theirs(ours)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.items())


@torch.no_grad()
def make(backbone: str = "test_resnet", **settings: Any) -> Detector:
    """A small detector whose attention is as uneven as that of a trained one."""
    torch.manual_seed(0)
    settings = {"num_classes": 3, **settings} if "categories" not in settings else settings
    detector = Detector.from_recipe("conditional_detr_r50", backbone=backbone, **{**TINY, **settings})
    for name, part in detector.named_modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.4 if "attention" in name else 0.3)
    detector.preprocessing = Preprocessing(short_side=64, long_side=96)
    return detector.eval()


def batch() -> ImageBatch:
    """Two images, each padded along another axis."""
    noise = torch.Generator().manual_seed(0)
    sizes = [(64, 96), (90, 64)]
    return ImageBatch.from_images(
        [torch.randint(256, (3, *size), generator=noise, dtype=torch.uint8) for size in sizes]
    )


def identical(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(each, other[name]) for name, each in one.items())


@pytest.mark.parametrize(
    ("system", "target"), [("facebook", "a.pth"), ("mmdet3", "b.pth"), ("huggingface", "folder")]
)
def test_a_file_there_and_back(system: System, target: str, tmp_path: Path) -> None:
    detector = make("resnet18.tv_in1k", categories=coco.CATEGORIES, unused_rows=coco.UNUSED_ROWS)
    detector.save(tmp_path / "ours.safetensors")
    ours = read_checkpoint(tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / target, to=system)
    there = read_checkpoint(tmp_path / target)
    assert identical(there.state, ours.state)
    assert there.blueprint.recipe == ours.blueprint.recipe
    convert(tmp_path / target, tmp_path / "80.pth", to="mmdet3", rows=80)
    convert(tmp_path / "80.pth", tmp_path / "91.safetensors", to="querybox", rows=91)
    narrow, wide = read_checkpoint(tmp_path / "80.pth"), read_checkpoint(tmp_path / "91.safetensors")
    assert len(narrow.state["decoder.class_head.bias"]) == 80
    rows = list(detector.class_rows)
    for name in ("decoder.class_head.weight", "decoder.class_head.bias"):
        assert torch.equal(wide.state[name][rows], ours.state[name][rows])


def test_a_config_that_normalises_between_layers_is_refused() -> None:
    with pytest.raises(QueryboxError, match="'auxiliary_loss' is True; querybox supports only False"):
        ConditionalDETR.settings_from_config({"auxiliary_loss": True})


def test_fine_tuning_keeps_classes_by_name_and_queries() -> None:
    source = make(categories=[Category(id=n, name=name) for n, name in enumerate(("cat", "dog", "emu"))])
    tuned = make(categories=[Category(id=1, name="emu"), Category(id=2, name="owl")], queries=8)
    new_row = tuned.decoder.class_head.weight[1].clone()  # type: ignore[union-attr, index]
    initialize_from(tuned, source, "source")
    state, given = tuned.state_dict(), source.state_dict()
    head = "decoder.class_head.weight"
    assert torch.equal(state[head][0], given[head][2])
    assert torch.equal(state[head][1], new_row)
    assert torch.equal(state["queries.position"][:5], given["queries.position"])
    same = state.keys() - {head, "decoder.class_head.bias", "queries.position"}
    assert all(torch.equal(state[name], given[name]) for name in same)


def test_it_is_trained_as_it_is_written() -> None:
    detector = make(dropout=0.0).train()
    assert detector.recipe is not None
    criterion = detector.recipe.criterion()
    targets = [
        Target(boxes=torch.tensor([[0.4, 0.5, 0.3, 0.2], [0.7, 0.2, 0.1, 0.3]]), labels=torch.tensor([0, 2])),
        Target(boxes=torch.tensor([[0.5, 0.5, 0.6, 0.7]]), labels=torch.tensor([1])),
    ]
    gradients = []
    for model in (detector, for_training(detector)):
        detector.zero_grad()
        losses = criterion(model(batch()), targets)
        assert len(losses) == 9
        torch.stack(list(losses.values())).sum().backward()
        trained = {name: each for name, each in detector.named_parameters() if each.requires_grad}
        assert all(each.grad is not None for each in trained.values())
        gradients.append({name: each.grad.clone() for name, each in trained.items() if each.grad is not None})
    largest = max(float(gradient.abs().max()) for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-6 * largest)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_optimised_copy_detects_the_same(precision: Precision) -> None:
    detector = make()
    tolerance = 1e-4 if precision == "float32" else 0.1
    one_size = ImageBatch.from_images([torch.full((3, 64, 96), 90, dtype=torch.uint8)])
    fast = detector.optimize(precision=precision)
    for images in (batch(), one_size):
        with torch.inference_mode():
            expected = detector(images).layers[-1]
        (answer,) = fast(images).layers
        assert_close(answer.boxes, expected.boxes, rtol=0, atol=tolerance)
        assert_close(answer.scores(), expected.scores(), rtol=0, atol=tolerance)


def test_a_trace_has_the_attention_that_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, used = make(), recorded_weights(monkeypatch)
    image = torch.randint(256, (3, 64, 90), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    seen = detector.trace(image, Target(boxes=torch.tensor([[0.5, 0.5, 0.2, 0.2]]), labels=torch.tensor([1])))
    assert_maps(seen, used, calls=1 + 2 * 3, contrast=1.2)
    assert seen.comparison is not None
    assert {"queries: reference", "decoder layer 3"} <= {stage.name for stage in seen.stages}


def test_exports_detect_the_same(tmp_path: Path) -> None:
    detector = make(decoder_layers=2)
    picture = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    (ours,) = detector.predict(picture, threshold=0.0)
    program, card = trace(detector), Card.of(detector, "float32")
    formats: tuple[Format, ...] = ("onnx", "openvino")  # a `torch` file holds the traced program
    for to in formats:
        engine = write_model(program, tmp_path / f"model{EXPORTED[to]}", card, detector, to)
        assert verify(detector, engine).scores < 1e-4
        (theirs,) = predict(engine, picture, threshold=0.0)
        assert ours.names == theirs.names
        assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-4)
        assert_close(ours.boxes_xyxy, theirs.boxes_xyxy, rtol=0, atol=0.02)


def test_a_diagnosis_knows_it() -> None:
    failed: dict[str, Any] = {"recipe": "conditional_detr_r50", "history": {"AP50": [0.001] * 9}}
    blind = blind_queries(make_run(**failed, sameness=0.99))
    assert blind is not None
    assert "local_start" not in blind.cure  # which it does not have
    settled = {"AP50": [0.001] * 9, "loss_cls": [0.5] * 9}
    collapsed = no_object_collapse(make_run(**failed | {"history": settled}, top_score=0.01))
    assert collapsed is not None
    assert "model.queries" not in collapsed.cure  # no softmax is shared out among them
    short = too_few_steps(make_run(**failed | {"history": {"AP50": [0.001] * 9, "step": list(range(1, 10))}}))
    assert short is not None
    assert short.evidence["steps until such a model begins to detect objects"] == 500
