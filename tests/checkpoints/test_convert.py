"""Checkpoints between the layouts: the very same tensors there and back, and errors where there is no way."""

from __future__ import annotations

import json
import logging
from itertools import permutations
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from conversions import TARGETS, TINY, identical, random_state
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import querybox.checkpoints.huggingface_folder as folder_writer
from querybox.checkpoints import coco, native
from querybox.checkpoints.blueprint import Blueprint
from querybox.checkpoints.convert import System, check_choice, convert
from querybox.checkpoints.read import read_checkpoint
from querybox.detector import Detector
from querybox.errors import CheckpointError, ConfigError
from querybox.models import DETR
from querybox.structures import Category, Preprocessing

WEIGHT, BIAS = "decoder.class_head.weight", "decoder.class_head.bias"


@settings(max_examples=12)
@given(
    recipe=st.builds(
        DETR,
        backbone=st.sampled_from(["resnet18.tv_in1k", "resnet50.tv_in1k"]),
        heads=st.just(2),
        width=st.sampled_from([4, 8]),
        feedforward=st.integers(1, 6),
        encoder_layers=st.integers(0, 2),
        decoder_layers=st.integers(1, 2),
        queries=st.integers(1, 5),
        norm_first=st.booleans(),
        position=st.sampled_from(["sine", "learned"]),
        frozen_stride=st.just(0),
    ),
    classes=st.integers(1, 6),
)
def test_all_pairs_of_layouts_there_and_back(recipe: DETR, classes: int) -> None:
    ours = random_state(recipe, classes, tiny_backbone=True)
    able = [layout for layout in recipe.layouts.values() if not recipe.unsupported_settings(layout)]
    assert len(able) == (2 if recipe.norm_first else 4)
    for layout in able:
        assert identical(layout.to_ours(layout.to_theirs(ours)), ours), layout.name
    for one, other in permutations(able, 2):
        file = one.to_theirs(ours)
        there = other.to_theirs(one.to_ours(file))
        assert identical(one.to_theirs(other.to_ours(there)), file), (one.name, other.name)


def usable(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return random tensors with which a model predicts finite numbers: small weights, positive variances."""
    small = {
        name: tensor / tensor[0].numel() ** 0.5 if tensor.ndim > 1 else tensor
        for name, tensor in state.items()
    }
    return {name: tensor.abs() + 0.1 if "running_var" in name else tensor for name, tensor in small.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[System, Path]:
    """One model with COCO's 91 rows, in float16 but for its norms, in all layouts."""
    folder = tmp_path_factory.mktemp("layouts")
    paths = {to: folder / name for to, name in TARGETS.items()}
    recipe = DETR(**TINY, unused_rows=coco.UNUSED_ROWS)
    torch.manual_seed(0)
    state = {
        name: tensor.half() if tensor.is_floating_point() and "norm" not in name else tensor
        for name, tensor in usable(random_state(recipe, 80)).items()
    }
    blueprint = Blueprint(
        recipe=recipe,
        categories=coco.CATEGORIES,
        preprocessing=Preprocessing(short_side=320, long_side=480),
    )
    native.write(paths["querybox"], state, blueprint.card())
    for to in DETR.layouts:
        convert(paths["querybox"], paths[to], to=to)
    return paths


@pytest.mark.parametrize("system", DETR.layouts)
def test_a_file_there_and_back(files: dict[System, Path], system: System, tmp_path: Path) -> None:
    ours = read_checkpoint(files["querybox"])
    convert(files[system], tmp_path / "back.safetensors", to="querybox")
    back = read_checkpoint(tmp_path / "back.safetensors")
    assert identical(back.state, ours.state)
    assert {tensor.dtype for tensor in back.state.values()} == {torch.float16, torch.float32, torch.int64}
    assert back.blueprint.recipe == ours.blueprint.recipe
    assert back.blueprint.categories == ours.blueprint.categories
    assert back.blueprint.preprocessing.short_side == 320
    if system != "huggingface":  # whose folder says nothing of querybox
        assert back.blueprint == ours.blueprint


@pytest.mark.parametrize(
    ("one", "other"), [("facebook", "mmdet2"), ("mmdet3", "huggingface"), ("huggingface", "mmdet3")]
)
def test_a_file_from_one_system_to_another(
    files: dict[System, Path], one: System, other: System, tmp_path: Path
) -> None:
    convert(files[one], tmp_path / TARGETS[other], to=other)
    convert(tmp_path / TARGETS[other], tmp_path / f"back-{TARGETS[one]}", to=one)
    assert identical(
        read_checkpoint(tmp_path / f"back-{TARGETS[one]}").state, read_checkpoint(files[one]).state
    )


def test_wrappers_are_those_of_each_system(files: dict[System, Path]) -> None:
    names = [coco.NAMES.get(row, "N/A") for row in range(91)]
    contents = {
        system: torch.load(files[system], weights_only=True) for system in ("facebook", "mmdet2", "mmdet3")
    }
    assert contents["facebook"]["model"]["class_embed.weight"].shape == (92, 8)
    assert contents["mmdet2"]["state_dict"]["bbox_head.fc_cls.weight"].shape == (92, 8)
    assert list(contents["mmdet2"]["meta"]["CLASSES"]) == names
    assert contents["mmdet3"]["state_dict"]["query_embedding.weight"].shape == (5, 8)
    assert list(contents["mmdet3"]["meta"]["dataset_meta"]["classes"]) == names
    assert not any(name.endswith("num_batches_tracked") for name in contents["facebook"]["model"])

    config = json.loads((files["huggingface"] / "config.json").read_text())
    assert list(config["id2label"].values()) == names
    assert config["encoder_attention_heads"] == 2
    images = json.loads((files["huggingface"] / "preprocessor_config.json").read_text())
    assert images["size"] == {"shortest_edge": 320, "longest_edge": 480}


def test_rows_there_and_back(
    files: dict[System, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "querybox")
    wide = read_checkpoint(files["facebook"])
    convert(files["facebook"], tmp_path / "80.pth", to="mmdet3", rows=80)
    assert "11 unused rows are dropped; each class keeps its logit" in caplog.text
    narrow = read_checkpoint(tmp_path / "80.pth")
    kept = [*coco.NAMES, 91]
    assert torch.equal(narrow.state[WEIGHT], wide.state[WEIGHT][kept])
    assert torch.equal(narrow.state[BIAS], wide.state[BIAS][kept])
    assert narrow.blueprint.categories == wide.blueprint.categories
    assert narrow.blueprint.recipe.unused_rows == ()

    caplog.clear()
    convert(tmp_path / "80.pth", tmp_path / "91.pth", to="facebook", rows=91)
    assert "11 unused rows are added; their probability is zero" in caplog.text
    convert(tmp_path / "91.pth", tmp_path / "80-again.pth", to="mmdet3", rows=80)
    assert identical(read_checkpoint(tmp_path / "80-again.pth").state, narrow.state)
    assert detected(tmp_path / "91.pth") == detected(tmp_path / "80.pth")


def detected(path: Path) -> list[int]:
    detector = Detector.load(path)
    detector.preprocessing = Preprocessing(short_side=32, long_side=64)
    image = torch.arange(3 * 32 * 32, dtype=torch.uint8).view(3, 32, 32)
    return detector.predict(image.permute(1, 2, 0).numpy(), threshold=0.0)[0].labels.tolist()


def test_says_what_to_set_there(
    files: dict[System, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "querybox")
    convert(files["facebook"], tmp_path / "a.pth", to="mmdet2")
    assert "has 91 rows" in caplog.text
    assert "MMDetection 2.x's own config has 80: set num_classes=91 there" in caplog.text
    assert "2 attention heads" in caplog.text
    caplog.clear()
    convert(files["mmdet2"], tmp_path / "b.pth", to="facebook")
    assert "num_classes" not in caplog.text


@pytest.mark.parametrize(
    ("to", "name", "message"),
    [
        ("facebook", "a.safetensors", "expected a .pth or .pt file for facebook"),
        ("huggingface", "a.pth", "expected a folder for huggingface; omit '.pth'"),
        ("querybox", "a", "expected a .safetensors file for querybox"),
    ],
)
def test_targets_of_the_wrong_kind(
    files: dict[System, Path], tmp_path: Path, to: System, name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        convert(files["querybox"], tmp_path / name, to=to)
    assert list(tmp_path.iterdir()) == []


def test_unknown_choices() -> None:  # given here, for under test the types of convert's arguments are checked
    check_choice("rows", None, (80, 91, None))
    with pytest.raises(ConfigError, match="convert got to='detectron'; expected one of 'facebook', 'mmdet2'"):
        check_choice("to", "detectron", get_args(System))


@pytest.mark.parametrize("system", TARGETS)
def test_nothing_is_overwritten_least_of_all_the_source(files: dict[System, Path], system: System) -> None:
    before = read_checkpoint(files[system]).state
    with pytest.raises(ConfigError, match="exists already"):
        convert(files[system], files[system], to=system)
    assert identical(read_checkpoint(files[system]).state, before)


@pytest.fixture
def save(tmp_path: Path) -> Any:
    def save_(classes: int = 3, **changes: Any) -> Path:
        recipe = DETR(**{**TINY, **changes})
        categories = tuple(Category(id=label, name=f"class {label}") for label in range(classes))
        blueprint = Blueprint(recipe=recipe, categories=categories, preprocessing=Preprocessing())
        native.write(tmp_path / "model.safetensors", random_state(recipe, classes), blueprint.card())
        return tmp_path / "model.safetensors"

    return save_


@pytest.mark.parametrize(
    ("to", "changes", "message"),
    [
        ("facebook", {"local_start": True}, "facebookresearch has no DETR with local_start=True"),
        ("huggingface", {"norm_first": True}, "Hugging Face has no DETR with norm_first=True"),
        ("mmdet2", {"dilation": True, "stride": 16}, "MMDetection 2.x has no DETR with dilation=True"),
        ("mmdet3", {"stride": 16}, "MMDetection 3.x has no DETR with stride=16"),
        ("facebook", {"backbone": "test_resnet"}, "no DETR with backbone='test_resnet'"),
    ],
)
def test_models_that_another_system_does_not_have(
    save: Any, tmp_path: Path, to: System, changes: dict[str, Any], message: str
) -> None:
    source = save(**changes)
    with pytest.raises(ConfigError, match=message):
        convert(source, tmp_path / f"new{Path(TARGETS[to]).suffix}", to=to)
    assert list(tmp_path.iterdir()) == [source]


def test_rows_are_for_coco(save: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.safetensors: rows=80 is for COCO's 80 classes"):
        convert(save(), tmp_path / "new.pth", to="facebook", rows=80)


def test_own_classes_survive_where_files_have_no_place_for_them(save: Any, tmp_path: Path) -> None:
    source = save(backbone="resnet18.tv_in1k")
    convert(source, tmp_path / "facebook.pth", to="facebook")
    back = read_checkpoint(tmp_path / "facebook.pth")
    assert [category.name for category in back.blueprint.categories] == ["class 0", "class 1", "class 2"]
    assert (back.blueprint.recipe.heads, back.layout, back.assumptions) == (2, "facebookresearch", ())
    with pytest.raises(ConfigError, match="got heads=8, but the file says 2"):
        read_checkpoint(tmp_path / "facebook.pth", heads=8)


def test_classes_of_stuff_are_stated_in_a_folder_of_hugging_face(tmp_path: Path) -> None:
    recipe = DETR(**{**TINY, "backbone": "resnet18.tv_in1k", "unused_rows": (0,)})
    categories = tuple(
        Category(id=row, name=name, stuff=name in ("sky", "road"))
        for row, name in enumerate(("sky", "cat", "road"), start=1)
    )
    blueprint = Blueprint(recipe=recipe, categories=categories, preprocessing=Preprocessing())
    source, folder = tmp_path / "model.safetensors", tmp_path / "folder"
    native.write(source, random_state(recipe, 3), blueprint.card())
    convert(source, folder, to="huggingface")
    assert read_checkpoint(folder).blueprint.categories == categories
    config = json.loads((folder / "config.json").read_text())
    assert config["stuff_rows"] == [1, 3]
    for wrong in ("1", [1.5], [True], {"1": 1}):
        (folder / "config.json").write_text(json.dumps({**config, "stuff_rows": wrong}))
        with pytest.raises(
            CheckpointError, match=r"config\.json: 'stuff_rows' is .* expected a list of rows of"
        ):
            read_checkpoint(folder)


def test_incomplete_checkpoints_are_not_passed_on(files: dict[System, Path], tmp_path: Path) -> None:
    content = torch.load(files["facebook"], weights_only=True)
    del content["model"]["transformer.decoder.norm.bias"]
    torch.save(content, tmp_path / "partial.pth")
    with pytest.raises(
        CheckpointError, match=r"partial\.pth: .*decoder\.norm\.bias: expected \[8\], got none"
    ):
        convert(tmp_path / "partial.pth", tmp_path / "new.pth", to="mmdet2")
    assert not (tmp_path / "new.pth").exists()


@pytest.mark.parametrize("to", ["facebook", "huggingface"])
def test_a_failed_write_leaves_nothing(
    files: dict[System, Path], tmp_path: Path, to: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    monkeypatch.setattr(folder_writer, "preprocessor_config", fail)
    monkeypatch.setattr(folder_writer, "save_tensors", fail)
    with pytest.raises(OSError, match="No space left"):
        convert(files["querybox"], tmp_path / TARGETS[to], to=to)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_a_target(files: dict[System, Path], tmp_path: Path) -> None:
    (tmp_path / "r50-1.0").mkdir()
    convert(files["facebook"], tmp_path / "r50-1.0", to="huggingface")
    assert read_checkpoint(tmp_path / "r50-1.0").layout == "Hugging Face"


def test_an_empty_folder_is_a_target_where_folders_cannot_be_replaced(
    files: dict[System, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows a folder cannot be moved to the place of another, even of an empty one."""
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if self.is_dir() and target.exists():
            raise PermissionError(13, "Access is denied", str(target))
        return real(self, target)

    (tmp_path / "r50-1.0").mkdir()
    monkeypatch.setattr(Path, "replace", replace)
    convert(files["facebook"], tmp_path / "r50-1.0", to="huggingface")
    assert (tmp_path / "r50-1.0" / "model.safetensors").is_file()
