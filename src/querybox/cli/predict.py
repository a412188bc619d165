"""``querybox predict``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from querybox.cli.collection import predict_collection
from querybox.cli.live import LIVE_FORMATS, live_stream, predict_live
from querybox.cli.model import load_model, require_order
from querybox.cli.progress import progress_bar
from querybox.cli.streams import UNREADABLE, print_summary, write_stderr
from querybox.errors import ConfigError, ImageError
from querybox.files import contents, output_folder
from querybox.inference.trackers import TrackerName
from querybox.precision import Precision
from querybox.temporary import remove_leftovers
from querybox.text import counted, listed

if TYPE_CHECKING:
    from querybox.inference.detections import Detections
    from querybox.inference.engine import Engine
    from querybox.inference.writers import AddDetections
    from querybox.structures import Category

    TableWriter: TypeAlias = Callable[[Path], AbstractContextManager[AddDetections]]

FORMATS = ("pictures", "coco", "csv", "yolo", "masks", "panoptic", "mot")
"""The first three are the default ones."""
TABLES = {"coco", "csv"}
"""Formats of one file, in which results have the paths of their sources."""
FOLDERS = {"masks", "panoptic"}
"""Formats of a folder of PNGs, with this name."""


def predict(
    model: Path,
    /,
    *sources: str,
    output: str = "predictions",
    overwrite: bool = False,
    threshold: float = 0.5,
    top_k: int = 100,
    nms: float | None = None,
    tile: int | Literal["auto"] | None = None,
    overlap: float = 0.2,
    track: bool = False,
    tracker: TrackerName | None = None,
    duration: str | None = None,
    max_frames: int | None = None,
    format: str | None = None,  # noqa: A002 - the option's name
    batch_size: int = 8,
    precision: Precision = "float32",
    tuned: bool = False,
    trust: bool = False,
    ray: str | None = None,
    workers: int | None = None,
    allow_network: bool = False,
) -> int:
    """Detect objects in images, videos, cameras and streams.

    The output folder receives the images and videos with boxes drawn, detections.json (COCO, with an annotation per
    detection) and detections.csv. Files that cannot be read are reported and skipped, and the exit code is 1.

    ```
    querybox predict run photos/                         # a folder
    querybox predict run a.jpg clip.mp4 --threshold 0.3  # files
    querybox predict model.safetensors 'photos/**/*.png' # a pattern
    querybox predict run photos/ --format csv            # only the table
    querybox predict run aerial/ --tile 640              # small objects in large images
    querybox predict run aerial/ --tile auto             # the same, with a tile size for the model
    querybox predict run clip.mp4 --track                # number the objects of a video
    querybox predict run 0 --duration 10m                # the first camera of this machine
    querybox predict run rtsp://camera/1 --allow-network # a stream
    querybox predict run 'shards/*.tar' --ray local      # millions of images, by several processes
    ```

    With --ray, the output folder receives Parquet files with a row for each image. Repeat the command after an
    interruption: it continues where it stopped. A file that cannot be read is a row with its error.

    Args:
        model: A checkpoint of any layout, a run folder (its best model, or else its last), or an exported model
            (.onnx, .xml for OpenVINO, .pt2 for PyTorch, .pte for ExecuTorch).
        sources: Images, videos, folders or patterns; or a camera (its index, such as 0, or /dev/video0), or a stream
            (rtsp://, http:// or https://), of which the newest frame is processed until Ctrl-C. With --ray images, .tar
            files of images (WebDataset) and Parquet files with embedded images, by path, folder, pattern or URL.
        output: Folder for the results: a new or an empty one; with --ray also a URL, or the folder to continue.
        overwrite: Allow a folder that is not empty; files in it with the names of new ones are replaced.
        threshold: Minimum score of detections (0-1).
        top_k: Maximum number of detections per image; with --tile, of each tile and of the whole image.
        nms: IoU threshold (0-1) of class-wise non-maximum suppression; off by default.
        tile: Search images also in tiles of this side in pixels, for small objects in large images; auto for tiles in
            which objects appear as large as in training. No tiles by default.
        overlap: Minimum overlap of neighbouring tiles, as a fraction of their side (0-0.9).
        track: Number the objects of each video: an object keeps its number from frame to frame. The numbers are drawn,
            and in the tables as track_id.
        tracker: Track with this algorithm: bytetrack (the default of --track), sort or ocsort. bytetrack also finds
            objects whose score drops below the threshold, down to 0.1, while it tracks them.
        duration: Process a camera or stream for this long, such as 90s or 1h30m; without a limit by default.
        max_frames: Process this number of frames of a camera or stream.
        format: Outputs to write, separated by commas: pictures, coco and csv (the default); yolo for label files in
            labels/, with polygons if the model has masks; masks for a PNG of the masks of each image in masks/;
            panoptic for COCO's panoptic.json and PNGs; mot for a text file of the tracks in each video in mot/, as in
            the MOT Challenge. For a camera or stream: csv (the default), pictures and mot.
        batch_size: Maximum number of images per forward pass on an accelerator.
        precision: Precision of a checkpoint's computations: float32, bf16, fp16, or auto. auto is bf16 if the device
            computes it natively, otherwise float32. bf16 and fp16 are less accurate, and faster only on such devices.
        tuned: Run a checkpoint with the engine, precision and number of threads that `querybox benchmark --tune` found
            to be the fastest on this machine.
        trust: Trust the source of a .pt2 or .pte file, which may execute code.
        ray: Predict with Ray: local on all cores or GPUs of this machine; or the address of a cluster, HOST:PORT, or
            auto on one of its machines.
        workers: Number of processes with --ray, each of which holds the model; one for each GPU or core by default.
        allow_network: Connect to the stream that is named; with --ray, open the URLs among the sources and --output, of
            http, https, or of a storage such as s3. Off by default.
    """
    algorithm = tracker or ("bytetrack" if track else None)
    if not sources:
        raise ConfigError("querybox predict got no sources; expected images, videos, folders or patterns")
    options: dict[str, Any] = {"threshold": threshold, "top_k": top_k, "nms": nms, "batch_size": batch_size}
    options |= {"tile": tile, "overlap": overlap}
    if ray is not None:
        place: dict[str, Any] = {"ray": ray, "workers": workers, "allow_network": allow_network}
        return predict_collection(model, sources, output, options, precision, trust, **place)
    stream = live_stream(model, sources, allow_network, max_frames, duration)
    formats = read_formats(format, tracking=algorithm is not None, live=stream is not None)
    require_order("querybox predict", model, sources)
    folder = Path(output)
    names = {} if stream else name_results(sources, formats, folder)
    if not overwrite:
        require_new(folder)
    detector = load_model(model, trusted=trust, precision=precision, tuned=tuned)
    options["track"] = algorithm
    if stream is not None:
        return predict_live(stream, detector, formats, folder, options)
    return predict_files(names, detector, formats, folder, options)


def name_results(sources: Sequence[str], formats: Collection[str], output: Path) -> dict[str, str]:
    """Return the name of what is written for each image and video, the same one in all formats.

    Raises:
        ConfigError: The results would overwrite a source, or be mistaken for those of another one.
        DataError: A source does not exist or contains no image.
    """
    from querybox.inference.drawings import drawing_paths
    from querybox.inference.file_names import check_folder, file_names, renamed
    from querybox.inference.sources import find_distinct_files

    files = find_distinct_files(sources)
    names = file_names(files)
    if "pictures" in formats:
        drawing_paths(names, output)
    for name in FOLDERS & set(formats):
        check_folder(output / name, files)
    others = list(renamed(names))
    if others and not set(formats) <= TABLES:
        write_stderr(
            f"results have other names where names of files repeat or are too long: {listed(others)}\n"
        )
    return names


def predict_files(
    names: Mapping[str, str],
    detector: Engine,
    formats: Collection[str],
    output: Path,
    options: Mapping[str, Any],
) -> int:
    """Detect objects in images and videos, write the results, and return the exit code.

    Args:
        names: The name of what is written for each image and video; see `file_names`.
        detector: The model.
        formats: Names of `FORMATS`.
        output: Folder for the results.
        options: Arguments of `querybox.predict`.
    """
    from querybox.inference.predict import predict as run
    from querybox.inference.writers import yolo_classes

    if "yolo" in formats:
        yolo_classes(detector.categories)  # an error before older results are removed
    unreadable: list[ImageError] = []
    files = list(map(Path, names))
    results = run(detector, files, **options, on_error=unreadable.append)
    tables = table_writers(formats, names, detector.categories, tracking=options["track"] is not None)
    tally = write_results(results, tables, formats, names, output, detector.categories, unreadable.append)
    return summarise(tally, files, unreadable, output, threshold=options["threshold"])


def write_results(
    results: Iterator[Detections],
    tables: Mapping[str, TableWriter],
    formats: Collection[str],
    names: Mapping[str, str],
    output: Path,
    categories: Sequence[Category],
    on_error: Callable[[ImageError], object],
) -> Counter[str]:
    """Write the detections in all formats; return the numbers of images and objects.

    Args:
        results: The detections of every file that can be read, in order.
        tables: The writer of each table by its name.
        formats: Names of `FORMATS`.
        names: The name of what is written for each image and video; see `file_names`.
        output: Folder for the results.
        categories: The classes by label.
        on_error: Called with the error of each file that cannot be read a second time to be drawn on.
    """
    from querybox.inference.drawings import draw_files, drawing_paths
    from querybox.inference.sources import count_frames

    files = list(map(Path, names))
    tally: Counter[str] = Counter()
    with ExitStack() as stack:
        stack.enter_context(output_folder(output))
        remove_older(output, tables)
        adders = [
            lambda detections: tally.update(images=1, objects=len(detections)),
            stack.enter_context(progress_bar(count_frames(files))),
        ]
        adders += [stack.enter_context(table(output / name)) for name, table in tables.items()]
        results = added(results, [*adders, *image_writers(formats, output, names, categories, stack)])
        if "pictures" in formats:
            draw_files(files, drawing_paths(names, output), results, on_error)
        for _ in results:  # consume them if nothing is drawn
            pass
    return tally


def table_writers(
    formats: Collection[str], names: Mapping[str, str], categories: Sequence[Category], *, tracking: bool
) -> dict[str, TableWriter]:
    """Return the writer of each table by its name."""
    from querybox.inference.writers import coco_file, csv_file, panoptic_file

    writers: dict[str, TableWriter] = {}
    if "coco" in formats:
        writers["detections.json"] = partial(coco_file, categories=categories)
    if "csv" in formats:
        writers["detections.csv"] = partial(csv_file, tracking=tracking)
    if "panoptic" in formats:
        writers["panoptic.json"] = partial(panoptic_file, names=names, categories=categories)
    return writers


def image_writers(
    formats: Collection[str],
    output: Path,
    names: Mapping[str, str],
    categories: Sequence[Category],
    stack: ExitStack,
) -> Iterator[AddDetections]:
    """Yield what writes a file for each image or video; the last one is complete when `stack` is closed."""
    from querybox.inference.writers import mask_images, mot_files, yolo_labels

    if "yolo" in formats:
        yield yolo_labels(output, names, categories)
    if "masks" in formats:
        yield mask_images(output, names)
    if "mot" in formats:
        yield stack.enter_context(mot_files(output, names))


def require_new(output: Path) -> None:
    """Check that the output folder is empty or does not exist.

    Raises:
        ConfigError: There is something in it.
    """
    if output.is_dir() and contents(output):
        raise ConfigError(
            f"{output}: the folder is not empty; expected a new one, so that results are not mixed: set another "
            "--output, or replace files of the same names with --overwrite"
        )


def remove_older(output: Path, tables: Iterable[str]) -> None:
    """Remove older tables, which would be mistaken for those of a command that is interrupted, and its files."""
    remove_leftovers(output)
    for name in tables:
        (output / name).unlink(missing_ok=True)


def summarise(
    tally: Counter[str],
    files: Sequence[Path],
    unreadable: Sequence[ImageError],
    output: Path,
    *,
    threshold: float,
) -> int:
    """Print the number of detections and the unreadable files; return the exit code."""
    for error in unreadable:
        write_stderr(f"ImageError: {error}\n")
    skipped = f", {len(unreadable)} of {len(files)} files could not be read" if unreadable else ""
    images = counted(tally["images"], "image")
    scored = tally["images"] and not tally["objects"]
    hint = f": none scores at least {threshold:g}, see --threshold" if scored else ""
    print_summary(
        f"Found {counted(tally['objects'], 'object')} in {images}{skipped}{hint}. Results are in {output}"
    )
    return UNREADABLE if unreadable else 0


def read_formats(text: str | None, *, tracking: bool, live: bool) -> list[str]:
    """Split a comma-separated list of formats; None for the default ones.

    Raises:
        ConfigError: A format is unknown, is that of tracks without tracking, or cannot be written for a live source.
    """
    if text is None:
        return list(LIVE_FORMATS[:1] if live else FORMATS[:3])
    formats = [part.strip() for part in text.split(",")]
    known = LIVE_FORMATS if live else FORMATS
    for name in formats:
        if name not in known:
            where = " for a live source, which has no end" if live and name in FORMATS else ""
            raise ConfigError(
                f"--format got '{name}'{where}; expected one or more of {', '.join(known)}, separated by commas"
            )
    if "mot" in formats and not tracking:
        raise ConfigError("--format got 'mot', the format of tracks, without tracking; add --track")
    return formats


def added(results: Iterator[Detections], adders: Sequence[AddDetections]) -> Iterator[Detections]:
    """Yield detections after passing them to all `adders`."""
    for detections in results:
        for add in adders:
            add(detections)
        yield detections
