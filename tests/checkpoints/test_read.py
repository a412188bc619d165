"""A public checkpoint becomes the detector it is: its recipe, its classes, its way with images."""

from __future__ import annotations

import argparse
import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from querybox import Category, Detector, ImageBatch
from querybox.checkpoints import coco, native
from querybox.errors import CheckpointError, ConfigError
from querybox.models import DETR
from querybox.models.layouts.facebook import FACEBOOK
from querybox.models.layouts.fundamentalvision import FUNDAMENTALVISION
from querybox.models.layouts.huggingface import HUGGINGFACE
from querybox.models.layouts.idea import IDEA
from querybox.models.layouts.layout import Layout
from querybox.models.layouts.mmdet2 import MMDET2
from querybox.models.layouts.mmdet3 import MMDET3, MMDET3_DINO
from querybox.modules.meta import shapes_only

TINY = {"width": 16, "feedforward": 24, "encoder_layers": 1, "decoder_layers": 2, "queries": 5}


def tiny(num_classes: int = 3, recipe: str = "detr_r18", **settings: Any) -> Detector:
    torch.manual_seed(0)
    return Detector.from_recipe(recipe, num_classes=num_classes, **{**TINY, **settings})


def save(path: Path, detector: Detector, layout: Layout = FACEBOOK, **beside: Any) -> Path:
    torch.save({"model": layout.to_theirs(detector.state_dict()), **beside}, path)
    return path


@pytest.mark.parametrize("layout", [FACEBOOK, MMDET2, MMDET3, HUGGINGFACE], ids=lambda layout: layout.name)
def test_every_layout_becomes_the_same_detector(layout: Layout, tmp_path: Path) -> None:
    wanted = tiny()
    detector = Detector.load(save(tmp_path / "model.pth", wanted, layout))
    assert detector.recipe == wanted.recipe
    assert not detector.training
    state = detector.state_dict()
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(state[name], tensor), name
    trained = [name for name, parameter in detector.named_parameters() if parameter.requires_grad]
    assert trained == [name for name, parameter in wanted.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    "settings",
    [
        {"recipe": "detr_r50"},
        {"recipe": "detr_r101", "position": "learned"},
        {"backbone": "resnet34.tv_in1k", "norm_first": True, "encoder_layers": 3},
        {"backbone": "resnet152.tv_in1k", "width": 32, "queries": 7, "decoder_layers": 1},
    ],
)
def test_the_recipe_is_inferred(settings: dict[str, Any]) -> None:
    with shapes_only():
        detector = tiny(**settings)
    assert detector.recipe is not None
    inferred = DETR.parse(DETR.infer(detector.state_dict(), {}))
    assert inferred == detector.recipe


def test_an_unknown_backbone_is_told() -> None:
    names = [
        f"backbone.body.layer{stage}.{block}.conv1.weight" for stage in (1, 2, 3, 4) for block in range(5)
    ]
    with pytest.raises(CheckpointError, match=r"expected a ResNet-18, .* got \[5, 5, 5, 5\] blocks"):
        DETR.infer({"queries.position": torch.zeros(2, 4), **dict.fromkeys(names, torch.zeros(1))}, {})


def test_what_no_shape_tells_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "querybox")
    file = save(tmp_path / "detr-r18-dc5.pth", tiny())
    detector = Detector.load(file)
    assert isinstance(detector.recipe, DETR)
    assert (detector.recipe.dilation, detector.recipe.stride, detector.recipe.heads) == (False, 32, 8)
    assert "not dilated, although its name says DC5; pass dilation=True" in caplog.text
    assert [each.levelname for each in caplog.records] == ["INFO", "INFO", "WARNING"]
    assert "8 attention heads" in caplog.text
    caplog.clear()
    dilated = Detector.load(file, dilation=True, heads=4).recipe
    assert isinstance(dilated, DETR)
    assert (dilated.dilation, dilated.stride, dilated.heads) == (True, 16, 4)
    assert "dilat" not in caplog.text
    assert "heads" not in caplog.text


@pytest.mark.parametrize(
    ("layout", "resizing", "clip_boxes"),
    [(FACEBOOK, "facebook", False), (HUGGINGFACE, "huggingface", False), (MMDET2, "mmdet", True)],
    ids=["facebook", "huggingface", "mmdet"],
)
def test_images_and_boxes_are_treated_as_there(
    layout: Layout, resizing: str, clip_boxes: bool, tmp_path: Path
) -> None:
    detector = Detector.load(save(tmp_path / "model.pth", tiny(), layout))
    assert (detector.preprocessing.resizing, detector.preprocessing.clip_boxes) == (resizing, clip_boxes)
    detector.save(tmp_path / "ours.safetensors")
    assert Detector.load(tmp_path / "ours.safetensors").preprocessing == detector.preprocessing


def test_heads_of_92_and_81_rows_know_coco(tmp_path: Path) -> None:
    by_id = Detector.load(save(tmp_path / "92.pth", tiny(91)))
    in_order = Detector.load(save(tmp_path / "81.pth", tiny(80), MMDET3))
    assert by_id.categories == in_order.categories == coco.CATEGORIES
    assert by_id.class_rows == tuple(coco.NAMES)
    assert in_order.class_rows == tuple(range(80))
    by_id.save(tmp_path / "ours.safetensors")
    assert Detector.load(tmp_path / "ours.safetensors").class_rows == by_id.class_rows


def test_class_names_come_from_the_file(tmp_path: Path) -> None:
    wanted = (Category(id=0, name="cat"), Category(id=1, name="dog"), Category(id=2, name="emu"))
    names = [category.name for category in wanted]
    for layout, meta in ((MMDET2, {"CLASSES": tuple(names)}), (MMDET3, {"dataset_meta": {"classes": names}})):
        file = save(tmp_path / "model.pth", tiny(), layout, meta=meta)
        assert Detector.load(file).categories == wanted
    config = {"model_type": "detr", "id2label": {"2": "emu", "0": "N/A", "1": "dog"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = save(tmp_path / "model.bin", tiny(), HUGGINGFACE)
    detector = Detector.load(file)
    assert detector.categories == wanted[1:]
    assert detector.class_rows == (1, 2)


def test_another_spelling_of_cocos_names_is_cocos(tmp_path: Path) -> None:
    """RT-DETR and D-FINE on the Hub have them."""
    other = {"couch": "sofa", "potted plant": "pottedplant", "tv": "tvmonitor", "airplane": "aeroplane"}
    other |= {"motorcycle": "motorbike", "dining table": "diningtable"}
    names = tuple(other.get(category.name, category.name) for category in coco.CATEGORIES)
    file = save(tmp_path / "80.pth", tiny(80), MMDET2, meta={"CLASSES": names})
    assert Detector.load(file).categories == coco.CATEGORIES
    swapped = (*names[1::-1], *names[2:])
    file = save(tmp_path / "swapped.pth", tiny(80), MMDET2, meta={"CLASSES": swapped})
    assert tuple(category.name for category in Detector.load(file).categories) == swapped


def test_names_that_do_not_fit_the_head_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "querybox")
    file = save(tmp_path / "model.pth", tiny(), MMDET2, meta={"CLASSES": ("cat", "dog")})
    assert [category.name for category in Detector.load(file).categories] == ["0", "1", "2"]
    assert "the 2 class names in the file are not those of its 3 classes" in caplog.text


def test_a_config_states_what_shapes_do_not_show(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "querybox")
    config = {"model_type": "detr", "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config |= {"dilation": True, "dropout": 0.0, "auxiliary_loss": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    images = {"size": {"shortest_edge": 320, "longest_edge": 480}, "image_mean": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    save(tmp_path / "pytorch_model.bin", tiny(), HUGGINGFACE)
    detector = Detector.load(tmp_path)
    recipe = detector.recipe
    assert isinstance(recipe, DETR)
    assert (recipe.heads, recipe.dilation, recipe.dropout, recipe.norm_between) == (2, True, 0.0, True)
    assert (detector.preprocessing.short_side, detector.preprocessing.long_side) == (320, 480)
    assert detector.preprocessing.mean == (127.5, 127.5, 127.5)
    assert "heads" not in caplog.text
    (tmp_path / "config.json").write_text(json.dumps({**config, "activation_function": "gelu"}))
    with pytest.raises(
        CheckpointError, match="'activation_function' is 'gelu'; querybox supports only 'relu'"
    ):
        Detector.load(tmp_path)


def test_tensors_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    state = FACEBOOK.to_theirs(tiny().state_dict())
    del state["transformer.decoder.norm.bias"]
    state["class_embed.weight"] = torch.zeros(4, 7)
    torch.save({"model": state}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"model\.pth: tensors do not fit") as caught:
        Detector.load(tmp_path / "model.pth")
    assert "decoder.norm.bias: expected [16], got none" in str(caught.value)
    assert "decoder.class_head.weight: expected [4, 16], got [4, 7]" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "nonsense"),
    [
        ("config.json", {"id2label": [1]}),
        ("config.json", {"id2label": {"x": "cat"}}),
        ("config.json", {"model_type": "detr", "backbone_config": [16]}),
        ("config.json", {"model_type": "detr", "encoder_attention_heads": "eight"}),
        ("preprocessor_config.json", {"image_mean": [{}, 0.5, 0.5]}),
        ("preprocessor_config.json", {"image_mean": [True, 0.5, 0.5]}),
        ("preprocessor_config.json", {"size": "large"}),
        ("preprocessor_config.json", {"size": True}),
        ("preprocessor_config.json", {"size": {"shortest_edge": True, "longest_edge": 1333}}),
        ("preprocessor_config.json", {"size": {"shortest_edge": [], "longest_edge": 9}}),
    ],
)
def test_nonsense_beside_the_tensors_is_told(file: str, nonsense: dict[str, Any], tmp_path: Path) -> None:
    save_file(HUGGINGFACE.to_theirs(tiny().state_dict()), tmp_path / "model.safetensors")
    (tmp_path / file).write_text(json.dumps(nonsense))
    with pytest.raises((CheckpointError, ConfigError), match=r"model\.safetensors: "):
        Detector.load(tmp_path)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config", {"encoder_attention_heads": 0}, "config.json: setting 'heads' got 0"),
        ("config", {"encoder_attention_heads": 2**30}, "config.json: setting 'heads' got 1073741824"),
        ("config", {"dropout": math.nan}, "config.json: setting 'dropout' got nan"),
        ("config", {"dropout": -1}, "config.json: setting 'dropout' got -1"),
        (
            "preprocessor_config",
            {"size": 20_000, "max_size": 20_000},
            "a product of at most 8,388,608 pixels",
        ),
        ("preprocessor_config", {"size": 10**300, "max_size": 1}, "short_side=1000"),
        ("preprocessor_config", {"size": 0}, "short_side=0; expected an integer, 1 to 8388608"),
        (
            "preprocessor_config",
            {"size": {"height": 1.5, "width": 9}},
            "short_side: Input should be a valid integer",
        ),
        (
            "preprocessor_config",
            {"size": {"height": "x", "width": 9}},
            "short_side: Input should be a valid integer",
        ),
        ("preprocessor_config", {"image_std": [0.2, 0, 0.2]}, "std=0.0; expected 0.01 to 10000.0"),
        ("preprocessor_config", {"image_std": [0.2, -0.2, 0.2]}, "std=-51.0; expected"),
        ("preprocessor_config", {"image_std": [math.inf] * 3}, "std=inf; expected"),
        ("preprocessor_config", {"image_mean": [math.nan] * 3}, "mean=nan; expected 0 to 255"),
        ("preprocessor_config", {"image_mean": [1e30] * 3}, "mean=2.55e+32; expected 0 to 255"),
        ("preprocessor_config", {"image_mean": [10**400] * 3}, "mean[0]: Input should be a valid number"),
        ("preprocessor_config", {"image_mean": [0.5]}, "mean[1]: Field required"),
        ("preprocessor_config", {"image_mean": 0.5}, "'image_mean' is 0.5; expected three numbers"),
        ("preprocessor_config", {"rescale_factor": 1 / 127.5}, "'rescale_factor' is 0.00784"),
        ("preprocessor_config", {"do_resize": False}, "'do_resize' is False; querybox supports only True"),
        ("preprocessor_config", {"resample": 3}, "'resample' is 3; querybox supports only 2"),
    ],
)
def test_every_number_beside_the_tensors_is_checked(
    file: str, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_file(HUGGINGFACE.to_theirs(tiny().state_dict()), tmp_path / "model.safetensors")
    content = {"model_type": "detr", "encoder_attention_heads": 2, "decoder_attention_heads": 2, **values}
    content["decoder_attention_heads"] = content["encoder_attention_heads"]
    (tmp_path / f"{file}.json").write_text(json.dumps(content))
    with pytest.raises((CheckpointError, ConfigError), match=re.escape(message)) as caught:
        Detector.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'model.safetensors'}: {file}.json: ")


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ("preprocessing", "short_side", 20_000),
        ("preprocessing", "long_side", 2**40),
        ("preprocessing", "short_side", -1),
        ("preprocessing", "mean", [0, 0, math.nan]),
        ("preprocessing", "std", [1, 1, 0]),
        ("preprocessing", "std", [1e-30, 1, 1]),
        ("preprocessing", "pixel_range", [5, 5]),
        ("preprocessing", "pixel_range", [0, math.inf]),
        ("recipe", "queries", 2**20),
        ("recipe", "heads", 0),
        ("recipe", "decoder_layers", 10**9),
        ("recipe", "width", 2**40),
        ("recipe", "dropout", math.nan),
        ("recipe", "stride", 10**9),
        ("recipe", "backbone", "local-dir:/etc"),
        ("recipe", "unused_rows", [10**9]),
    ],
)
def test_every_number_of_a_card_is_checked(place: str, key: str, value: object, tmp_path: Path) -> None:
    tiny(backbone="test_resnet").save(tmp_path / "model.safetensors")
    tensors, card = native.read(tmp_path / "model.safetensors")
    card[place][key] = value
    native.write(tmp_path / "model.safetensors", tensors, card)
    with pytest.raises((CheckpointError, ConfigError), match=key) as caught:
        Detector.load(tmp_path / "model.safetensors")
    assert str(caught.value).startswith(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("transformer.decoder.layers.0.self_attn.in_proj_weight", (4, 16)), ("query_embed.weight", (5,))],
)
def test_shapes_that_make_no_sense_are_told(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    state = FACEBOOK.to_theirs(tiny().state_dict())
    torch.save({"model": {**state, name: torch.zeros(shape)}}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"model\.pth: .*is invalid"):
        Detector.load(tmp_path / "model.pth")


@pytest.mark.parametrize("given", [{"heads": 2}, {"heads": 4}, {"dilation": False}])
def test_arguments_that_contradict_the_metadata_are_refused(given: dict[str, Any], tmp_path: Path) -> None:
    """They were used in place of what the file says."""
    save_file(HUGGINGFACE.to_theirs(tiny().state_dict()), tmp_path / "model.safetensors")
    config = {
        "model_type": "detr",
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "dilation": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    if given == {"heads": 2}:
        assert Detector.load(tmp_path, **given).recipe == Detector.load(tmp_path).recipe
        return
    ((name, value),) = given.items()
    stated = {"heads": 2, "dilation": True}[name]
    with pytest.raises(ConfigError, match=f"got {name}={value}, but the file says {stated}; omit {name}"):
        Detector.load(tmp_path, **given)


def test_our_own_file_knows_itself(tmp_path: Path) -> None:
    detector = tiny(heads=2)
    detector.save(tmp_path / "ours.safetensors", dtype=torch.float16)
    loaded = Detector.load(tmp_path / "ours.safetensors", heads=2)
    assert loaded.recipe == detector.recipe
    assert all(tensor.dtype != torch.float16 for tensor in loaded.state_dict().values())
    with pytest.raises(ConfigError, match=r"got dilation=True, but the file says False; omit dilation"):
        Detector.load(tmp_path / "ours.safetensors", dilation=True)


def test_loading_makes_no_random_weights(tmp_path: Path) -> None:
    file = save(tmp_path / "model.pth", tiny())
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    Detector.load(file)
    assert torch.equal(torch.rand(3), wanted)


def test_parameters_own_their_memory(tmp_path: Path) -> None:
    """Nothing of the file is kept alive by a part of it, and no two parameters share memory."""
    detector = Detector.load(save(tmp_path / "model.pth", tiny()))
    storages = [tensor.untyped_storage() for tensor in detector.state_dict().values()]
    assert len({storage.data_ptr() for storage in storages}) == len(storages)
    held = sum(tensor.numel() * tensor.element_size() for tensor in detector.state_dict().values())
    assert sum(storage.nbytes() for storage in storages) == held


def test_a_relative_is_recognised_and_its_settings_are_inferred(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "querybox")
    size: dict[str, Any] = {**TINY, "width": 32, "backbone": "resnet18.tv_in1k"}
    torch.manual_seed(0)
    wanted = Detector.from_recipe("deformable_detr_r50_two_stage", num_classes=3, **size)
    file = save(tmp_path / "model.pth", wanted, FUNDAMENTALVISION)
    detector = Detector.load(file)
    assert wanted.recipe is not None
    assert detector.recipe == wanted.recipe.replace(queries=300)
    assert "300 queries, selected from as many proposals" in caplog.text
    assert "dilated" not in caplog.text
    assert (detector.preprocessing.resizing, detector.preprocessing.clip_boxes) == ("facebook", False)
    batch = ImageBatch.from_images([torch.full((3, 64, 96), 128, dtype=torch.uint8)])
    with torch.inference_mode():
        assert (
            detector(batch).layers[-1].logits.shape[2] == 3
        )  # every row is a class: there is no "no object"

    options = argparse.Namespace(nheads=4, num_queries=5, dropout=0.0, dilation=False)
    stated = Detector.load(save(tmp_path / "run.pth", wanted, FUNDAMENTALVISION, args=options)).recipe
    assert stated == wanted.recipe.replace(heads=4, points=8, dropout=0.0)
    with pytest.raises(
        CheckpointError,
        match=r"model\.pth: querybox has no Deformable DETR with a dilated last stage \(DC5\)",
    ):
        Detector.load(file, dilation=True)


def test_a_relative_that_lacks_tensors(tmp_path: Path) -> None:
    wanted = tiny(recipe="dino_r50", backbone="resnet18.tv_in1k", width=32)
    state = IDEA.to_theirs(wanted.state_dict())
    for name, message in (
        ("input_proj.3.0.weight", r"incomplete checkpoint: 'neck.projections.3.0.weight' is missing"),
        ("transformer.enc_output.bias", r"queries.proposals.projection.bias: expected \[32\], got none"),
    ):
        partial = {each: tensor for each, tensor in state.items() if each != name}
        torch.save({"model": partial}, tmp_path / "model.pth")
        with pytest.raises(CheckpointError, match=message):
            Detector.load(tmp_path / "model.pth")


def test_heads_of_91_rows_without_no_object_know_coco(tmp_path: Path) -> None:
    detector = tiny(91, recipe="dino_r50", backbone="resnet18.tv_in1k", width=32)
    loaded = Detector.load(save(tmp_path / "dino.pth", detector, IDEA))
    assert loaded.categories == coco.CATEGORIES
    assert loaded.class_rows == tuple(coco.NAMES)
    in_order = tiny(80, recipe="dino_r50", backbone="resnet18.tv_in1k", width=32)
    assert Detector.load(save(tmp_path / "mmdet.pth", in_order, MMDET3_DINO)).categories == coco.CATEGORIES
