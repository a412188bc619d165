"""What the page carries. What it does with that is tested in test_page_browser.py."""

from __future__ import annotations

import base64
import json
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.testing import assert_close

from querybox.cli.trace import predictions_table
from querybox.detector import Detector
from querybox.errors import ConfigError
from querybox.inference.engine import evaluating
from querybox.inspect import Trace
from querybox.inspect import page as page_module
from querybox.inspect.attention import AttentionMaps, AttentionPoints
from querybox.inspect.page import select_queries, write_page
from querybox.structures import ImageBatch, Target

PIXELS = torch.randint(0, 256, (3, 100, 140), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


class Page(HTMLParser):
    """Collects what a file would load or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.addresses: list[str] = []
        self.policy = ""
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.inside = f"{tag} {values.get('type', '')}".strip()
        self.addresses += [values[name] or "" for name in ("src", "href") if name in values]
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""

    def handle_data(self, data: str) -> None:
        if data.strip():
            assert self.inside not in ("script", "script application/json") or self.inside not in self.texts
            self.texts[self.inside] = data


def read(path: Path) -> list[dict[str, Any]]:
    """The images of a page."""
    content = json.loads(Page(path.read_text()).texts["script application/json"])
    return list(content["images"])


def unpacked(value: dict[str, Any]) -> npt.NDArray[Any]:
    array = np.frombuffer(zlib.decompress(base64.b64decode(value["data"])), f"<{value['kind']}")
    return array.reshape(value["shape"])


@pytest.fixture(scope="module")
def trace(detr: Detector, target: Target) -> Trace:
    return detr.trace(PIXELS, target)


def test_a_page_that_browsers_do_not_open_is_not_written(
    trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_page(tmp_path / "a.html", [trace])
    monkeypatch.setattr(page_module, "MAX_BYTES", 3 * (tmp_path / "a.html").stat().st_size // 2)
    images = iter([trace] * 9)
    with pytest.raises(
        ConfigError, match=r"b\.html: \d images take more than .* MB, which browsers do not open"
    ):
        write_page(tmp_path / "b.html", images)
    assert len(list(images)) > 0
    assert not (tmp_path / "b.html").exists()


def test_the_file_loads_and_runs_nothing_else(trace: Trace, tmp_path: Path) -> None:
    write_page(tmp_path / "a.html", [trace], title="<b>{{ data }}")
    text = (tmp_path / "a.html").read_text()
    page = Page(text)
    assert page.policy.startswith(
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-"
    )
    assert page.addresses == []
    assert "<b>" not in text
    assert "&lt;b&gt;{{ data }}" in text
    assert "</script><b>dog" in read(tmp_path / "a.html")[0]["classes"]


def test_maps_are_the_attention_in_255_steps(trace: Trace, tmp_path: Path) -> None:
    write_page(tmp_path / "a.html", [trace], encoder_layers=(0, -1))
    (image,) = read(tmp_path / "a.html")
    assert image["queries"] == trace.ranking
    steps, peaks = unpacked(image["cross"]["steps"]), unpacked(image["cross"]["peaks"])
    for layer, look in enumerate(trace.decoder_cross_attention):
        assert isinstance(look, AttentionMaps)
        exact = look.weights()[:, trace.ranking].numpy()
        assert np.abs(steps[layer] * peaks[layer, ..., None] / 255 - exact).max() <= exact.max() / 500
    assert [look["layer"] for look in image["encoder"]] == [0, 1]
    ((height, width),) = trace.grids
    for shown in image["encoder"]:
        look = trace.encoder_attention[shown["layer"]]
        assert isinstance(look, AttentionMaps)
        mean = unpacked(shown["steps"]) * unpacked(shown["peaks"])[:, None] / 255
        assert np.abs(mean - look.weights().mean(0).numpy()).max() <= mean.max() / 500
        assert shown["cells"] == shown["grid"] == [height, width]


def test_points_are_the_attention(relative: Detector, tmp_path: Path) -> None:
    trace = relative.trace(PIXELS)
    write_page(tmp_path / "a.html", [trace])
    (image,) = read(tmp_path / "a.html")
    points = unpacked(image["cross"]["points"]) / 65535 * 2 - 0.5
    weights = unpacked(image["cross"]["steps"]) * unpacked(image["cross"]["peaks"])[..., None] / 255
    for layer, look in enumerate(trace.decoder_cross_attention):
        assert isinstance(look, AttentionPoints)
        places, exact = look.points(trace.ranking)
        assert_close(torch.from_numpy(points[layer]).float(), places.clamp(-0.5, 1.5), rtol=0, atol=2e-5)
        assert np.abs(weights[layer] - exact.numpy()).max() <= 1 / 500
    (cells,) = image["encoder"]
    assert unpacked(cells["steps"]).shape[2] == cells["cells"][0] * cells["cells"][1]


def test_numbers_are_exact(trace: Trace, tmp_path: Path) -> None:
    write_page(tmp_path / "a.html", [trace])
    (image,) = read(tmp_path / "a.html")
    comparison = trace.comparison
    assert comparison is not None
    objects = image["objects"]
    assert np.array_equal(unpacked(objects["cost"]), comparison.cost[..., trace.ranking].numpy())
    for name, values in comparison.terms.items():
        assert np.array_equal(unpacked(objects["terms"][name]), values[..., trace.ranking].numpy())
    assert objects["losses"] == comparison.losses
    matched = [[trace.ranking[place] for place in layer] for layer in objects["matched"]]
    assert matched == comparison.matched.tolist()
    assert np.array_equal(unpacked(image["boxes"]), trace.boxes[:, trace.ranking].numpy())
    sums = unpacked(image["scores"]).sum(2) + unpacked(image["no_object"])
    assert np.abs(sums - 1).max() < 1e-5


def test_matched_queries_are_always_told_of(trace: Trace) -> None:
    comparison = trace.comparison
    assert comparison is not None
    chosen = select_queries(trace, 1)
    assert set(chosen) == {trace.ranking[0], *comparison.matched.flatten().tolist()}
    assert chosen == [query for query in trace.ranking if query in chosen]


def test_large_maps_make_it_fewer_maps_and_cells(
    trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = trace.grids[0][0] * trace.grids[0][1]
    monkeypatch.setattr("querybox.inspect.page.CROSS_BYTES", 3 * 3 * 4 * cells)  # of three queries
    monkeypatch.setattr("querybox.inspect.page.ENCODER_BYTES", cells * cells - 1)
    write_page(tmp_path / "a.html", [trace])
    (image,) = read(tmp_path / "a.html")
    assert image["queries"] == trace.ranking
    assert trace.comparison is not None
    matched = trace.comparison.matched[-1].tolist()
    best = next(query for query in trace.ranking if query not in matched)
    told = [image["queries"][place] for place in image["cross"]["queries"]]
    assert told == [query for query in trace.ranking if query in {*matched, best}]
    assert unpacked(image["cross"]["steps"]).shape == (3, 4, 3, cells)
    ((height, width),) = trace.grids
    assert image["encoder"][0]["cells"] == [-(-height // 2), -(-width // 2)]


def test_an_image_without_objects_or_encoder_layers(padded: ImageBatch, tmp_path: Path) -> None:
    detector = Detector.from_recipe(
        "detr_r18",
        num_classes=2,
        backbone="test_resnet",
        width=16,
        heads=2,
        encoder_layers=0,
        decoder_layers=1,
    )
    nothing = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    write_page(tmp_path / "a.html", [detector.trace(padded), detector.trace(padded, nothing)])
    plain, empty = read(tmp_path / "a.html")
    assert (plain["encoder"], plain["objects"]) == ([], None)
    assert empty["objects"]["labels"] == []


def test_an_unknown_encoder_layer_is_refused(trace: Trace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the encoder has 2 layers; got layer 2, expected 0 to 1"):
        write_page(tmp_path / "a.html", [trace], encoder_layers=(2,))
    assert not (tmp_path / "a.html").exists()


def test_masks_are_those_of_the_cells_with_a_positive_logit(with_masks: Detector, tmp_path: Path) -> None:
    traced = with_masks.trace(PIXELS)
    write_page(tmp_path / "a.html", [traced], queries=3)
    (image,) = read(tmp_path / "a.html")
    assert traced.pixels.shape[1:] == (64, 89)
    assert image["masks"]["layers"] == [0, 1, 2]
    assert image["masks"]["grid"] == [16, 23]
    assert image["masks"]["extent"] == [1, 92 / 89]
    cells = np.unpackbits(unpacked(image["masks"]["bits"]), axis=2, count=16 * 23).reshape(3, 3, 16, 23)
    batch = ImageBatch.from_images([traced.pixels], with_masks.preprocessing)
    with evaluating(with_masks), torch.no_grad():
        output = with_masks(batch)
    for number, layer in enumerate(output.layers):
        assert layer.masks is not None
        logits = layer.masks.logits(torch.tensor([image["queries"]]))[0, :, :16, :23]
        np.testing.assert_array_equal(cells[number], logits > 0)
    assert 0.01 < cells.mean() < 0.99
    assert (cells[0] != cells[2]).any()


def test_detr_s_own_mask_head_has_masks_in_the_last_layer(
    with_attention_masks: Detector, tmp_path: Path
) -> None:
    traced = with_attention_masks.trace(PIXELS)
    write_page(tmp_path / "a.html", [traced], queries=2)
    (image,) = read(tmp_path / "a.html")
    assert image["masks"]["layers"] == [2]
    assert image["masks"]["bits"]["shape"] == [1, 2, 16 * 23 // 8]
    heads = [column.header for column in predictions_table(traced, traced.ranking[:2]).columns]
    assert [str(head) for head in heads][-1] == "mask"
    cells = list(predictions_table(traced, traced.ranking[:2]).columns[-1].cells)
    assert traced.masks is not None
    shares = traced.masks.cells(2, traced.ranking[:2]).float().mean((1, 2)).tolist()
    assert [str(cell) for cell in cells] == ["", "", f"{shares[0]:.1%}", "", "", f"{shares[1]:.1%}"]


def test_without_a_mask_head_there_are_no_masks(trace: Trace, tmp_path: Path) -> None:
    write_page(tmp_path / "a.html", [trace])
    assert read(tmp_path / "a.html")[0]["masks"] is None
    assert trace.masks is None
