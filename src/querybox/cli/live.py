"""``querybox predict`` on a camera or a stream."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from querybox.cli.progress import progress_bar
from querybox.cli.streams import print_summary, write_stderr
from querybox.duration import parse_duration
from querybox.errors import ConfigError, ImageError
from querybox.files import output_folder
from querybox.interrupt import StopRequest
from querybox.temporary import remove_leftovers
from querybox.text import counted

if TYPE_CHECKING:
    from querybox.inference.engine import Engine
    from querybox.inference.live import LiveStream
    from querybox.inference.writers import AddDetections

NAME = "live"
"""Base name of the files of a live source, whose address cannot be a file name."""
LIVE_FORMATS = ("csv", "pictures", "mot")
"""Formats that are written frame by frame, in constant memory; the first one is the default."""
GIVEN_UP = 1
"""Exit code if the source could not be opened, or was given up."""


def live_stream(
    model: Path, sources: Sequence[str], allow_network: bool, max_frames: int | None, duration: str | None
) -> LiveStream | None:
    """Return the camera or stream to detect objects in, without opening it; None if the sources are files.

    Raises:
        ConfigError: It is one of several sources, or in the place of the model; it is malformed, or not allowed; or
            there is a limit for files.
    """
    from querybox.inference.address import find_address, is_address

    if is_address(str(model)):
        raise ConfigError(
            "the first argument is a live source, and not a model; the model comes first: querybox predict MODEL SOURCE"
        )
    addresses = [address for address in map(find_address, sources) if address]
    if not addresses:
        if max_frames is not None or duration is not None:
            raise ConfigError(
                "--max-frames and --duration got files; expected a camera or a stream: omit them"
            )
        return None
    if len(sources) > 1:
        raise ConfigError(
            f"{addresses[0].name}: is a live source, which has no end; expected no other source"
        )
    from querybox.inference.live import LiveStream

    return LiveStream(
        sources[0], allow_network=allow_network, max_frames=max_frames, duration=as_seconds(duration)
    )


def as_seconds(text: str | None) -> float | None:
    """Return a duration such as ``10m`` in seconds.

    Raises:
        ConfigError: It is not one.
    """
    try:
        return None if text is None else float(parse_duration(text))
    except ValueError as error:
        raise ConfigError(f"--duration got '{text}'; {error}") from None


def predict_live(
    stream: LiveStream,
    detector: Engine,
    formats: Collection[str],
    output: Path,
    options: Mapping[str, Any],
) -> int:
    """Detect objects in a live source until it is given up, a limit is reached, or a signal arrives.

    Args:
        stream: The source, which is opened.
        detector: The model.
        formats: Some of `LIVE_FORMATS`.
        output: Folder for the results.
        options: Arguments of `querybox.predict`.

    Returns:
        The exit code.
    """
    from querybox.inference.drawings import live_video
    from querybox.inference.predict import predict
    from querybox.inference.writers import csv_file, mot_files

    objects = 0
    lost: list[ImageError] = []
    tracking = options["track"] is not None
    with StopRequest() as stop, stream, ExitStack() as stack:
        stream.stopped = lambda: stop.signal is not None
        results = predict(detector, stream, **options, on_error=lost.append)
        stack.enter_context(output_folder(output))
        remove_leftovers(output)
        adders: list[AddDetections] = [stack.enter_context(progress_bar(None))]
        if "csv" in formats:
            table = csv_file(output / "detections.csv", tracking=tracking, live=True)
            adders.append(stack.enter_context(table))
        if "mot" in formats:
            adders.append(stack.enter_context(mot_files(output, {stream.name: NAME}, live=True)))
        if "pictures" in formats:
            adders.append(stack.enter_context(live_video(output / f"{NAME}.mp4", stream)))
        for detections in results:
            objects += len(detections)
            for add in adders:
                add(detections)
    for error in lost:
        write_stderr(f"ImageError: {error}\n")
    print_summary(
        f"Found {counted(objects, 'object')} in {stream.name}: {stream.summary()}. Results are in {output}"
    )
    if stop.signal is not None:
        stop.reraise()
    return GIVEN_UP if lost else 0
