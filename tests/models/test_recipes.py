"""Recipes build what the papers describe; a detector survives a round trip through its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from querybox import Category, Detector, ImageBatch, Preprocessing
from querybox.checkpoints.native import FORMAT, checksum
from querybox.errors import CheckpointError, ConfigError
from querybox.models import RECIPES
from querybox.modules.meta import shapes_only

TINY = {"width": 16, "heads": 2, "feedforward": 32, "encoder_layers": 1, "decoder_layers": 2, "queries": 5}
CATEGORIES = (Category(id=3, name="cat"), Category(id=17, name="dog"))


def tiny(**settings: Any) -> Detector:
    return Detector.from_recipe("detr_r18", categories=CATEGORIES, **{**TINY, **settings}).eval()


def batch() -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    sizes = [(64, 96), (80, 64)]
    images = [torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    return ImageBatch.from_images(images)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_detects(name: str) -> None:
    detector = Detector.from_recipe(name, num_classes=7).eval()
    recipe = detector.recipe
    assert recipe is not None
    with torch.inference_mode():
        output = detector(batch())
    assert len(output.layers) == (getattr(recipe, "inference_layers", None) or recipe.decoder_layers)
    answer = output.layers[-1]
    assert answer.no_object == (recipe.kind == "detr")
    strides, levels = getattr(recipe, "strides", (32,)), getattr(recipe, "levels", 1)
    strides = (*strides, *(strides[-1] * 2**extra for extra in range(1, levels + 1)))[:levels]
    # No more can be proposed.
    cells = sum({8: 10 * 12, 16: 5 * 6, 32: 3 * 3, 64: 2 * 2}[stride] for stride in strides)
    queries = min(recipe.queries, cells) if output.proposals is not None else recipe.queries
    assert answer.logits.shape == (2, queries, 8 if answer.no_object else 7)
    assert answer.boxes.shape == (2, queries, 4)
    assert ((answer.boxes >= 0) & (answer.boxes <= 1)).all()


def test_published_sizes() -> None:
    def millions(name: str) -> float:
        with shapes_only():
            detector = Detector.from_recipe(name, num_classes=91)
        return sum(p.numel() for p in detector.parameters()) / 1e6

    assert millions("detr_r50") == pytest.approx(41, abs=0.6)
    assert millions("detr_r101") == pytest.approx(60, abs=0.6)
    published = {"rtdetr_r18": 20, "rtdetr_r34": 31, "rtdetr_r50_m": 36, "rtdetr_r50": 42, "rtdetr_r101": 76}
    published |= {"dfine_s": 10, "dfine_m": 19, "dfine_l": 31, "dfine_x": 62}
    for name, size in published.items():
        assert int(millions(name)) == size


@pytest.mark.parametrize(
    "settings",
    [{"position": "learned"}, {"norm_first": True}, {"stride": 8}, {"encoder_layers": 0}, {"queries": 1}],
)
def test_settings(settings: dict[str, object]) -> None:
    output = tiny(**settings)(batch())
    assert output.layers[-1].logits.isfinite().all()


def test_predictions_do_not_depend_on_padding() -> None:
    detector = tiny()
    small = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    large = torch.randint(256, (3, 128, 160), dtype=torch.uint8)
    # Zero padding is not the zero padding of a convolution's border once there are biases: hence the tolerance.
    alone = detector(ImageBatch.from_images([small])).layers[-1]
    together = detector(ImageBatch.from_images([small, large])).layers[-1]
    assert_close(together.boxes[:1], alone.boxes, rtol=0, atol=0.05)


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    detector = tiny()
    detector.preprocessing = Preprocessing(short_side=320, long_side=533)
    detector.save(tmp_path / "model.safetensors")
    loaded = Detector.load(tmp_path / "model.safetensors")
    assert loaded.categories == CATEGORIES
    assert loaded.preprocessing == detector.preprocessing
    assert loaded.recipe == detector.recipe
    assert torch.equal(loaded(batch()).layers[-1].logits, detector(batch()).layers[-1].logits)


def test_half_precision_file(tmp_path: Path) -> None:
    detector = tiny()
    detector.save(tmp_path / "full.safetensors")
    detector.save(tmp_path / "half.safetensors", dtype=torch.float16)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.55 * (
        tmp_path / "full.safetensors"
    ).stat().st_size
    loaded = Detector.load(tmp_path / "half.safetensors")
    assert next(loaded.parameters()).dtype == torch.float32
    assert_close(loaded(batch()).layers[-1].boxes, detector(batch()).layers[-1].boxes, rtol=0, atol=1e-2)


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    tiny().save(file)
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="corrupt file, its checksum does not match"):
        Detector.load(file)
    file.write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match="corrupt"):
        Detector.load(file)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such weights file"):
        Detector.load(tmp_path / "absent.safetensors")
    save_file({"weight": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not a checkpoint of DETR or a relative"):
        Detector.load(tmp_path / "other.safetensors")


def test_a_card_that_does_not_fit_its_tensors(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    tiny().save(file)
    tensors = load_file(file)
    metadata = {
        "format": FORMAT,
        "checksum": checksum(sorted(tensors.items())),
        "card": json.dumps({"recipe": {}, "categories": []}),
    }
    save_file(tensors, file, metadata=metadata)
    with pytest.raises(CheckpointError, match="its description of the detector cannot be read"):
        Detector.load(file)


@pytest.mark.parametrize(
    "card",
    [
        "[" * 100_000,
        "3",
        '{"recipe": []}',
        '{"recipe": {"kind": []}, "categories": []}',
        '{"recipe": {"decoder_layers": 1000000}, "categories": []}',
        '{"recipe": {"feedforward": 1e30}, "categories": []}',
        '{"recipe": {"backbone": "hf-hub:owner/name"}, "categories": []}',
    ],
    ids=lambda card: card[:60],
)
def test_a_card_that_a_stranger_wrote(card: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    metadata = {"format": FORMAT, "checksum": checksum({}, card), "card": card}
    save_file({}, file, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*(its header|its description)"):
        Detector.load(file)


def test_a_detector_composed_by_hand_says_why_it_cannot_be_saved(tmp_path: Path) -> None:
    detector = tiny()
    detector.recipe = None
    with pytest.raises(
        CheckpointError, match=r"not built by a recipe.*; build it with Detector\.from_recipe"
    ):
        detector.save(tmp_path / "model.safetensors")


def test_errors_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe 'detr_r5'\. Did you mean 'detr_r50'"):
        Detector.from_recipe("detr_r5", num_classes=1)
    with pytest.raises(ConfigError, match=r"unknown setting 'widht'\. Did you mean 'width'"):
        Detector.from_recipe("detr_r50", num_classes=1, widht=3)
    with pytest.raises(ConfigError, match="expected a multiple of 'heads'"):
        Detector.from_recipe("detr_r50", num_classes=1, width=20, heads=8)
    with pytest.raises(ConfigError, match="either num_classes or categories"):
        Detector.from_recipe("detr_r50")


@pytest.mark.parametrize("recipe", ["detr_r50", "conditional_detr_r50", "deformable_detr_r50", "dino_r50"])
@pytest.mark.parametrize("unused", [(4,), (0, 0)])
def test_unused_rows_are_rows_of_the_head(recipe: str, unused: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"setting 'unused_rows' is \[.*expected different rows"):
        Detector.from_recipe(recipe, num_classes=3, unused_rows=unused)


def test_proposals_have_the_classes_of_the_detector() -> None:
    tiny: dict[str, Any] = {
        "backbone": "test_resnet",
        "width": 32,
        "heads": 4,
        "feedforward": 32,
        "queries": 5,
    }
    small: dict[str, Any] = {**tiny, "levels": 1, "strides": (32,), "encoder_layers": 1, "decoder_layers": 1}
    images = ImageBatch.from_images([torch.zeros(3, 64, 64, dtype=torch.uint8)])
    dino = Detector.from_recipe("dino_r50", num_classes=3, unused_rows=(1,), **small).eval()
    proposals = dino(images).proposals
    assert proposals is not None
    assert proposals.class_rows == (0, 2, 3)
    assert proposals.scores().shape[-1] == 3
    two_stage = Detector.from_recipe("deformable_detr_r50_two_stage", num_classes=3, **small).eval()
    proposals = two_stage(images).proposals
    assert proposals is not None
    assert proposals.scores().shape[-1] == 1  # an object of any class


@pytest.mark.parametrize("name", ["deformable_detr_small", "rtdetr_small"])
def test_a_file_without_a_neck_is_incomplete(name: str) -> None:
    recipe = RECIPES[name].replace(backbone="resnet18d")
    with torch.device("meta"):
        state = recipe.build([Category(id=1, name="cat")]).state_dict()
    rest = {key: tensor for key, tensor in state.items() if not key.startswith("neck.")}
    with pytest.raises(CheckpointError, match=r"'neck\.projections\.0\.\w+\.weight' is missing"):
        type(recipe).infer(rest, {})
