"""Masks of objects in COCO's run-length encoding (RLE): encoding, area, bounding box, IoU.

The format is that of https://github.com/cocodataset/cocoapi (common/maskApi.h): the lengths of runs of pixels outside
and inside the object alternate, down the columns of the image, and the first run is outside. Compressed, a length is in
groups of 5 bits, one character each; from the fourth on, it is the difference to the last but one.

Legend: R runs, N masks, G objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from querybox.errors import DataError
from querybox.polygons import Polygons, fill, trace

_ZERO = 48
"""Code of the character of the group 0."""
_MAX_GROUPS = 7
"""Groups of 5 bits that a length can take, because no image has 2^32 pixels."""
_SPARSE = 32
"""Number of pixels of a mask per pixel of the result above which it is not decoded to be resized."""
_CHUNK = 1 << 18
"""Number of lengths that are compressed at once; it bounds the memory."""


@dataclass(frozen=True, slots=True)
class Rle:
    """The mask of an object."""

    size: tuple[int, int]
    """(height, width) of the image in pixels."""
    counts: bytes
    """Compressed lengths of runs."""

    @classmethod
    def of(cls, mask: Bool[np.ndarray, "H W"]) -> Self:
        """Encode a mask."""
        height, width = mask.shape
        flat = mask.T.ravel()
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        return cls.of_changes(changes if not flat[0] else np.concatenate([[0], changes]), (height, width))

    @classmethod
    def of_changes(cls, changes: Int64[np.ndarray, " T"], size: tuple[int, int]) -> Self:
        """Encode a mask given the positions at which it changes, ascending, counted down the columns of the image."""
        height, width = size
        inner = changes[changes < height * width]
        return cls(size, compress(np.diff(inner, prepend=0, append=height * width)))

    @classmethod
    def of_part(cls, part: Bool[np.ndarray, "h w"], corner: tuple[int, int], size: tuple[int, int]) -> Self:
        """Encode a mask that is empty outside of a part of the image; see `of_parts`."""
        return cls.of_parts([part], [corner], size)[0]

    @classmethod
    def of_parts(
        cls,
        parts: Sequence[Bool[np.ndarray, "_ _"]],
        corners: Sequence[tuple[int, int]],
        size: tuple[int, int],
    ) -> tuple[Self, ...]:
        """Encode masks that are empty outside of a part of the image; many small ones take less time than one by one.

        Args:
            parts: The part of each mask, inside the image.
            corners: (top, left) of each part.
            size: (height, width) of the image.
        """
        height, pixels = size[0], size[0] * size[1]
        h, w = np.array([part.shape for part in parts], dtype=np.int64).reshape(-1, 2).T
        top, left = np.array(corners, dtype=np.int64).reshape(-1, 2).T
        ends = np.cumsum(w * (h + 1))
        starts = ends - w * (h + 1)
        # A pixel outside before each column, and behind the last one
        flat = np.zeros(int((w * (h + 1)).sum()) + 1, dtype=bool)
        for part, start, end in zip(parts, starts, ends, strict=True):
            flat[start:end].reshape(part.shape[1], len(part) + 1)[:, 1:] = part.T
        changes = np.flatnonzero(flat[1:] != flat[:-1])
        mask = np.repeat(np.arange(len(parts)), np.diff(np.searchsorted(changes, ends), prepend=0))
        columns, rows = np.divmod(changes - starts[mask], h[mask] + 1)
        positions = (left[mask] + columns) * height + top[mask] + rows
        # A column inside at the bottom of the image is continued by one inside at its top: two changes are none.
        none = np.flatnonzero((positions[1:] == positions[:-1]) & (mask[1:] == mask[:-1]))
        kept = positions < pixels
        kept[none] = kept[none + 1] = False
        positions, mask = positions[kept], mask[kept]
        # Ends of runs; the last one of each mask is that of the image.
        stops = np.full(len(positions) + len(parts), pixels, dtype=np.int64)
        stops[np.arange(len(positions)) + mask] = positions
        counts = np.bincount(mask, minlength=len(parts)) + 1
        runs = np.diff(stops, prepend=pixels)
        runs[np.cumsum(counts) - counts] += pixels
        return tuple(cls(size, text) for text in compress_all(runs, counts))

    @classmethod
    def of_polygons(cls, polygons: Polygons, size: tuple[int, int]) -> Self:
        """Rasterise polygons, as pycocotools does."""
        changes = [fill(vertices, size) for vertices in polygons.vertices()]
        return cls.of_changes(changes[0] if len(changes) == 1 else _union(changes), size)

    @classmethod
    def union(cls, masks: Sequence[Rle]) -> Self:
        """Return the pixels that are in any of at least one mask, of one image."""
        return cls.of_changes(_union([np.cumsum(one.runs())[:-1] for one in masks]), masks[0].size)

    def runs(self) -> Int64[np.ndarray, " R"]:
        """Return the lengths of the runs.

        Raises:
            DataError: They are malformed, or do not add up to the size of the image.
        """
        runs = decompress(self.counts)
        height, width = self.size
        if (total := int(runs.sum())) != height * width:
            raise DataError(
                f"the run lengths of a mask add up to {total} pixels; expected those of {height}x{width} (height x "
                f"width), {height * width}: write the size of the image that was annotated"
            )
        return runs

    def problem(self, size: tuple[int, int]) -> str:
        """Return what is wrong with a mask in an image of this (height, width); nothing if it is fine."""
        try:
            self.runs()
        except DataError as error:
            return str(error)
        if self.size == size:
            return ""
        return f"a mask of {self.size[0]}x{self.size[1]} in {size[0]}x{size[1]} (height x width)"

    def mask(self) -> Bool[np.ndarray, "H W"]:
        """Decode the mask: True = inside."""
        height, width = self.size
        return self.part((0, 0, width, height))

    def part(self, box_xyxy: tuple[int, int, int, int]) -> Bool[np.ndarray, "h w"]:
        """Decode the part of the mask in a box, in pixels, inside the image; the inverse of `of_part`."""
        left, top, right, bottom = box_xyxy
        height = self.size[0]
        ends = np.cumsum(self.runs()).clip(left * height, right * height)
        inside = np.repeat(np.arange(len(ends)) % 2 == 1, np.diff(ends, prepend=left * height))
        return np.ascontiguousarray(inside.reshape(right - left, height).T[top:bottom])

    @property
    def area(self) -> int:
        """Number of pixels inside."""
        return int(self.runs()[1::2].sum())

    @property
    def box_xyxy(self) -> tuple[float, float, float, float] | None:
        """The smallest box around the pixels inside, in pixels; None for an empty mask."""
        height = self.size[0]
        starts, stops = self.stretches()
        if not len(starts):
            return None
        left, right = int(starts[0]) // height, (int(stops[-1]) - 1) // height
        if (starts // height < (stops - 1) // height).any():  # a run into the next column touches both sides
            return float(left), 0.0, float(right + 1), float(height)
        top, bottom = int((starts % height).min()), int(((stops - 1) % height).max())
        return float(left), float(top), float(right + 1), float(bottom + 1)

    def stretches(self) -> tuple[Int64[np.ndarray, " R"], Int64[np.ndarray, " R"]]:
        """Return the first positions of the runs inside, and the positions behind them."""
        ends = np.cumsum(self.runs())
        starts, stops = ends[:-1:2], ends[1::2]
        return starts[starts < stops], stops[starts < stops]

    def polygons(self) -> list[list[float]]:
        """Return the outline of every part of the mask, x1, y1, x2, y2 ... in pixels, in COCO's form.

        Rasterised, they are the same mask. A hole is joined to the outline of its part by a line there and back.
        """
        return [outline.ravel().astype(float).tolist() for outline in trace(self.mask())]

    def to_coco(self) -> dict[str, Any]:
        """Return the mask as the value of ``segmentation`` in COCO's JSON files."""
        return {"size": list(self.size), "counts": self.counts.decode("ascii")}


Region = Rle | Polygons
"""The region of an object as a dataset has it."""


def rasterised(region: Region, size: tuple[int, int]) -> Rle:
    """Return the mask of a region in an image of this (height, width)."""
    return Rle.of_polygons(region, size) if isinstance(region, Polygons) else region


def resized(region: Region, size: tuple[int, int], shape: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Return the pixels of a region after its image has been resized; run lengths by the nearest pixel.

    Args:
        region: The region.
        size: (height, width) of the image that it refers to.
        shape: (height, width) of the resized image.
    """
    vertical, horizontal = (new / old for new, old in zip(shape, size, strict=True))
    if isinstance(region, Polygons) and shape != size:
        return Rle.of_polygons(region.scaled(horizontal, vertical), shape).mask()
    mask = rasterised(region, size)
    if shape == size:
        return mask.mask()
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in zip(shape, size, strict=True)
    )
    if math.prod(size) > _SPARSE * math.prod(shape):  # the mask may have billions of pixels
        return np.searchsorted(np.cumsum(mask.runs()), columns * size[0] + rows[:, None], "right") % 2 == 1
    return mask.mask()[rows[:, None], columns]


def mask_numbers(masks: Sequence[Rle], size: tuple[int, int]) -> Int32[np.ndarray, "H W"]:
    """Return for each pixel the number, 1 ... N, of the first mask that has it; 0 for none.

    Args:
        masks: N masks.
        size: (height, width) of the image in pixels.
    """
    numbers = np.zeros(size, dtype=np.int32)
    for number in range(len(masks), 0, -1):
        numbers[masks[number - 1].mask()] = number
    return numbers


def _union(changes: Sequence[Int64[np.ndarray, " _"]]) -> Int64[np.ndarray, " T"]:
    """Return the positions at which the union of masks changes."""
    positions = np.concatenate(changes)
    signs = np.concatenate([1 - 2 * (np.arange(len(one)) % 2) for one in changes])
    order = np.argsort(positions, kind="stable")
    positions, covered = positions[order], np.cumsum(signs[order])
    last = np.flatnonzero(np.diff(positions, append=-1))  # of several changes at one position
    inside = covered[last] > 0
    return positions[last][inside != np.concatenate([[False], inside[:-1]])]


def mask_iou(
    masks: Sequence[Rle], objects: Sequence[Rle], crowd: Bool[np.ndarray, " G"]
) -> Float64[np.ndarray, "N G"]:
    """Return the IoU of all pairs of masks, 0-1; for a crowd region, the fraction of the mask inside it, as in COCO.

    Args:
        masks: Detected masks.
        objects: Masks of the objects, of the same image.
        crowd: Which objects are crowd regions.

    Raises:
        DataError: The masks have different sizes, or one is malformed.
    """
    sizes = {one.size for one in (*masks, *objects)}
    if len(sizes) > 1:
        raise DataError(
            f"masks of one image have the sizes {sorted(sizes)}; expected the same (height, width)"
        )
    stretches = [one.stretches() for one in masks]
    owner = np.repeat(np.arange(len(masks)), [len(starts) for starts, _ in stretches])
    empty = np.zeros(0, dtype=np.int64)
    starts, stops = (
        np.concatenate([empty, *sides]) for sides in zip((empty, empty), *stretches, strict=True)
    )
    area = np.bincount(owner, stops - starts, minlength=len(masks))
    iou = np.zeros((len(masks), len(objects)))
    for index, one in enumerate(objects):
        knots = np.stack(one.stretches(), 1)  # [R, 2]
        if not len(knots):
            continue
        # Number of pixels of the object before a position: linear between the ends of its runs.
        lengths = np.diff(knots)
        before = (np.cumsum(lengths)[:, None] - lengths * [1, 0]).ravel()
        covered = np.interp(stops, knots.ravel(), before) - np.interp(starts, knots.ravel(), before)
        intersection = np.bincount(owner, covered, minlength=len(masks))
        union = area if crowd[index] else area + before[-1] - intersection
        iou[:, index] = intersection / np.where(intersection > 0, union, 1)
    return iou


def compress(runs: Int64[np.ndarray, " R"]) -> bytes:
    """Return lengths of runs as a compressed string."""
    return compress_all(runs, np.array([len(runs)]))[0]


def compress_all(runs: Int64[np.ndarray, " R"], counts: Int64[np.ndarray, " N"]) -> list[bytes]:
    """Return the lengths of the runs of several masks, `counts` of each one, as compressed strings."""
    starts = np.cumsum(counts) - counts
    late = np.flatnonzero(np.arange(len(runs)) - np.repeat(starts, counts) > 2)
    values = np.asarray(runs, dtype=np.int64).copy()
    values[late] -= runs[late - 2]
    chunks = [_characters(values[start : start + _CHUNK]) for start in range(0, len(values), _CHUNK)]
    text = b"".join(characters for characters, _ in chunks)
    # Ends of the numbers in `text`, after a 0
    ends = np.cumsum(np.concatenate([[0], *(groups for _, groups in chunks)]))
    bounds = ends[np.concatenate([[0], np.cumsum(counts)])].tolist()
    return [text[start:end] for start, end in pairwise(bounds)]


def _characters(values: Int64[np.ndarray, " R"]) -> tuple[bytes, Int64[np.ndarray, " R"]]:
    """Return numbers as characters, in as many groups of 5 bits as hold the number and its sign, and how many."""
    magnitude = np.where(values < 0, ~values, values)
    groups, most = np.ones(len(values), dtype=np.int64), 1
    while (more := magnitude >= 1 << (5 * most - 1)).any():
        groups += more
        most += 1
    place = np.arange(most)
    codes = (values[:, None] >> 5 * place & 31) + np.where(place < groups[:, None] - 1, 32, 0) + _ZERO
    return codes[place < groups[:, None]].astype(np.uint8).tobytes(), groups


def decompress(counts: bytes) -> Int64[np.ndarray, " R"]:
    """Return the lengths of runs in a compressed string.

    Raises:
        DataError: The string is malformed.
    """
    codes = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - _ZERO
    last = codes & 32 == 0  # no group follows
    ends = np.flatnonzero(last)
    groups = np.diff(ends, prepend=-1)
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not last[-1] or groups.max() > _MAX_GROUPS:
        raise _malformed(counts)
    firsts = ends - groups + 1
    place = np.arange(len(codes)) - np.repeat(firsts, groups)
    runs = np.add.reduceat((codes & 31) << 5 * place, firsts)
    runs -= np.where(codes[ends] & 16, 1 << 5 * groups, 0)  # negative
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if runs.min() < 0:
        raise _malformed(counts)
    return runs


def _malformed(counts: bytes) -> DataError:
    shown = counts[:40].decode("ascii", errors="replace")
    return DataError(f"got the run lengths {shown!r}, which are malformed; expected COCO's compressed RLE")
