"""How the answers of two engines are compared."""

from __future__ import annotations

from scipy.optimize import linear_sum_assignment

from querybox.inference.detections import Detections


def assert_same_detections(
    one: Detections, other: Detections, *, score: float = 1e-4, pixels: float = 0.05
) -> None:
    """Pair the detections of two engines: same class, scores, box corners and masks that differ by rounding alone.

    Their order is not compared: of two scores that differ by less than rounding, either may come first.
    """
    assert len(one) == len(other)
    different = (
        (one.labels[:, None] != other.labels)
        | ((one.scores[:, None] - other.scores).abs() > score)
        | ((one.boxes_xyxy[:, None] - other.boxes_xyxy).abs().amax(2) > pixels)
    )  # [N, N]
    pairs = linear_sum_assignment(different.numpy())
    assert not different[pairs].any(), f"{int(different[pairs].sum())} of {len(one)} detections differ"
    assert (one.masks is None) == (other.masks is None)
    if one.masks is not None and other.masks is not None:
        for row, column in zip(*pairs, strict=True):
            changed = one.masks[row].mask() ^ other.masks[column].mask()
            assert changed.mean() < 0.01, f"{changed.sum()} pixels of a mask differ"
    assert (one.categories, one.size, one.source) == (other.categories, other.size, other.source)
