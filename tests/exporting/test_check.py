from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from querybox.detector import Detector
from querybox.errors import ExportError
from querybox.exporting import check, export, write
from querybox.exporting.card import Card
from querybox.exporting.check import verification_batches, verify
from querybox.exporting.engine import ExportedModel, Outputs
from querybox.exporting.graph import Graph


def engine(detector: Detector, **spoiled: float) -> ExportedModel:
    """Run the detector itself as if it were a file, with something added to some of its answers."""
    graph, card = Graph(copy.deepcopy(detector).eval()), Card.of(detector, "float32")

    def run(pixels: Tensor, sizes: Tensor) -> Outputs:
        with torch.inference_mode():
            answers = dict(zip(card.outputs, graph(pixels, sizes), strict=True))
        return {name: answer + spoiled.get(name, 0) for name, answer in answers.items()}

    return ExportedModel(card, run)


@pytest.mark.parametrize("autocast", [False, True])
def test_verifies_what_is_equal(detector: Detector, *, autocast: bool) -> None:
    right = engine(detector)
    run = torch.autocast("cpu", enabled=False)(right.run)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = verify(detector, ExportedModel(right.card, run))
    assert (result.batches, result.scores, result.boxes, result.masks) == (3, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("name", ["boxes", "scores", "labels", "boxes_xyxy", "masks"])
@pytest.mark.parametrize("error", [1.0, float("nan")])
def test_finds_what_differs(detector: Detector, name: str, error: float) -> None:
    with pytest.raises(ExportError, match="nothing was written"):
        verify(detector, engine(detector, **{name: error}))


def test_finds_other_weights(detector: Detector) -> None:
    other = copy.deepcopy(detector)
    with torch.no_grad():
        other.get_parameter("decoder.class_head.bias")[0] += 1e-2
    with pytest.raises(ExportError, match=r"scores by 0\.00"):
        verify(detector, engine(other))


def test_finds_that_padding_is_ignored(detector: Detector) -> None:
    right = engine(detector)

    def run(pixels: Tensor, sizes: Tensor) -> Outputs:
        return right.run(pixels, torch.tensor([pixels.shape[2:]] * len(pixels)))

    with pytest.raises(ExportError, match="nothing was written"):
        verify(detector, ExportedModel(right.card, run))


def tie(detector: Detector, sign: int) -> Detector:
    """Return a copy whose two best proposals are equally good, but for rounding; `sign` says which of them leads."""

    def equalise(_: nn.Module, __: object, logits: Tensor) -> Tensor:
        best, places = logits.amax(-1).topk(2, dim=1)
        rounding = 2e-6 * (1e6 * logits[:, 0, 0]).sin()  # another one, of either sign, with every noise
        change = best[:, 0] + sign * rounding - best[:, 1]
        return logits.index_put((torch.arange(len(logits)), places[:, 1]), change[:, None], accumulate=True)

    tied = copy.deepcopy(detector)
    tied.get_submodule("queries.proposals.class_head").register_forward_hook(equalise)
    return tied


def test_proposals_that_are_equally_good_may_come_in_either_order(
    dino: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tie(dino, 1), engine(tie(dino, -1))
    assert verify(one, other).scores < 1e-4
    monkeypatch.setattr(check, "TRIES", 0)
    with pytest.raises(ExportError, match="nothing was written"):
        verify(one, other)


def part(detector: Detector, gap: float) -> Detector:
    """Return a copy whose best proposal leads the next one by `gap`, which is that of the first image of each size."""
    changes: dict[torch.Size, Tensor] = {}

    def shift(_: nn.Module, __: object, logits: Tensor) -> Tensor:
        best, places = logits.amax(-1).topk(2, dim=1)
        change = changes.setdefault(logits.shape, best[:, 0] - gap - best[:, 1])
        return logits.index_put((torch.arange(len(logits)), places[:, 1]), change[:, None], accumulate=True)

    parted = copy.deepcopy(detector)
    parted.get_submodule("queries.proposals.class_head").register_forward_hook(shift)
    return parted


def test_rounding_grows_with_the_depth_of_a_model(dino: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proposals of a real backbone differ by some 1e-5 between two ways to compute them."""
    one, other = part(dino, 1e-5), engine(part(dino, -1e-5))
    assert verify(one, other).scores < 1e-4
    monkeypatch.setattr(check, "NOISE", check.NOISE[:1])
    with pytest.raises(ExportError, match="nothing was written"):
        verify(one, other)


def test_the_order_of_queries_is_not_compared_where_it_does_not_matter(dfine: Detector) -> None:
    right = engine(dfine)

    def run(pixels: Tensor, sizes: Tensor) -> Outputs:
        answers = right.run(pixels, sizes)
        return dict(answers) | {name: answers[name].flip(1) for name in ("logits", "boxes")}

    assert verify(dfine, ExportedModel(right.card, run)).scores < 1e-6
    with pytest.raises(ExportError, match="nothing was written"):
        verify(dfine, engine(dfine, boxes=0.01))


def test_other_weights_are_found_where_queries_are_chosen(dino: Detector) -> None:
    other = copy.deepcopy(dino)
    with torch.no_grad():
        other.get_parameter("decoder.class_heads.0.bias")[0] += 1e-2
    with pytest.raises(ExportError, match=r"scores by 0\.00"):
        verify(dino, engine(other))


@pytest.mark.parametrize("min_side", [33, 65, 129])
def test_no_images_of_the_verification_are_thinner_than_the_model_takes(
    detector: Detector, min_side: int
) -> None:
    card = dataclasses.replace(Card.of(detector, "float32"), min_side=min_side)
    shapes = [pixels.shape[2:] for pixels, _ in verification_batches(card)]
    assert len(shapes) == 3
    assert min(map(min, shapes)) >= min_side


def test_a_file_that_differs_is_not_kept(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_wrong(_: object, path: Path, *__: object) -> ExportedModel:
        path.write_bytes(b"wrong")
        return engine(detector, boxes=0.01)

    program = torch.export.export(torch.nn.Identity(), (torch.zeros(1),))
    monkeypatch.setattr(write, "trace", lambda *_, **__: program)
    monkeypatch.setattr(write, "min_side", lambda _: 33)
    monkeypatch.setattr(write, "write_model", write_wrong)
    (tmp_path / "model.onnx").write_bytes(b"as it was")
    with pytest.raises(ExportError):
        export(detector, tmp_path / "model.onnx", to="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"as it was"
