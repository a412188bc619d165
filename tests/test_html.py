"""Values are escaped wherever a template shows them, and a template cannot show what it was not given."""

from __future__ import annotations

import base64
import hashlib
import io
import math

import pytest
from jinja2 import UndefinedError
from PIL import Image

from querybox.html import environment, jpeg_url, metric, render, source


def test_values_are_escaped_in_text_and_attributes() -> None:
    text = render("notebook/queries.html", heading='"><script>', url="&'\"<>")
    assert text == '<img style="max-width:100%" alt="&#34;&gt;&lt;script&gt;" src="&amp;&#39;&#34;&lt;&gt;">'


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'url' is undefined"):
        render("notebook/queries.html", heading="")


def test_every_template_can_be_compiled() -> None:
    names = environment().list_templates(extensions=["html"])
    assert {"base.html", "report.html", "validation.html", "inspector.html"} <= set(names)
    for name in names:
        environment().get_template(name)


def test_scripts_and_styles_are_included_as_they_are() -> None:
    text = render("inspector.html", title="a", data={})
    for name in ("data.js", "draw.js", "page.js", "inspector.css"):
        assert source(f"inspector/{name}") in text


def test_data_cannot_end_the_script_that_holds_them() -> None:
    text = render("inspector.html", title="a", data={"b": "</script><b>", "a": 1.5})
    assert '{"b": "\\u003c/script\\u003e\\u003cb\\u003e", "a": 1.5}' in text  # in their own order
    with pytest.raises(ValueError, match="Out of range float"):
        render("inspector.html", title="a", data=math.nan)


def test_a_page_allows_its_own_script_alone() -> None:
    text = render("inspector.html", title="a", data={})
    script = text.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\">" in text
    assert text.count("<script") == 2  # and the data


def test_metrics() -> None:
    assert [metric(value) for value in (0.12345, 1, math.nan)] == ["0.123", "1.000", "-"]


@pytest.mark.parametrize(("max_side", "size"), [(None, (200, 100)), (50, (50, 25)), (300, (200, 100))])
def test_images_are_scaled_down_only(max_side: int | None, size: tuple[int, int]) -> None:
    image = Image.new("RGB", (200, 100))
    kind, _, content = jpeg_url(image, max_side).partition(";base64,")
    assert kind == "data:image/jpeg"
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == size
    assert image.size == (200, 100)
