"""The pages in a browser: an image is dropped, and its boxes and masks are drawn; nothing else is loaded."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from chromium import Page, chromium, find_chromium, run_axe
from PIL import Image
from servers import Client, picture, serving
from tiny_models import SEGMENTATION

from querybox.detector import Detector
from querybox.inference.optimized import OptimizedDetector
from querybox.serving.access import Access
from querybox.structures import Category, Preprocessing

TOKEN = "0123456789abcdef-token"


@pytest.fixture(scope="module")
def masks() -> OptimizedDetector:
    """A detector with masks, whose classes have names that are markup."""
    torch.manual_seed(0)
    names = [Category(id=1, name="<img src=x onerror=alert(1)>"), Category(id=2, name="b")]
    detector = Detector.from_recipe("detr_r18", categories=names, **SEGMENTATION)
    detector.preprocessing = Preprocessing(short_side=32, long_side=48)
    return detector.optimize()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(find_chromium(), tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page) -> Iterator[Page]:
    """The browser; afterwards no error was shown, and only the server of the test was asked."""
    browser.errors.clear()
    browser.requests.clear()
    browser.size(1000, 900)
    yield browser
    assert browser.errors == []


def open_page(page: Page, client: Client, path: str = "/") -> None:
    page.visit(
        f"http://127.0.0.1:{client.port}{path}",
        "document.readyState === 'complete' && document.querySelector('main')",
    )


def drop(page: Page, file: bytes, name: str = "a.png") -> None:
    """Drop a file on the page, and wait for the answer."""
    page.drop("#drop", file, name)
    page.wait("/objects? in|: /.test(document.querySelector('#message').textContent)")


def drawn(page: Page) -> Any:
    """Return what is drawn, as an image."""
    url = page.run("document.querySelector('#picture').toDataURL()")
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")


def test_a_dropped_image_is_shown_with_its_masks_and_boxes(page: Page, masks: OptimizedDetector) -> None:
    with serving([masks], threshold=0.05) as client:
        open_page(page, client)
        drop(page, picture(40, 60))
        expected = client.predict(picture(40, 60), query="?threshold=0.05").json["images"][0]
        requests = list(page.requests)
    rows = page.run(
        "[...document.querySelectorAll('#rows tr')].map((row) => [...row.cells].map((c) => c.textContent))"
    )
    assert [row[0] for row in rows] == [each["name"] for each in expected["detections"]]
    assert [row[1] for row in rows] == [f"{each['score']:.3f}" for each in expected["detections"]]
    assert rows
    assert drawn(page).size == (60, 40)
    root = f"http://127.0.0.1:{client.port}/"
    assert requests[:1] == [root]
    assert {url for url in requests if "favicon" not in url} == {root, f"{root}predict?threshold=0.05"}


def test_masks_are_decoded_as_they_were_encoded(page: Page, masks: OptimizedDetector, client: Client) -> None:
    (found,) = masks.predict([Image.open(io.BytesIO(picture(40, 60)))], threshold=0)
    assert found.masks is not None
    open_page(page, client)
    for rle, mask in zip(found.masks, found.pixel_masks(), strict=True):
        coco = rle.to_coco()
        inside = page.run(
            "(() => { const pixels = []; stripes("
            f"{{ size: {coco['size']}, counts: {coco['counts']!r} }}, (x, y, height) => {{"
            " for (let row = y; row < y + height; row++) pixels.push([row, x]); }); return pixels })()"
        )
        assert sorted(map(tuple, inside)) == list(zip(*map(list, mask.nonzero()), strict=True))


def test_an_error_is_shown(page: Page, client: Client) -> None:
    open_page(page, client)
    drop(page, b"nonsense")
    text = page.run("document.querySelector('#message').textContent")
    assert text.startswith("Unprocessable Entity: images[0]: cannot be read as an image")
    assert page.run("document.querySelector('#result').hidden")
    page.errors.clear()  # the browser logs the status


def test_a_token_is_asked_for_and_sent(page: Page, engine: OptimizedDetector) -> None:
    access = Access(token=TOKEN, host="127.0.0.1", loopback=True)
    with serving([engine], access, threshold=0.05) as client:
        open_page(page, client)
        drop(page, picture())
        assert page.run("document.querySelector('#message').textContent").startswith("Unauthorized: ")
        page.errors.clear()
        page.run(f"document.querySelector('#token').value = '{TOKEN}'")
        drop(page, picture())
        page.wait("/objects? in/.test(document.querySelector('#message').textContent)")


@pytest.mark.parametrize("path", ["/", "/docs"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_the_pages(page: Page, client: Client, path: str, scheme: str) -> None:
    page.scheme(scheme)
    open_page(page, client, path)
    if path == "/":
        drop(page, picture())
    assert run_axe(page) == []


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_allow_their_own_script_and_style_alone(client: Client, path: str) -> None:
    answer = client.request(path)
    policy = dict(
        part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for directive, element in (("script-src", "script"), ("style-src", "style")):
        count = answer.body.decode().count(f"<{element}>")
        expected = " ".join([r"'sha256-[A-Za-z0-9+/=]{44}'"] * count) or "'none'"
        assert re.fullmatch(expected, policy[directive])
    assert "unsafe" not in str(policy)
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", answer.body.decode())


def test_the_api_page_has_every_route_and_status(client: Client) -> None:
    schema = client.request("/openapi.json").json
    text = client.request("/docs").body.decode()
    assert set(schema["paths"]) == {"/predict", "/health", "/ready", "/metrics"}
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            assert f"<h2>{method.upper()} {path}</h2>" in text
            for status in operation["responses"]:
                assert f"<td>{status}</td>" in text


def test_the_schema_is_that_of_the_answers(client: Client) -> None:
    schema = client.request("/openapi.json").json
    answer = client.predict(picture(), query="?threshold=0").json
    models = schema["components"]["schemas"]
    assert set(models["Answer"]["properties"]) == set(answer)
    assert set(models["ImageAnswer"]["properties"]) == set(answer["images"][0])
    assert set(models["Detection"]["properties"]) == set(answer["images"][0]["detections"][0])
    assert set(models["ProblemDetails"]["properties"]) == set(client.predict(b"").json)
