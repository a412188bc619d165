"""The web pages: one that shows the detections in an image, and one that documents the API.

Neither loads anything. The content security policy of each allows its own styles and scripts by their digests.
"""

from __future__ import annotations

import re
from typing import Any

from fastapi.responses import HTMLResponse

from querybox.html import render, sha256
from querybox.serving.headers import POLICY


def predict_page(threshold: float, *, with_token: bool) -> str:
    """Return the page that shows the detections in an image that is dropped on it.

    Args:
        threshold: Minimum score of the detections that it shows at first (0-1).
        with_token: Whether the page asks for a token, which it keeps until it is closed.
    """
    return render("serving/predict.html", threshold=threshold, with_token=with_token)


def api_page(schema: dict[str, Any]) -> str:
    """Return the page that documents the API, from its OpenAPI schema."""
    operations = [
        {"method": method.upper(), "path": path, **operation}
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]
    models = schema.get("components", {}).get("schemas", {})
    return render("serving/api.html", operations=operations, models=models)


def html(page: str) -> HTMLResponse:
    """Return a page with the policy that allows its styles, its scripts, and requests to its own server."""
    styles, scripts = digests(page, "style"), digests(page, "script")
    policy = f"{POLICY}; img-src data:; style-src {styles}; script-src {scripts}; connect-src 'self'"
    return HTMLResponse(page, headers={"Content-Security-Policy": policy})


def digests(page: str, element: str) -> str:
    """Return the sources of a policy that allow the elements of a page; ``'none'`` if there are none."""
    found = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
    return " ".join(f"'sha256-{sha256(each)}'" for each in found) or "'none'"
