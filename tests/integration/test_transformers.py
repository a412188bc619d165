"""transformers and querybox read each other's folders and give the same numbers, offline, on random weights."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor
from torch.testing import assert_close

from querybox import Category, Detector, ImageBatch, Preprocessing
from querybox.checkpoints.convert import convert
from querybox.data import resize
from querybox.models import RTDETR

SMALL: dict[str, Any] = {
    "use_pretrained_backbone": False,
    "backbone": "resnet18",
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 7,
    "id2label": {0: "cat", 1: "dog", 2: "red panda"},
}
RESNET18 = {
    "model_type": "resnet",
    "layer_type": "basic",
    "depths": [2, 2, 2, 2],
    "hidden_sizes": [64, 128, 256, 512],
    "out_features": ["stage4"],
}
R50: dict[str, Any] = {
    "use_pretrained_backbone": False,
    "num_labels": 91,
    "encoder_layers": 2,
    "decoder_layers": 2,
}
FOUR_HEADS: dict[str, Any] = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
DEFORMABLE: dict[str, Any] = {**SMALL, **FOUR_HEADS, "two_stage_num_proposals": 7}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "small": ("DetrConfig", {**SMALL, **FOUR_HEADS}),
    "no timm": (
        "DetrConfig",
        {**SMALL, "backbone": None, "use_timm_backbone": False, "backbone_config": RESNET18},
    ),
    "dilated": ("DetrConfig", {**SMALL, "dilation": True}),
    "r50": ("DetrConfig", R50),
    "conditional": ("ConditionalDetrConfig", {**SMALL, **FOUR_HEADS}),
    "deformable": ("DeformableDetrConfig", {**DEFORMABLE, "encoder_n_points": 2, "decoder_n_points": 2}),
    "deformable, one map": ("DeformableDetrConfig", {**DEFORMABLE, "num_feature_levels": 1}),
    "deformable, refine": ("DeformableDetrConfig", {**DEFORMABLE, "with_box_refine": True}),
    "deformable, two-stage": (
        "DeformableDetrConfig",
        {**DEFORMABLE, "with_box_refine": True, "two_stage": True},
    ),
}
HGNETV2_B0: dict[str, Any] = {
    "model_type": "hgnet_v2",
    "stem_channels": [3, 16, 16],
    "stage_in_channels": [16, 64, 256, 512],
    "stage_mid_channels": [16, 32, 64, 128],
    "stage_out_channels": [64, 256, 512, 1024],
    "stage_num_blocks": [1, 1, 2, 1],
    "stage_downsample": [False, True, True, True],
    "stage_light_block": [False, False, True, True],
    "stage_kernel_size": [3, 3, 5, 5],
    "stage_numb_of_layers": [3, 3, 3, 3],
    "use_learnable_affine_block": True,
    "hidden_sizes": [64, 256, 512, 1024],
    "depths": [1, 1, 2, 1],
    "out_features": ["stage2", "stage3", "stage4"],
}
RTDETR_SMALL: dict[str, Any] = {
    **FOUR_HEADS,
    "backbone_config": {
        **RESNET18,
        "model_type": "rt_detr_resnet",
        "out_features": ["stage2", "stage3", "stage4"],
    },
    "encoder_in_channels": [128, 256, 512],
    "decoder_in_channels": [48] * 3,
    "encoder_hidden_dim": 48,
    "encoder_ffn_dim": 40,
    "hidden_expansion": 0.5,
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_ffn_dim": 56,
    "num_queries": 7,
    "id2label": SMALL["id2label"],
}


RTDETRS = {
    "rtdetr": ("RTDetrConfig", RTDETR_SMALL),
    "rtdetrv2": ("RTDetrV2Config", {**RTDETR_SMALL, "decoder_n_points": 2}),
    "dfine": (
        "DFineConfig",
        {
            **RTDETR_SMALL,
            "backbone_config": HGNETV2_B0,
            "encoder_in_channels": [256, 512, 1024],
            "decoder_n_points": [2, 3, 1],
            "depth_mult": 0.34,
            "reg_scale": 8.0,
        },
    ),
}
POINTS = {"rtdetr": (4, 4, 4), "rtdetrv2": (2, 2, 2), "dfine": (2, 3, 1)}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no test goes to the network")

    from transformers.utils.logging import disable_progress_bar

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    disable_progress_bar()


@torch.no_grad()
def their_model(config: str) -> Any:
    """A model with random weights, strong enough for queries to differ and frozen batch norms to count."""
    import transformers

    torch.manual_seed(3)
    kind, values = RTDETRS.get(config) or CONFIGS[config]
    model: Any = transformers.AutoModelForObjectDetection.from_config(getattr(transformers, kind)(**values))
    for name, tensor in model.state_dict().items():
        if "query_position" in name:
            tensor.normal_()
        elif tensor.ndim == 2:
            gain = (
                2.0 if re.search(r"[qkv]_(content_|pos_|pos_sine_)?proj|bbox_predictor", name) else 0.5
            )  # else the queries grow alike
            tensor.normal_(std=gain * tensor.shape[1] ** -0.5)
        elif name.endswith(("bias", "running_mean")):
            tensor.normal_(std=0.1)
        elif name.endswith(("points_scale", ".up", ".reg_scale")):
            continue  # constants
        elif name.endswith("running_var") or (tensor.ndim == 1 and config in RTDETRS):
            tensor.uniform_(0.5, 1.5)  # RT-DETR's norms have weights of about 0.01 there at first
    return model.eval()


@pytest.fixture(scope="module", params=list(CONFIGS))
def theirs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Their model and the folder where they saved it."""
    folder = tmp_path_factory.mktemp("theirs")
    model = their_model(request.param)
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def loaded(theirs: tuple[Any, Path]) -> Detector:
    """Their folder as it is loaded here, which no test changes."""
    return Detector.load(theirs[1])


@pytest.fixture(scope="module")
def batch() -> ImageBatch:
    """Two images of different sizes."""
    torch.manual_seed(1)
    images, sizes = torch.randn(2, 3, 96, 128), torch.tensor([[96, 100], [64, 128]])
    padding_mask = torch.ones(2, 96, 128, dtype=torch.bool)
    for mask, (height, width) in zip(padding_mask, sizes.tolist(), strict=True):
        mask[:height, :width] = False
    return ImageBatch(
        images=images.masked_fill(padding_mask[:, None], 0), padding_mask=padding_mask, sizes=sizes
    )


@torch.inference_mode()
def their_answer(model: Any, batch: ImageBatch) -> tuple[Tensor, Tensor]:
    output = model(pixel_values=batch.images, pixel_mask=(~batch.padding_mask).long())
    return output.logits, output.pred_boxes


@torch.inference_mode()
def our_answer(detector: Detector, batch: ImageBatch) -> tuple[Tensor, Tensor]:
    last = detector.eval()(batch).layers[-1]
    return last.logits, last.boxes


def assert_same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    for mine, wanted in zip(ours, theirs, strict=True):
        assert float(wanted.std(dim=1).max()) > 2e-3  # queries differ, or this would prove little
        assert_close(mine, wanted, rtol=0.0, atol=1e-4)


def test_their_folder_gives_their_numbers(
    theirs: tuple[Any, Path], loaded: Detector, batch: ImageBatch
) -> None:
    assert_same(our_answer(loaded, batch), their_answer(theirs[0], batch))


def test_the_names_in_memory_give_their_numbers(batch: ImageBatch, tmp_path: Path) -> None:
    model = their_model("dilated")  # with eight heads, which a file without a config is taken to have
    torch.save(model.state_dict(), tmp_path / "memory.pth")
    detector = Detector.load(tmp_path / "memory.pth", dilation=True)
    assert_same(our_answer(detector, batch), their_answer(model, batch))


def test_our_folder_gives_our_numbers_there(
    theirs: tuple[Any, Path], loaded: Detector, batch: ImageBatch, tmp_path: Path
) -> None:
    from transformers import AutoModelForObjectDetection

    loaded.save(tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / "folder", to="huggingface")
    model, info = AutoModelForObjectDetection.from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert not any(info.values()), info
    assert type(model) is type(theirs[0])
    assert_same(our_answer(loaded, batch), their_answer(model.eval(), batch))


def test_every_layer_of_ours_has_its_own_heads_there(batch: ImageBatch, tmp_path: Path) -> None:
    from transformers import AutoModelForObjectDetection

    torch.manual_seed(0)
    detector = Detector.from_recipe(
        "deformable_detr_r50_refine",
        num_classes=3,
        backbone="resnet18.tv_in1k",
        width=32,
        feedforward=48,
        encoder_layers=1,
        decoder_layers=2,
        queries=7,
    )
    detector.save(tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / "folder", to="huggingface")
    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "folder")
    assert_same(our_answer(detector, batch), their_answer(model.eval(), batch))


def test_fine_tuned_classes_and_image_sizes_survive(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    detector = Detector.from_recipe(
        "detr_r18",
        categories=[Category(id=4, name="ripe tomato"), Category(id=7, name="leaf")],
        width=32,
        heads=4,
        feedforward=48,
        encoder_layers=1,
        decoder_layers=1,
        queries=5,
    )
    detector.preprocessing = Preprocessing(short_side=320, long_side=480)
    detector.save(tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / "folder", to="huggingface")

    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "folder")
    assert model.config.id2label == {0: "ripe tomato", 1: "leaf"}
    processor = AutoImageProcessor.from_pretrained(tmp_path / "folder")
    assert (processor.size.shortest_edge, processor.size.longest_edge) == (320, 480)
    pixels = processor(torch.full((3, 240, 240), 128, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(values) for values in (detector.preprocessing.mean, detector.preprocessing.std))
    assert_close(pixels[0, :, 0, 0], (128 - mean) / std)

    model.save_pretrained(tmp_path / "theirs")
    processor.save_pretrained(tmp_path / "theirs")
    back = Detector.load(tmp_path / "theirs")
    assert [category.name for category in back.categories] == ["ripe tomato", "leaf"]
    assert (back.preprocessing.short_side, back.preprocessing.long_side) == (320, 480)
    assert_close(back.state_dict(), detector.state_dict(), rtol=0.0, atol=0.0)


@pytest.mark.parametrize(
    ("version", "frozen"), [("rtdetr", True), ("rtdetr", False), ("rtdetrv2", False), ("dfine", False)]
)
def test_rtdetr_in_both_directions(version: str, tmp_path: Path, *, frozen: bool) -> None:
    """Images are not padded, because transformers ignores the padding of RT-DETR's."""
    from transformers import AutoImageProcessor, AutoModelForObjectDetection, RTDetrImageProcessor

    model = their_model(version)
    model.config.freeze_backbone_batch_norms = frozen  # its tensors are the same
    RTDetrImageProcessor(image_mean=[0.5, 0.5, 0.5], size={"height": 96, "width": 64}).save_pretrained(
        tmp_path / "theirs"  # do_normalize is false by default: the mean is not used
    )
    model.save_pretrained(tmp_path / "theirs")
    detector = Detector.load(tmp_path / "theirs")
    recipe = detector.recipe
    assert isinstance(recipe, RTDETR)
    assert recipe.kind == version
    assert recipe.points_by_level == POINTS[version]
    assert (recipe.frozen_batch_norms, recipe.queries, recipe.heads) == (frozen, 7, 4)
    assert [category.name for category in detector.categories] == ["cat", "dog", "red panda"]
    preprocessing = detector.preprocessing
    assert (preprocessing.resizing, preprocessing.short_side, preprocessing.long_side) == ("stretch", 96, 64)
    assert (preprocessing.mean, preprocessing.std) == ((0.0,) * 3, (255.0,) * 3)
    noise = torch.randint(256, (3, 80, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "theirs")
    pixels = processor(noise, return_tensors="pt")["pixel_values"]
    given = ImageBatch.from_images([resize(noise, 96, 64, "stretch")], preprocessing)
    assert_close(given.images, pixels, rtol=0, atol=1.5 / 255)  # interpolation rounds to whole values
    # In float64, because the order of queries depends on rounding.
    given = ImageBatch(images=pixels.double(), padding_mask=given.padding_mask, sizes=given.sizes)
    assert_same(our_answer(detector.double(), given), their_answer(model.double(), given))

    detector.save(tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / "folder", to="huggingface")
    back, info = AutoModelForObjectDetection.from_pretrained(tmp_path / "folder", output_loading_info=True)
    missing = {name for name in info.pop("missing_keys") if not name.endswith("num_batches_tracked")}
    assert not missing
    assert not any(info.values()), info
    assert type(back) is type(model)
    assert_same(our_answer(detector, given), their_answer(back.eval().double(), given))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "folder")
    assert_close(processor(noise, return_tensors="pt")["pixel_values"], pixels)
