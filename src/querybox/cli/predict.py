"""``querybox predict``."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from querybox.cli.model import Precision
from querybox.errors import ConfigError

if TYPE_CHECKING:
    from querybox.errors import ImageError
    from querybox.inference.detections import Detections
    from querybox.inference.writers import AddDetections

FORMATS = ("pictures", "coco", "csv")
BROKEN_FILES = 1
"""Exit code where some of the files could not be read."""


def predict(
    model: Path,
    /,
    *sources: str,
    output: Path = Path("predictions"),
    threshold: float = 0.5,
    top_k: int = 100,
    nms: float | None = None,
    format: str = ",".join(FORMATS),  # noqa: A002 - the option's name
    batch_size: int = 8,
    precision: Precision = "float32",
    trust: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Find objects in images and videos.

    The output folder gets the pictures and videos with boxes drawn, detections.json (COCO: the images and one
    annotation a detection) and detections.csv. Files that cannot be read are named, the others are predicted on all the
    same, and the exit code is 1.

    ```
    querybox predict run photos/                         # a folder
    querybox predict run a.jpg clip.mp4 --threshold 0.3  # files
    querybox predict model.safetensors 'photos/**/*.png' # a pattern
    querybox predict run photos/ --format csv            # the table alone
    ```

    Args:
        model: A checkpoint of any layout, a run folder: its best model, else its last; or an exported model:
            .onnx, .xml (OpenVINO), .pt2 (PyTorch).
        sources: Images, videos, folders or patterns.
        output: Folder for the results.
        threshold: Leave out detections that score less (0-1).
        top_k: Most detections per image.
        nms: Leave out detections that overlap a better one of their class by more than this IoU (0-1).
        format: What to write, of pictures, coco and csv, separated by commas.
        batch_size: Most images in one forward pass, on an accelerator.
        precision: What a checkpoint's model computes in: bf16 is faster and less exact.
        trust: Let a .pt2 file execute the code that it may hold.
    """
    formats = read_formats(format)
    if not sources:
        raise ConfigError("querybox predict got no sources; expected images, videos, folders or patterns")

    from querybox.cli.model import load_model
    from querybox.cli.progress import progress_bar
    from querybox.fast import fastest
    from querybox.inference.predict import predict as run
    from querybox.inference.sources import count_frames, find_files
    from querybox.inference.writers import coco_file, csv_file, draw_files, drawing_paths

    files = [file for source in sources for file in find_files(Path(source))]
    pictures = drawing_paths(files, output) if "pictures" in formats else []
    detector = load_model(model, trusted=trust, precision=precision)
    broken: list[ImageError] = []
    options: dict[str, Any] = {"threshold": threshold, "top_k": top_k, "nms": nms, "batch_size": batch_size}
    found = run(fastest(detector), files, **options, on_error=broken.append)
    output.mkdir(parents=True, exist_ok=True)
    tally: Counter[str] = Counter()
    with ExitStack() as stack:
        adds = [
            lambda found: tally.update(images=1, objects=len(found)),
            stack.enter_context(progress_bar(count_frames(files))),
        ]
        if "coco" in formats:
            adds.append(stack.enter_context(coco_file(output / "detections.json", detector.categories)))
        if "csv" in formats:
            adds.append(stack.enter_context(csv_file(output / "detections.csv")))
        results = recorded(found, adds)
        if "pictures" in formats:
            draw_files(files, pictures, results)
        for _ in results:  # all of them, where nothing is drawn
            pass
    return say(tally, files, broken, output)


def say(tally: Counter[str], files: Sequence[Path], broken: Sequence[ImageError], output: Path) -> int:
    """Say how much was found, and what could not be read; return the exit code."""
    for error in broken:
        sys.stderr.write(f"ImageError: {error}\n")
    left_out = f", {len(broken)} of {len(files)} files could not be read" if broken else ""
    print(f"Found {tally['objects']} objects in {tally['images']} images{left_out}. Results are in {output}")
    return BROKEN_FILES if broken else 0


def read_formats(text: str) -> list[str]:
    """Split the formats that are asked for.

    Raises:
        ConfigError: One is unknown.
    """
    formats = [part.strip() for part in text.split(",")]
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(
                f"--format got '{name}'; expected one or more of {', '.join(FORMATS)}, with commas"
            )
    return formats


def recorded(results: Iterator[Detections], adds: Sequence[AddDetections]) -> Iterator[Detections]:
    """Hand detections on, each to all of `adds` first."""
    for found in results:
        for add in adds:
            add(found)
        yield found
