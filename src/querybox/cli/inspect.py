"""``querybox inspect``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from querybox.cli.model import load_detector
from querybox.cli.progress import progress_bar
from querybox.cli.streams import print_text
from querybox.errors import ConfigError
from querybox.files import require_own

if TYPE_CHECKING:
    from querybox.inspect import Trace


def inspect(
    *images: str,
    model: Path,
    output: Annotated[Path, Parameter(alias="-o")] = Path("inspect.html"),
    annotations: str | None = None,
    split: str | None = None,
    queries: int = 100,
    encoder_layers: str = "last",
    tile: int | Literal["auto"] | None = None,
    overlap: float = 0.2,
    allow_network: bool = False,
) -> None:
    """Inspect a model: write a page that shows how it processes images.

    The page is one HTML file that needs no server, no network and no other file. Select a query to see its class
    scores, its attention in every decoder layer and head, and its box in every layer; point at the image to see the
    encoder's attention. With annotations, the page also shows which query is matched to which object, and the matching
    cost of any pair.

    ```
    querybox inspect a.jpg --model run -o report.html
    querybox inspect 'photos/images/*1.jpg' --model run --annotations photos/ --split val
    querybox inspect a.jpg --model detr-r50.pth --encoder-layers 1,6
    querybox inspect aerial.tif --model run --tile 640    # a large image as a whole, and its tiles
    ```

    Args:
        images: Images, folders or patterns.
        model: A checkpoint of any layout, or a run folder: its best model, or else its last.
        output: The HTML file.
        annotations: A dataset that contains the images: COCO, Pascal VOC, YOLO or the format of an annotation tool; or
            the URL of shards, in which images are found by their name.
        split: Split of the dataset, such as val; required if it has several.
        queries: Number of queries per image, best first. With large images the attention of fewer is included.
        encoder_layers: Encoder layers whose attention is included: last, all, or numbers from 1, separated by commas.
        tile: Side in pixels of the tiles of larger images, which are inspected as a whole, too; auto as in `querybox
            predict`. No tiles by default.
        overlap: Minimum overlap of neighbouring tiles, as a fraction of their side (0-0.9).
        allow_network: Open the URLs of shards that the dataset is, or that its file has.
    """
    if not images:
        raise ConfigError("querybox inspect got no images; expected images, folders or patterns")

    from querybox.data import read_dataset
    from querybox.inference.sources import count_frames, find_distinct_files
    from querybox.inspect import traces, write_page

    require_own(output)
    files = find_distinct_files(images)
    data = None if annotations is None else read_dataset(annotations, split, allow_network=allow_network)
    detector = load_detector(model)
    with progress_bar(count_frames(files) if tile is None else None) as advance:

        def advancing() -> Iterator[Trace]:
            for traced in traces(detector, files, data, tile=tile, overlap=overlap):
                yield traced
                advance(traced.detections)

        write_page(
            output,
            advancing(),
            title=f"Inspector: {model.name}",
            queries=queries,
            encoder_layers=read_layers(encoder_layers, len(getattr(detector.encoder, "layers", ()))),
        )
    print_text(f"The page is {output}, {output.stat().st_size / 1e6:.1f} MB")


def read_layers(text: str, count: int) -> list[int]:
    """Return indices of encoder layers, from 0.

    Raises:
        ConfigError: The text is neither last nor all nor numbers from 1 to `count`.
    """
    if text in ("last", "all"):
        return list(range(count))[-1:] if text == "last" else list(range(count))
    try:
        layers = [int(part) - 1 for part in text.split(",")]
    except ValueError:
        layers = [-1]
    if not all(0 <= layer < count for layer in layers):
        raise ConfigError(f"--encoder-layers got '{text}'; expected last, all, or numbers from 1 to {count}")
    return layers
