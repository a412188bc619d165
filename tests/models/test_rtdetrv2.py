"""What RT-DETRv2 changes in RT-DETR."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from hybrid_models import make, square

from querybox import Detector, QueryboxError, Target, load
from querybox.checkpoints.convert import convert
from querybox.data.phases import Phases
from querybox.models import find
from querybox.models.layouts.rtdetrv2 import HUGGINGFACE_RTDETRV2, LYUWENYU_V2
from querybox.models.rtdetrv2 import RTDETRv2
from querybox.training import RunSettings
from querybox.training.start import resolve


@pytest.mark.parametrize(
    ("second", "first"), [("s", "r18"), ("ms", "r34"), ("m", "r50_m"), ("l", "r50"), ("x", "r101")]
)
def test_sizes_are_those_of_the_first_version(second: str, first: str) -> None:
    ours, theirs = find(f"rtdetrv2_{second}").model_dump(), find(f"rtdetr_{first}").model_dump()
    assert (ours.pop("kind"), ours.pop("points"), ours.pop("discrete")) == ("rtdetrv2", (4, 4, 4), False)
    assert (theirs.pop("kind"), theirs.pop("points")) == ("rtdetr", 4)
    assert ours == theirs


@pytest.mark.parametrize(
    ("size", "epochs", "stop", "multi_scale"),
    [("s", 120, 117, 0), ("ms", 120, 117, 3), ("m", 84, 81, 3), ("l", 72, 71, 3), ("x", 72, 71, 3)],
)
def test_strong_augmentation_ends_as_published(size: str, epochs: int, stop: int, multi_scale: int) -> None:
    run = resolve(RunSettings.parse({"recipe": f"rtdetrv2_{size}", "data": {"train": "x"}}))
    assert (run.train.epochs, run.data.multi_scale) == (epochs, multi_scale)
    phases = Phases(run.data, 0, epochs)
    strong = [epoch for epoch in range(epochs) if phases.batch(epoch, 0, 10).strong]
    assert strong == list(range(stop))
    assert phases.batch(stop, 0, 10).scale == (640 if multi_scale else None)
    assert (run.data.photometric, run.data.zoom_out, run.data.iou_crop, run.data.crop) == (0.5, 0.5, 0.8, 0)


def test_points_are_those_of_each_level() -> None:
    detector = make("rtdetrv2_s", points=(3, 6, 1))
    attention = detector.get_submodule("decoder.layers.0.cross_attention")
    assert attention.weight.out_features == 4 * 10  # type: ignore[union-attr]
    with pytest.raises(QueryboxError, match=r"'points' is \[3, 6\]; expected a number for each of the 3"):
        make("rtdetrv2_s", points=(3, 6))
    recipe = detector.recipe
    assert recipe is not None
    assert recipe.unsupported_settings(HUGGINGFACE_RTDETRV2) == ["points"]
    assert recipe.unsupported_settings(LYUWENYU_V2) == []
    scale = recipe.computed_tensors()["decoder.layers.1.cross_attention.scale"]
    assert scale.tolist() == pytest.approx([1 / 3] * 3 + [1 / 6] * 6 + [1])


def test_discrete_sampling_trains_all_but_the_offsets() -> None:
    detector = make("rtdetrv2_s", discrete=True).train()
    recipe = detector.recipe
    assert recipe is not None
    targets = [Target(boxes=torch.tensor([[0.4, 0.5, 0.3, 0.4]]), labels=torch.tensor([0]))]
    losses = recipe.criterion()(detector(square(1), targets), targets)
    sum(losses.values()).backward()
    without = {name for name, parameter in detector.named_parameters() if parameter.grad is None}
    offsets = {
        f"decoder.layers.{layer}.cross_attention.offset.{part}"
        for layer in range(2)
        for part in ("weight", "bias")
    }
    assert without == offsets
    assert not any(detector.get_parameter(name).requires_grad for name in offsets)


def test_a_file_has_the_sampling(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="querybox")
    detector = make("rtdetrv2_s", discrete=True)
    detector.save(tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / "folder", to="huggingface")
    assert "cross_attn_method" not in caplog.text
    convert(tmp_path / "ours.safetensors", tmp_path / "theirs.pth", to="facebook")
    assert "set cross_attn_method to discrete" in caplog.text
    given = square(1)
    with torch.no_grad():
        expected = detector(given).layers[-1]
        for file in ("ours.safetensors", "folder", "theirs.pth"):
            loaded = Detector.load(tmp_path / file)
            assert loaded.recipe == detector.recipe
            assert torch.equal(loaded(given).layers[-1].boxes, expected.boxes)
    assert isinstance(loaded.recipe, RTDETRv2)
    with pytest.raises(QueryboxError, match=r"'decoder_offset_scale' is 1\.0; querybox supports only 0.5"):
        RTDETRv2.settings_from_config({"decoder_offset_scale": 1.0})
    with pytest.raises(QueryboxError, match="'decoder_method' is 'magic'; querybox supports only"):
        RTDETRv2.settings_from_config({"decoder_method": "magic"})


def test_the_sampling_of_a_file_without_it_can_be_stated(tmp_path: Path) -> None:
    """No file of the authors has it."""
    detector = make("rtdetrv2_s", discrete=True, queries=300)
    detector.save(tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / "theirs.pth", to="facebook")
    state = torch.load(tmp_path / "theirs.pth", weights_only=True)["model"]
    torch.save({"ema": {"module": state}}, tmp_path / "plain.pth")  # without the card of querybox
    stated = load(tmp_path / "plain.pth", discrete=True, heads=4)
    assumed = Detector.load(tmp_path / "plain.pth", heads=4)
    assert isinstance(stated, Detector)
    with torch.no_grad():
        given = square(1)
        ours, theirs, others = (each(given).layers[-1].boxes for each in (detector.eval(), stated, assumed))
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, others)
    convert(tmp_path / "plain.pth", tmp_path / "again.safetensors", to="querybox", discrete=True, heads=4)
    assert Detector.load(tmp_path / "again.safetensors").recipe == stated.recipe
    with pytest.raises(QueryboxError, match="got discrete=False, but the file says True; omit discrete"):
        load(tmp_path / "ours.safetensors", discrete=False)


def test_a_name_that_says_discrete_sampling_is_a_doubt() -> None:
    known = {"heads": 8, "queries": 300, "inference_layers": None, "activation": "relu"}
    (sentence,) = RTDETRv2.assumptions(known, "rtdetrv2_r18vd_dsp_3x_coco.pth")
    assert sentence.startswith("sampling with interpolation, although its name says DSP; pass discrete=True")
    (sentence,) = RTDETRv2.assumptions(known, "rtdetrv2_r18vd_120e_coco.pth")
    assert sentence.startswith("sampling with interpolation; pass")
