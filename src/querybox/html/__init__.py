"""HTML of the reports, of the inspector and in Jupyter: Jinja2 templates, and the one function that renders them.

Every value is escaped; markup comes from the templates alone. A page is one file that loads nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from functools import cache
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


PICTURE_SIDE = 640
"""Pixels of a picture in Jupyter."""


def render(template: str, **values: Any) -> str:
    """Return the HTML of a template.

    Args:
        template: Its path within ``templates``.
        values: What the template shows, by the names it uses.
    """
    return environment().get_template(template).render(values)


@cache
def environment() -> Environment:
    """Return the templates, with the filters and functions that they use."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("querybox.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"metric": metric, "thousands": "{:,}".format, "sha256": sha256}
    environment.globals |= {"source": source, "PICTURE_SIDE": PICTURE_SIDE}
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False}
    return environment


def source(name: str) -> Markup:
    """Return a style sheet or a script as it is: braces in it are not a template's."""
    from markupsafe import Markup

    loader = environment().loader
    assert loader is not None
    return Markup(loader.get_source(environment(), name)[0])  # noqa: S704 - a file of this package


def metric(value: float) -> str:
    """Return a metric (0-1) with three decimals; a hyphen for NaN, which stands for "not measurable"."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def sha256(script: str) -> str:
    """Return the digest that a content security policy allows a script by."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def data_url(content: bytes, kind: str) -> str:
    """Return an image file as a URL; as an ``<img>`` it cannot run scripts.

    Args:
        content: The file.
        kind: Its media type without ``image/``, such as ``svg+xml``.
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def jpeg_url(image: Image.Image, max_side: int | None = None) -> str:
    """Return an image as a JPEG in a URL, scaled down to `max_side` pixels where it is larger."""
    if max_side is not None:
        image = image.copy()
        image.thumbnail((max_side, max_side))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=85)
    return data_url(file.getvalue(), "jpeg")
