"""The pictures of the report: where the detector does worst, and where it does best."""

from __future__ import annotations

import io
from collections.abc import Sequence

from querybox.data import DetectionData, ImageRecord, read_image
from querybox.draw import draw_comparison
from querybox.errors import ImageError
from querybox.evaluation import Evaluation
from querybox.report import page

SHOWN = 4
WIDTH = 1600


def gallery(evaluation: Evaluation, data: DetectionData) -> str:
    """Show the images with the lowest and with the highest F1, objects on the left, detections on the right."""
    worst, best = choose(evaluation, data)
    note = (
        "Left: the objects as labelled. Right: what was detected with a score of at least "
        f"{page.share(evaluation.agreement.threshold)}."
    )
    return "\n".join(
        page.section(title, page.paragraph(note) + page.pictures(show(evaluation, one) for one in records))
        for title, records in (("Worst images", worst), ("Best images", best))
        if records
    )


def choose(
    evaluation: Evaluation, data: DetectionData
) -> tuple[Sequence[ImageRecord], Sequence[ImageRecord]]:
    """Return the worst and the best images with objects, each from its extreme; no image is in both.

    Of images with the same F1, those with the most objects come first.
    """
    f1 = evaluation.agreement.image_f1
    crowded = sorted((one for one in data.images if len(one.labels)), key=lambda one: -len(one.labels))
    worst = sorted(crowded, key=lambda one: f1[one.id])[: min(SHOWN, len(crowded) // 2)]
    rest = [one for one in crowded if all(one is not other for other in worst)]
    return worst, sorted(rest, key=lambda one: -f1[one.id])[:SHOWN]


def show(evaluation: Evaluation, record: ImageRecord) -> str:
    """Draw one image; say so when it cannot be read any more."""
    name, f1 = record.path.name, page.share(evaluation.agreement.image_f1[record.id])
    found = evaluation.detections[record.id].above(evaluation.agreement.threshold)
    try:
        image = read_image(record.path, (record.height, record.width))
    except ImageError as error:
        return page.paragraph(f"{name}: F1 {f1}. {error}")
    drawn = draw_comparison(image, record, found)
    drawn.thumbnail((WIDTH, WIDTH))
    file = io.BytesIO()
    drawn.save(file, format="JPEG", quality=82)
    return page.figure(file.getvalue(), f"Objects and detections in {name}", f"{name}: F1 {f1}")
