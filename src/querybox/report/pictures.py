"""The pictures of the report: where the detector does worst, and where it does best."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from querybox.data import DetectionData, ImageRecord, read_image
from querybox.errors import ImageError
from querybox.evaluation.draw import draw_mistakes
from querybox.evaluation.errors import LETTERS, Mistakes
from querybox.evaluation.result import Evaluation
from querybox.inspect import write_page
from querybox.inspect.annotated import trace_record
from querybox.modules.detector import DetectionTransformer
from querybox.notebook import share
from querybox.report import page

BEST = 4
WIDTH = 800


def gallery(
    evaluation: Evaluation, data: DetectionData, worst: Sequence[ImageRecord], pages: Mapping[int, str]
) -> str:
    """Show the worst and the best images, their objects beside what was detected.

    Args:
        evaluation: What was measured.
        data: The images.
        worst: Those that are to be shown as such, see `worst_images`.
        pages: Where to look into the model, by image id.
    """
    letters = ", ".join(f"{letter} {reason}" for reason, letter in LETTERS.items())
    note = (
        "First the objects as labelled, beside or below them what was detected with a score of at least "
        f"{share(evaluation.agreement.threshold)}. Thin frames are right; thick, dashed ones are wrong, and a "
        f"letter says why: {letters}."
    )
    parts = (
        ("Worst images", "The lowest F1 comes first; of equal ones, that with most mistakes.", worst),
        ("Best images", "The highest F1 comes first.", best_images(evaluation, data, worst)),
    )
    return "\n".join(
        page.section(
            title,
            page.paragraph(f"{order} {note}")
            + page.pictures(show(evaluation, one, pages.get(one.id)) for one in records),
        )
        for title, order, records in parts
        if records
    )


def worst_images(evaluation: Evaluation, data: DetectionData, most: int) -> list[ImageRecord]:
    """Return the images with the lowest F1, of those with any mistake; of equal ones, that with most mistakes first."""
    f1, mistakes = evaluation.agreement.image_f1, evaluation.mistakes
    wrong = [one for one in data.images if len(mistakes[one.id])]
    return sorted(wrong, key=lambda one: (f1[one.id], -len(mistakes[one.id])))[:most]


def best_images(
    evaluation: Evaluation, data: DetectionData, worst: Sequence[ImageRecord]
) -> list[ImageRecord]:
    """Return the images with the highest F1, of those with objects; of equal ones, that with most objects first."""
    f1, left_out = evaluation.agreement.image_f1, {one.id for one in worst}
    others = [one for one in data.images if len(one.labels) and one.id not in left_out]
    return sorted(others, key=lambda one: (-f1[one.id], -len(one.labels)))[:BEST]


def look_into(
    folder: Path,
    detector: DetectionTransformer,
    records: Sequence[ImageRecord],
    data: DetectionData,
    each: Callable[[ImageRecord], object],
) -> dict[int, str]:
    """Write a page to look into the model with each image, into ``inspect`` in the folder.

    Returns:
        The address of each page from the folder, by image id; an image that cannot be read any more has none.
    """
    (folder / "inspect").mkdir(exist_ok=True)
    pages = {}
    for place, record in enumerate(records, 1):
        try:
            trace = trace_record(detector, record, data)
        except ImageError:  # the report says so
            continue
        address = f"inspect/worst_{place:02}.html"  # whatever letters the image's name has
        write_page(folder / address, [trace], title=f"See inside: {record.path.name}")
        pages[record.id] = address
        each(record)
    return pages


def show(evaluation: Evaluation, record: ImageRecord, look: str | None) -> str:
    """Draw one image; say so when it cannot be read any more."""
    mistakes = evaluation.mistakes[record.id]
    caption = f"{record.path.name}: F1 {share(evaluation.agreement.image_f1[record.id])}. {told(mistakes)}"
    found = evaluation.detections[record.id].above(evaluation.agreement.threshold)
    try:
        image = read_image(record.path, (record.height, record.width))
    except ImageError as error:
        return page.paragraph(f"{caption} {error}")
    titles = ("Objects", "Detections")
    images = {
        f"{title} in {caption}": as_jpeg(drawn)
        for title, drawn in zip(titles, draw_mistakes(image, record, found, mistakes), strict=True)
    }
    link = (look, "Look into the model with this image") if look else None
    return page.figures(images, caption, link)


def as_jpeg(picture: Image.Image) -> bytes:
    """Return a picture as a file, small enough for a report of many."""
    picture.thumbnail((WIDTH, WIDTH))
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=82)
    return file.getvalue()


def told(mistakes: Mistakes) -> str:
    """Say in words what is wrong in an image."""
    parts = [f"{mistakes.right} found"]
    for name, reasons in (
        ("missed", [miss.reason for miss in mistakes.misses]),
        ("false alarms", [alarm.reason for alarm in mistakes.false_alarms]),
    ):
        if reasons:
            counts = ", ".join(f"{count} {reason}" for reason, count in Counter(reasons).most_common())
            parts.append(f"{len(reasons)} {name} ({counts})")
    return "; ".join(parts) + "."
