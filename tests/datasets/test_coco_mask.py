"""The boxes of COCO's masks are those of pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from querybox.data.formats.coco_mask import mask_box, read_mask
from querybox.errors import DataError


def runs_of(pixels: np.ndarray) -> list[int]:
    """Return the run lengths of a mask, down its columns, the first of which is outside."""
    flat = np.concatenate([[0], pixels.T.ravel(), [2]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(ends, prepend=0).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_masks_have_the_boxes_of_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 40, 2)
    pixels = (rng.random((height, width)) < rng.choice([0.01, 0.2, 0.9])).astype(np.uint8)
    pixels[rng.integers(height), rng.integers(width)] = 1
    compressed = coco_mask.encode(np.asfortranarray(pixels))
    expected = tuple(coco_mask.toBbox(compressed).tolist())
    runs = runs_of(pixels)
    assert mask_box({"size": [int(height), int(width)], "counts": runs}) == expected
    assert mask_box({"size": compressed["size"], "counts": compressed["counts"].decode()}) == expected


def test_the_box_of_a_mask_by_hand() -> None:
    # 3 x 4: the object is in rows 1-2 of column 1 and row 0 of column 2.
    assert mask_box({"size": [3, 4], "counts": [4, 3, 5]}) == (1, 0, 2, 3)
    assert mask_box({"size": [3, 4], "counts": [4, 1, 7]}) == (1, 1, 1, 1)
    assert mask_box([[1, 2, 5, 2, 5, 8]]) == (1, 2, 4, 6)


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        [[1, 2]],
        {},
        {"size": [3, 3], "counts": [9]},  # empty
        {"size": [3, 3], "counts": [4, 4]},  # too short
        {"size": [3, 3], "counts": [4, -1, 6]},
        {"size": [10**9, 10**9], "counts": [0, 10**18]},
        {"size": [3, 3], "counts": "oooooooooooo"},  # a number without an end
        {"size": [3, 3], "counts": "4\xe9"},
        {"size": [3, 3], "counts": "P"},  # truncated
        {"size": [3, 3], "counts": "O"},  # negative
        [[1, 2, 5, 2, 5, True]],
        {"size": [True, 3], "counts": [1, 2]},
        {"size": [3, 3], "counts": [4, True, 4]},
    ],
)
def test_malformed_masks_have_no_box(segmentation: object) -> None:
    assert mask_box(segmentation) is None


def test_true_is_no_coordinate() -> None:
    with pytest.raises(
        DataError, match=r"segmentation: \[?0\]?: Input should be a number, not true or false"
    ):
        read_mask([[1, 2, 5, 2, 5, True]])
