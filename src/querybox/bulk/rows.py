"""The detections of a part as a Parquet file with a row for each image."""

from __future__ import annotations

import io
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from querybox.bulk.parts import Part
from querybox.bulk.pictures import Decoded, decode_ahead
from querybox.data.parquet_file import opened as opened_parquet
from querybox.data.storage import opened
from querybox.data.tiling import Tiling
from querybox.errors import ConfigError, DataError, PredictionError
from querybox.inference.detections import Detections
from querybox.inference.engine import Engine
from querybox.inference.fitting import require_fitting
from querybox.inference.options import Options
from querybox.inference.predict import detect_frames
from querybox.inference.sources import Frame, views
from querybox.structures import Category
from querybox.text import to_json
from querybox.urls import public_name

if TYPE_CHECKING:
    import pyarrow as pa

GROUP = 1000
"""Number of rows that are compressed together."""
COUNTED = ("scores", "error")
"""The columns that tell what was found in the images."""


def schema(categories: Sequence[Category]) -> pa.Schema:
    """Return the columns of a file; its metadata have the classes as JSON, under ``querybox``.

    - ``name``: see `querybox.bulk.pictures.Picture.name`.
    - ``width``, ``height``: of the original image in pixels; null for an image with an error.
    - ``boxes_xyxy``, ``scores``, ``category_ids``, ``class_names``: lists with an item for each object, by descending
      score; boxes are corners (x1, y1, x2, y2) in pixels of the original image.
    - ``masks``: list of COCO's compressed RLEs at the size of the image; null without a mask head.
    - ``error``: why the image cannot be read; null if it was.
    """
    import pyarrow as pa

    columns = {
        "name": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "boxes_xyxy": pa.list_(pa.list_(pa.float32(), 4)),
        "scores": pa.list_(pa.float32()),
        "category_ids": pa.list_(pa.int64()),
        "class_names": pa.list_(pa.string()),
        "masks": pa.list_(pa.string()),
        "error": pa.string(),
    }
    classes = to_json({"categories": [asdict(category) for category in categories]})
    return pa.schema(list(columns.items()), metadata={"querybox": utf8(classes)})


def utf8(text: str) -> str:
    r"""Return text as UTF-8 can hold it: bytes of file names that are not UTF-8 become ``\udcff``."""
    return text.encode(errors="backslashreplace").decode()


def predict_part(engine: Engine, part: Part, options: Options) -> tuple[bytes, Counter[str]]:
    """Detect the objects in the images of a part.

    Returns:
        The Parquet file, and the numbers of its ``images``, ``objects`` and ``errors``.

    Raises:
        OSError: A storage cannot be reached, or refuses.
    """
    try:
        return write_rows(engine, predict_rows(engine, part, options, alone=False))
    except PredictionError:  # of one image, which is found by predicting each by itself
        return write_rows(engine, predict_rows(engine, part, options, alone=True))


def write_rows(engine: Engine, rows: Iterator[dict[str, Any]]) -> tuple[bytes, Counter[str]]:
    """Write rows to a Parquet file in memory; see `predict_part`."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    tally: Counter[str] = Counter()
    file = io.BytesIO()
    columns = schema(engine.categories)
    with ParquetWriter(file, columns, compression="zstd") as writer:
        while group := list(islice(rows, GROUP)):
            table = pa.Table.from_pylist(group, columns)
            writer.write_table(table)
            tally.update(count_rows(table))
    return file.getvalue(), tally


def count_rows(table: pa.Table) -> Counter[str]:
    """Return the numbers of ``images``, ``objects`` and ``errors`` in a table with the columns of `COUNTED`."""
    from pyarrow.compute import list_flatten

    scores, errors = map(table.column, COUNTED)
    return Counter(
        images=len(table), objects=len(list_flatten(scores)), errors=len(errors) - errors.null_count
    )


def count_written(place: str) -> Counter[str]:
    """Return the numbers in the file of a part; see `count_rows`.

    Args:
        place: Its path or URL.

    Raises:
        DataError: It is not such a file.
        OSError: Its storage cannot be reached, or refuses.
    """
    try:
        with opened(place) as file, opened_parquet(public_name(place), file) as parquet:
            return count_rows(parquet.read(COUNTED, use_threads=False))
    except DataError as error:
        raise DataError(
            f"{error}. It is the result of an earlier call: remove it, and repeat the command to predict its part again"
        ) from error


def predict_rows(engine: Engine, part: Part, options: Options, *, alone: bool) -> Iterator[dict[str, Any]]:
    """Yield the row of each image of a part, in order.

    Args:
        engine: The model.
        part: The part.
        options: What is detected.
        alone: Predict each image by itself, so that one whose predictions are NaN becomes an error.

    Raises:
        OSError: A storage cannot be reached, or refuses.
        PredictionError: The predictions for an image are NaN or infinite, and `alone` is False.
    """
    waiting: deque[Decoded] = deque()  # of which the detections, or those before them, are not known yet
    tiling = Tiling.of(options.tile, options.overlap, engine.preprocessing)

    def groups() -> Iterator[Iterator[Frame]]:
        for image in decode_ahead(part.pictures(), engine.preprocessing.pixel_range):
            if image.pixels is None:
                waiting.append(image)
                continue
            height, width = image.pixels.shape[1:]
            try:
                require_fitting(engine, [(image.name, (height, width))], tiling)
                frames = [*views(Frame(source=image.name, pixels=image.pixels), tiling)]
            except ConfigError as error:  # of this image alone
                waiting.append(Decoded(image.name, None, str(error)))
            else:
                waiting.append(Decoded(image.name, None))
                yield iter(frames)

    views_of_all = groups()
    results = (
        detect_each(engine, views_of_all, options)
        if alone
        else detect_frames(engine, chain.from_iterable(views_of_all), options)
    )
    for found in results:
        while (image := waiting.popleft()).error is not None:
            yield error_row(image.name, image.error)
        yield error_row(image.name, str(found)) if isinstance(found, PredictionError) else row(found)
    for image in waiting:
        assert image.error is not None
        yield error_row(image.name, image.error)


def detect_each(
    engine: Engine, groups: Iterable[Iterator[Frame]], options: Options
) -> Iterator[Detections | PredictionError]:
    """Yield the detections of each image, or the error if there are none."""
    for group in groups:
        try:
            yield from list(detect_frames(engine, group, options))
        except PredictionError as error:
            yield error


def row(detections: Detections) -> dict[str, Any]:
    """Return the row of an image."""
    height, width = detections.size
    labels = detections.labels.tolist()
    return {
        "name": utf8(detections.source),
        "width": width,
        "height": height,
        "boxes_xyxy": detections.boxes_xyxy.tolist(),
        "scores": detections.scores.tolist(),
        "category_ids": [detections.categories[label].id for label in labels],
        "class_names": [utf8(name) for name in detections.names],
        "masks": None
        if detections.masks is None
        else [mask.to_coco()["counts"] for mask in detections.masks],
        "error": None,
    }


def error_row(name: str, error: str) -> dict[str, Any]:
    """Return the row of an image that cannot be read."""
    lists = ("boxes_xyxy", "scores", "category_ids", "class_names", "masks")
    return {"name": utf8(name), "width": None, "height": None, **dict.fromkeys(lists), "error": utf8(error)}
