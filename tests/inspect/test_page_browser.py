"""The page in a browser: every control, by mouse, finger and keyboard; no error, no request, readable by all."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from chromium import Page, chromium, find_chromium, run_axe
from torch.testing import assert_close

from querybox.detector import Detector
from querybox.inspect import Trace
from querybox.inspect.page import write_page
from querybox.structures import Target

DESCRIPTION = "document.querySelector('#description')?.textContent"
PIXELS = torch.randint(0, 256, (3, 96, 128), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.fixture(scope="module")
def trace(detr: Detector, target: Target) -> Trace:
    return detr.trace(PIXELS, target)


@pytest.fixture(scope="module")
def browser(trace: Trace, detr: Detector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = find_chromium()
    folder = tmp_path_factory.mktemp("page")
    deformable = Detector.from_recipe(
        "dino_r50", categories=detr.categories, backbone="test_resnet", width=32, heads=2, feedforward=32,
        encoder_layers=1, decoder_layers=2, queries=8, denoising=4, masks=True,
    )  # fmt: skip
    deformable.preprocessing = detr.preprocessing
    write_page(folder / "page.html", [trace, detr.trace(PIXELS), deformable.trace(PIXELS)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("querybox.inspect.page.CROSS_BYTES", 1)
        write_page(folder / "one_map.html", [detr.trace(PIXELS)])
    with chromium(program, folder / "profile") as page:
        page.folder = folder  # type: ignore[attr-defined]
        yield page


@pytest.fixture
def page(browser: Page) -> Iterator[Page]:
    """The page, opened anew; afterwards nothing may have gone wrong in it, and nothing been asked for."""
    browser.errors.clear()
    browser.requests.clear()
    browser.size(1200, 900)
    browser.scheme("light")
    path = browser.folder / "page.html"  # type: ignore[attr-defined]
    browser.open(path, DESCRIPTION)
    yield browser
    assert browser.errors == []
    assert {url.partition(":")[0] for url in browser.requests} <= {"file", "data"}
    assert [url for url in browser.requests if url.startswith("file:")] == [path.as_uri()]


def heatmap(page: Page) -> str:
    """The overlay's pixels."""
    return str(page.run("document.querySelector('#heatmap').toDataURL()"))


def description(page: Page) -> str:
    return str(page.run(DESCRIPTION))


def choose(page: Page, select: str, index: int) -> None:
    page.run(
        f"(() => {{ const s = document.querySelector('#{select}'); s.selectedIndex = {index};"
        " s.dispatchEvent(new Event('change')) })()"
    )


def test_choosing_a_query_changes_the_overlay(page: Page, trace: Trace) -> None:
    first, words = heatmap(page), description(page)
    assert words.startswith(f"Query {trace.ranking[0]} after decoder layer 3 of 3: ")
    choose(page, "query", 3)
    assert heatmap(page) != first
    assert description(page).startswith(f"Query {trace.ranking[3]} after decoder layer 3 of 3: ")
    score = trace.scores[2, trace.ranking[3]].max()
    assert f"{100 * score:.1f} %" in page.run("document.querySelector('#classes').textContent")
    assert page.run("document.querySelectorAll('#marks [data-box=layer]').length") == 2 * 2  # each twice
    assert page.run("document.querySelectorAll('#boxes tr').length") == 1 + 3


def test_the_overlay_is_the_attention_of_layer_and_head(page: Page, trace: Trace) -> None:
    page.click("[data-tile='1 2']")
    assert "after decoder layer 2 of 3" in description(page)
    assert "Attention of head 3 peaks at" in description(page)
    look = trace.decoder_cross_attention[1]
    weights = look.weights([trace.ranking[0]])[2, 0]  # type: ignore[union-attr]
    darkness = page.run(
        "(() => { const c = document.querySelector('#heatmap');"
        " const cells = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        " return Array.from(cells).filter((_, i) => i % 4 === 3) })()"
    )
    wanted = 190 * (1 - (weights / weights.max()).sqrt())
    assert_close(torch.tensor(darkness).float(), wanted, rtol=0, atol=13)  # a root of steps of 1 / 255
    share = f"with {100 * weights.max():.1f} %;"
    assert share in description(page)
    everything = "shareInside(crossAttention(image, 1, 2, 0), [0.5, 0.5, 1, 1])"
    assert page.run(everything) == 1  # no more than all of it, for all that steps are rounded


def test_a_click_on_a_box_chooses_its_query(page: Page, trace: Trace) -> None:
    place = page.run(
        "(() => { const [x, y] = boxOf(state.layer, image.queries.length - 1); return { x, y } })()"
    )
    page.click("#stage", place["x"], place["y"])
    inside = page.run(
        "(() => { const b = edges(boxOf(state.layer, state.query)); return [b.left, b.right, b.top, b.bottom] })()"
    )
    assert inside[0] <= place["x"] <= inside[1]
    assert inside[2] <= place["y"] <= inside[3]


def test_pointing_shows_encoder_attention(page: Page, trace: Trace) -> None:
    page.click("[value=cells]")
    height, width = trace.grids[0]
    page.hover("#stage", 0.5 / width, 0.5 / height)
    corner = heatmap(page)
    assert f"column 1 of {width}, row 1 of {height}. Its attention in encoder layer 2, " in description(page)
    weights = trace.encoder_attention[1].weights([0]).mean(0)[0]  # type: ignore[union-attr]
    assert f"with {100 * weights.max():.1f} %." in description(page)
    page.hover("#stage", 0.99, 0.99)
    assert f"column {width} of {width}, row {height} of {height}." in description(page)
    assert heatmap(page) != corner


def test_a_finger_points_too(page: Page, trace: Trace) -> None:
    page.size(390, 800, mobile=True, deviceScaleFactor=2)
    page.call("Emulation.setTouchEmulationEnabled", enabled=True)
    page.click("[value=cells]")
    page.run("document.querySelector('#stage').scrollIntoView()")
    page.tap("#stage", 0.99, 0.01)
    page.wait(f"{DESCRIPTION}.includes('column {trace.grids[0][1]} of')")
    assert "row 1 of" in description(page)
    assert page.run("document.documentElement.scrollWidth") <= 390
    page.call("Emulation.setTouchEmulationEnabled", enabled=False)


def test_matching_shows_lines_and_the_criterion_s_numbers(page: Page, trace: Trace) -> None:
    page.click("[value=matching]")
    comparison = trace.comparison
    assert comparison is not None
    assert page.run("document.querySelectorAll('#marks .over[data-line=match]').length") == 2
    choose(page, "object", 1)
    choose(page, "query", 5)
    query = trace.ranking[5]
    rows = page.run("Array.from(document.querySelectorAll('#pair td'), (cell) => cell.textContent)")
    values = [comparison.terms[name][2, 1, query] for name in ("class", "box", "giou")]
    values.append(comparison.cost[2, 1, query])
    assert [float(row) for row in rows] == [float(f"{value:.6g}") for value in values]
    table = page.run(
        "Array.from(document.querySelectorAll('#objects tr')).slice(1)"
        ".map((row) => Array.from(row.querySelectorAll('td'), (cell) => Number(cell.textContent)))"
    )
    for place, (shown, *_, cost) in enumerate(table):
        assert shown == comparison.matched[2, place]
        assert cost == float(f"{comparison.cost[2, place, shown]:.6g}")
    losses = page.run(
        "Array.from(document.querySelectorAll('#losses td'), (cell) => Number(cell.textContent))"
    )
    names = [
        f"{layer}{name}" for layer in ("d0.", "d1.", "") for name in ("loss_cls", "loss_bbox", "loss_iou")
    ]
    assert losses == [float(f"{comparison.losses[name]:.6g}") for name in names]


def test_everything_works_by_keyboard(page: Page, trace: Trace) -> None:
    page.run("document.querySelector('#stage').focus()")
    page.press("ArrowDown")
    page.press("ArrowLeft")
    assert description(page).startswith(f"Query {trace.ranking[1]} after decoder layer 2 of 3")
    page.run("document.querySelector('[value=queries]').focus()")
    page.press("ArrowRight")
    assert description(page).startswith("Cell at")
    page.press("Tab")
    assert page.run("document.activeElement.id") == "stage"
    before = description(page)
    page.press("ArrowRight")
    assert description(page) != before
    page.press("Tab")
    assert page.run("document.activeElement.id") == "encoder-layer"
    page.click("[value=matching]")
    page.run("document.querySelector('#stage').focus()")
    page.press("ArrowDown")
    assert page.run("state.object") == 1
    page.run("document.querySelector('#layer').focus()")
    page.press("ArrowLeft")
    assert description(page).startswith("Decoder layer 1: object 2")
    assert " are matched; the pair costs" in description(page)


def test_images_without_objects_and_of_relatives(page: Page) -> None:
    choose(page, "image", 1)
    page.wait("state.image === 1")
    assert page.run("document.querySelector('[value=matching]').disabled")
    choose(page, "image", 2)
    page.wait("state.image === 2")
    assert page.run("document.querySelectorAll('#marks [data-mark=point]').length") > 8
    assert "no object" not in page.run("document.querySelector('#classes').textContent")
    page.click("[value=cells]")
    assert page.run("document.querySelectorAll('#marks [data-mark=point]').length") > 8


def test_the_mask_of_each_query_and_layer_is_drawn(page: Page) -> None:
    assert page.run("document.querySelector('#show-mask').hidden")  # this detector has none
    choose(page, "image", 2)
    page.wait("state.image === 2")
    opacity = (
        "(() => { const c = document.querySelector('#mask'), copy = document.createElement('canvas');"
        " [copy.width, copy.height] = [c.width, c.height]; const pen = copy.getContext('2d'); pen.drawImage(c, 0, 0);"
        " const cells = pen.getImageData(0, 0, c.width, c.height).data;"
        " return Array.from(cells).filter((_, i) => i % 4 === 3) })()"
    )
    masks = [page.run(f"Array.from(maskOf(image, {layer}, 1).inside)") for layer in (0, 1)]
    assert masks[0] != masks[1]
    for layer in (0, 1):
        page.run(f"update({{ layer: {layer}, query: 1 }})")
        drawn = page.run(opacity)
        assert [int(each > 0) for each in drawn] == masks[layer]
        assert f"Its mask covers {100 * sum(masks[layer]) / len(drawn):.1f} % of the image." in description(
            page
        )
    assert {0, 255} <= set(drawn) <= {0, 100, 255}
    page.click("#mask-shown")
    assert page.run("document.querySelector('#mask').width") == 1
    page.click("#mask-shown")
    assert page.run(opacity) == drawn
    page.click("[value=cells]")
    assert page.run("document.querySelector('#mask').width") == 1


def test_queries_whose_maps_found_no_room(page: Page) -> None:
    page.open(page.folder / "one_map.html", f"{DESCRIPTION} && DATA.images.length === 1")  # type: ignore[attr-defined]
    bright = heatmap(page)
    assert "peaks at" in description(page)
    choose(page, "query", 1)
    assert description(page).endswith("the maps of some queries only fit into it.")
    assert heatmap(page) != bright
    assert page.run("document.querySelector('#tiles').hidden")
    choose(page, "query", 0)
    assert heatmap(page) == bright
    assert not page.run("document.querySelector('#tiles').hidden")
    page.requests[:] = [url for url in page.requests if not url.endswith("one_map.html")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: Page, scheme: str) -> None:
    page.scheme(scheme)
    for mode in ("queries", "cells", "matching"):
        page.click(f"[value={mode}]")
        found = run_axe(page)
        assert not found, json.dumps(found, indent=1)
