"""Merging of the detections in the tiles of an image, so that an object on a seam is detected once.

Non-maximum suppression fails at seams: of an object that two tiles show, the part in one tile may score higher than the
whole in the other, and their IoU is low. Here two detections of different views are compared within the area that both
views show: there the boxes are equal if the object is the same, even if one of them goes on beyond. A detection that
ends at the border of its tile, or that another tile shows to go on beyond it, then gives way to one that does not; what
no view shows whole is joined from its parts.
Detections of one view do not suppress each other, because DETR detects each object once. `docs/guides/tiles.md`
compares this with NMS and NMM.

Legend: V views, N detections in all of them, E pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from torchvision.ops import box_iou

from querybox.data.tiling import shown_whole
from querybox.data.windows import Window
from querybox.inference.detections import Detections
from querybox.masks import Rle

SAME_OBJECT = 0.4
"""Minimum IoU, in the area that both views show, of two detections of one object."""
BORDER = 0.01
"""Distance from the border of a tile, as a fraction of its side, within which a box is cut by it."""


def merge(parts: Sequence[Detections], windows: Sequence[Window], size: tuple[int, int]) -> Detections:
    """Return the detections of an image from those of its views.

    Of the detections of one object, the one to keep is chosen in this order: one that no view cuts, one from a tile
    rather than from the whole image, whose resolution is lower, and the one with the highest score. If all are cut, the
    object has the box around them, their highest score, and the union of their masks. In the whole image, objects that
    some tile is certain to show whole are ignored.

    Args:
        parts: The detections of each view, in pixels of the view. The first view is the whole image.
        windows: The part of the image that each view shows.
        size: (height, width) of the image in pixels.
    """
    whole = parts[0].boxes_xyxy
    large = (whole[:, 2:] - whole[:, :2] > whole.new_tensor(shown_whole(windows[1:]))).any(1)
    parts = [parts[0].where(large), *parts[1:]]
    counts = torch.tensor([len(part) for part in parts], device="cpu")
    view = torch.arange(len(parts), device="cpu").repeat_interleave(counts)  # [N]
    shown = corners(windows)  # [V, 4]
    boxes_xyxy = torch.cat([part.boxes_xyxy for part in parts]) + shown[view][:, [0, 1, 0, 1]]
    scores = torch.cat([part.scores for part in parts])
    labels = torch.cat([part.labels for part in parts])
    same = partners(boxes_xyxy, labels, counts, shown)
    cut = cut_by_view(boxes_xyxy, view, shown, size, same)
    order = np.lexsort([-scores.numpy(), (view == 0).numpy(), cut.numpy()])
    groups = group(order, cut.numpy(), same)
    groups.sort(key=lambda members: -float(scores[members[0]]))
    first = torch.tensor([members[0] for members in groups], dtype=torch.long, device="cpu")
    boxes = [torch.cat([boxes_xyxy[each, :2].amin(0), boxes_xyxy[each, 2:].amax(0)]) for each in groups]
    masks = None
    if all(part.masks is not None for part in parts):
        every = [
            (mask, place) for part, place in zip(parts, windows, strict=True) for mask in part.masks or ()
        ]
        masks = tuple(united([every[member] for member in members], size) for members in groups)
    return replace(
        parts[0],
        boxes_xyxy=torch.stack(boxes) if boxes else boxes_xyxy,
        scores=scores[first],
        labels=labels[first],
        size=size,
        views=len(windows),
        masks=masks,
    )


def corners(windows: Sequence[Window]) -> Float[Tensor, "V 4"]:
    """Return windows as corners (x1, y1, x2, y2) in pixels."""
    rows = [(each.left, each.top, each.left + each.width, each.top + each.height) for each in windows]
    return torch.tensor(rows, dtype=torch.float32, device="cpu")


def cut_by_view(
    boxes_xyxy: Float[Tensor, "N 4"],
    view: Int[Tensor, " N"],
    shown: Float[Tensor, "V 4"],
    size: tuple[int, int],
    partners: Sequence[Int64[np.ndarray, " _"]],
) -> Bool[Tensor, " N"]:
    """Return which boxes end at a border of their view that is not one of the image, or should.

    The box of a part may end before the border. That it is a part is shown by another tile, in which no border cuts the
    same object, and in which the object goes on beyond the border.

    Args:
        boxes_xyxy: Boxes in pixels of the image.
        view: The index of the view of each; that of the whole image is 0.
        shown: The corners of each view.
        size: (height, width) of the image in pixels.
        partners: For each box, those of other views that are the same object.
    """
    cut = reach_border(boxes_xyxy, shown[view], size, BORDER)
    box = torch.arange(len(view), device="cpu").repeat_interleave(
        torch.tensor([len(each) for each in partners], dtype=torch.long, device="cpu")
    )  # [2 E]
    other = torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *partners]))
    beyond = reach_border(boxes_xyxy[other], shown[view[box]], size, -BORDER)
    parts = box[beyond & ~cut[other] & (view[other] > 0)]
    cut[parts] = True
    return cut


def reach_border(
    boxes_xyxy: Float[Tensor, "N 4"], shown: Float[Tensor, "N 4"], size: tuple[int, int], distance: float
) -> Bool[Tensor, " N"]:
    """Return which boxes reach a border of a view that is not one of the image.

    Args:
        boxes_xyxy: Boxes in pixels of the image.
        shown: The corners of a view for each box.
        size: (height, width) of the image in pixels.
        distance: Distance from the border within which a box reaches it, as a fraction of the side of the view; if it
            is negative, the box has to go so far beyond the border.
    """
    height, width = size
    margin = distance * (shown[:, 2:] - shown[:, :2])
    low = (boxes_xyxy[:, :2] <= shown[:, :2] + margin) & (shown[:, :2] > 0)
    high = (boxes_xyxy[:, 2:] >= shown[:, 2:] - margin) & (shown[:, 2:] < shown.new_tensor([width, height]))
    return (low | high).any(1)


def partners(
    boxes_xyxy: Float[Tensor, "N 4"],
    labels: Int[Tensor, " N"],
    counts: Int[Tensor, " V"],
    shown: Float[Tensor, "V 4"],
) -> list[Int64[np.ndarray, " _"]]:
    """Return, for each detection, those of other views that are the same object.

    Args:
        boxes_xyxy: Boxes of all views, one view after the other, in pixels of the image.
        labels: Their classes.
        counts: Number of detections of each view.
        shown: The corners of each view.
    """
    stops = counts.cumsum(0).tolist()
    rows = [slice(stop - count, stop) for stop, count in zip(stops, counts.tolist(), strict=True)]
    pairs = [torch.zeros(0, 2, dtype=torch.long, device="cpu")]
    occupied = [index for index, count in enumerate(counts.tolist()) if count]
    for place, one in enumerate(occupied):
        others = torch.tensor(occupied[place + 1 :], dtype=torch.long, device="cpu")
        common = torch.cat(
            [
                torch.maximum(shown[one, :2], shown[others, :2]),
                torch.minimum(shown[one, 2:], shown[others, 2:]),
            ],
            1,
        )
        overlapping = (common[:, :2] < common[:, 2:]).all(1)
        for other, area in zip(others[overlapping].tolist(), common[overlapping], strict=True):
            first, second = rows[one], rows[other]
            iou = box_iou(within(boxes_xyxy[first], area), within(boxes_xyxy[second], area))
            same = (iou >= SAME_OBJECT) & (labels[first, None] == labels[second])
            pairs.append(same.nonzero() + torch.tensor([first.start, second.start], device="cpu"))
    edges = torch.cat(pairs)
    source, target = torch.cat([edges, edges.flip(1)]).numpy().T
    order = np.argsort(source, kind="stable")
    ends = np.bincount(source, minlength=len(boxes_xyxy)).cumsum()
    return np.split(target[order], ends[:-1])


def within(boxes_xyxy: Float[Tensor, "N 4"], area: Float[Tensor, " 4"]) -> Float[Tensor, "N 4"]:
    """Return the parts of boxes in a rectangle; those outside have no area."""
    return torch.maximum(torch.minimum(boxes_xyxy, area[[2, 3, 2, 3]]), area[[0, 1, 0, 1]])


def group(
    order: Int64[np.ndarray, " N"], cut: Bool[np.ndarray, " N"], partners: Sequence[Int64[np.ndarray, " _"]]
) -> list[list[int]]:
    """Return the objects: the detections that each is made of, the one that gives its score first.

    Args:
        order: All detections, the ones to keep first; those that are cut come last.
        cut: Which of them are cut by their view.
        partners: For each detection, those of other views that are the same object.
    """
    free = np.ones(len(order), dtype=bool)
    groups = []
    for first in order.tolist():
        if not free[first]:
            continue
        free[first] = False
        members = [first]
        for member in members:  # grows: the parts of an object may lie in a chain of tiles
            found = partners[member][free[partners[member]]]
            free[found] = False
            if cut[first]:
                members += found.tolist()
        groups.append(members)
    return groups


def united(parts: Sequence[tuple[Rle, Window]], size: tuple[int, int]) -> Rle:
    """Return the union of masks of views as a mask of the image.

    Args:
        parts: Masks, each with the part of the image that its view shows.
        size: (height, width) of the image in pixels.
    """
    if parts[0][0].size == size:  # of the whole image, whose objects no border cuts
        return parts[0][0]
    left, top = (min(window[axis] for _, window in parts) for axis in (0, 1))
    right = max(window.left + window.width for _, window in parts)
    bottom = max(window.top + window.height for _, window in parts)
    inside = np.zeros((bottom - top, right - left), dtype=bool)
    for mask, window in parts:
        rows = slice(window.top - top, window.top - top + window.height)
        columns = slice(window.left - left, window.left - left + window.width)
        inside[rows, columns] |= mask.mask()
    return Rle.of_part(inside, (top, left), size)
