"""JSON is standard JSON."""

from __future__ import annotations

import math

import pytest

from querybox.errors import QueryboxError
from querybox.text import to_json


def test_json_has_no_nan() -> None:
    assert to_json({"name": "Zürich", "score": 0.5}) == '{"name": "Zürich", "score": 0.5}'
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(QueryboxError, match="NaN or infinite"):
            to_json({"scores": [0.5, value]})
