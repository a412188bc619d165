from __future__ import annotations

import json
from collections import deque

import pytest

from querybox.data.json_stream import stream_members


def test_lists_are_read_one_element_at_a_time() -> None:
    content = {"info": {"a": [1]}, "images": [{"id": 1}, {"id": 2}], "none": [], "annotations": []}
    for text in (
        json.dumps(content),
        json.dumps(content, indent=2),
        json.dumps(content, separators=(",", ":")),
    ):
        found = {name: list(items) for name, items in stream_members(text, {"images", "annotations"})}
        assert found == {"images": content["images"], "annotations": []}
    first = next(iter(stream_members('{"images": [1, 2, oops', {"images"})))[1]
    assert (next(first), next(first)) == (1, 2)  # before the rest is looked at


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"images"}',
        '{"images": 3}',
        '{"images": [1,]}',
        '{"images": [1}',
        '{"images": [],}',
        "{} x",
        "{1: 2}",
        "{[]: 2}",
        '{"images": [1], "a": 1, "a": 2, "images": [2]}',
    ],
)
def test_what_is_no_object_of_lists_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"[Ee]xpect|extra data|'images' occurs twice"):
        deque(item for _, items in stream_members(text, {"images"}) for item in items)
