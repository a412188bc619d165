"""Prediction on a collection: what is left to do, by Ray Data."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from querybox.bulk.attempts import Attempts
from querybox.bulk.parts import Part, divide
from querybox.bulk.rows import count_written
from querybox.bulk.worker import Worker
from querybox.data.storage import is_web, join, names, opened, write
from querybox.errors import ConfigError, DataError, ImageError, PredictionError, QueryboxError
from querybox.files import contents
from querybox.inference.engine import Engine
from querybox.inference.options import Options
from querybox.memory import first_line
from querybox.temporary import remove_leftovers
from querybox.text import counted, listed, to_json
from querybox.urls import is_url, public_name

PLAN = "_plan.json"
"""Name of the file that states the sources and settings of the results in a folder. Readers of Parquet ignore names
that begin with an underscore."""
MAX_PLAN = 1 << 20
READERS = 16
"""Number of files of earlier results that are read at a time."""


@dataclass(frozen=True, slots=True)
class Collection:
    """The parts of a collection, and the folder of their files."""

    parts: Sequence[Part]
    output: str
    """Absolute path or URL of the folder."""

    def left(self) -> list[Part]:
        """Return the parts without a file."""
        done = names(self.output)
        return [part for part in self.parts if part.file_name not in done]

    def count_others(self, left: Sequence[Part]) -> Counter[str]:
        """Return the numbers of ``images``, ``objects`` and ``errors`` in the files of all parts but those `left`.

        Raises:
            DataError: A file is damaged.
            OSError: A storage cannot be reached, or refuses.
        """
        numbers = {part.number for part in left}
        places = [join(self.output, part.file_name) for part in self.parts if part.number not in numbers]
        with ThreadPoolExecutor(READERS) as pool:
            return sum(pool.map(count_written, places), Counter())

    def remove_leftovers(self) -> None:
        """Remove what killed processes left in the folder; in a storage they leave nothing."""
        if not is_url(self.output):
            remove_leftovers(Path(self.output))


def prepare(sources: Sequence[str], output: str, settings: Mapping[str, Any]) -> Collection:
    """Divide a collection into parts, and write the plan to its folder or compare it with that of an earlier call.

    Args:
        sources: Paths or URLs of images, folders, patterns and shards.
        output: Path or URL of the folder: a new or an empty one, or that of an earlier call.
        settings: What else decides about the results, such as the digest of the model; compared as well.

    Raises:
        ConfigError: The folder has other files, or results of other sources or settings; or it is on a web server.
        DataError: A source does not exist, or has no images.
        StorageError: A storage cannot be reached, or refuses.
    """
    if is_web(output):
        raise ConfigError(
            f"{public_name(output)}: nothing can be written to a web server; expected a path, or the URL of a storage "
            "such as s3"
        )
    collection = Collection(
        divide(sources, output), output if is_url(output) else str(Path(output).absolute())
    )
    files = "\n".join(public_name(place) for part in collection.parts for place in part.places)
    plan = {
        **settings,
        "files": files.count("\n") + 1,
        "sources": hashlib.sha256(files.encode(errors="backslashreplace")).hexdigest(),
        "parts": len(collection.parts),
    }
    present = names(collection.output)
    if PLAN in present:
        compare(plan, collection.output)
        return collection
    others = contents(Path(output)) if present and not is_url(output) else present
    if others:
        raise ConfigError(
            f"{public_name(output)}: the folder is not empty ({listed(sorted(others), 3)}); expected a new one, or "
            "that of a prediction with --ray, which is continued"
        )
    write(join(collection.output, PLAN), to_json(plan, indent=2).encode() + b"\n")
    return collection


def compare(plan: Mapping[str, Any], output: str) -> None:
    """Compare a plan with the one in a folder.

    Raises:
        ConfigError: They differ, or there is none that can be read.
    """
    place = join(output, PLAN)
    try:
        with opened(place) as file:
            former = json.loads(file.read(MAX_PLAN))
    except (ImageError, ValueError, RecursionError):
        former = None
    if not isinstance(former, dict):
        raise ConfigError(f"{public_name(place)}: cannot be read as a plan of querybox; set another --output")
    if changed := [
        f"{name} was {former.get(name)!r:.80} and is {plan.get(name)!r:.80}"
        for name in {**plan, **former}
        if former.get(name) != plan.get(name)
    ]:
        raise ConfigError(
            f"{public_name(output)}: has results of other images or settings: {listed(changed)}; repeat the command as "
            "it was to continue it, or set another --output"
        )


def predict_parts(
    parts: Sequence[Part],
    output: str,
    load: Callable[[], Engine],
    options: Options,
    processes: int,
    gpus: float,
) -> Iterator[Counter[str]]:
    """Predict parts, and yield for each the numbers of its ``images``, ``objects`` and ``errors``, as they are done.

    Ray is connected (see `querybox.bulk.cluster`). A process that ends is replaced, and its part predicted again.

    Args:
        parts: The parts.
        output: Path or URL of the folder of their files.
        load: Returns the model; called once in each process.
        options: What is detected.
        processes: Number of processes.
        gpus: Number of GPUs of each process; 0 for one core.

    Raises:
        DataError: Some parts could not be predicted; the others are done.
        PredictionError: The processes ended before they could predict.
        QueryboxError: The model cannot be loaded.
    """
    import ray

    rows = [{"number": part.number, "places": list(part.places)} for part in parts]
    counter = ray.remote(Attempts).options(num_cpus=0).remote()
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Worker,
        fn_constructor_args=(load, options, output, partial(count_attempt, counter)),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(processes, len(parts)), max_tasks_in_flight_per_actor=2),
        num_cpus=0 if gpus else 1,
        num_gpus=gpus,
    )
    failures: list[str] = []
    try:
        for result in results.iter_rows():
            if failure := result.pop("failure"):
                failures.append(failure)
            else:
                yield Counter(result)
    except ray.exceptions.RayError as error:
        raise cause(error) from error
    if failures:
        raise DataError(
            f"{failures[0]}; {counted(len(failures), 'part')} of {len(parts):,} could not be predicted, the others are "
            "done: remove the cause, and repeat the command for the rest"
        )


def count_attempt(counter: Any, number: int) -> int:
    """Return how many times a part has been begun, this time included."""
    import ray

    return int(ray.get(counter.begin.remote(number)))


def cause(error: BaseException) -> QueryboxError:
    """Return the error of querybox that made Ray raise one, or that processes ended."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, QueryboxError):
            return type(link)(str(link))
        link = getattr(link, "cause", None) or link.__cause__
    return PredictionError(
        f"the processes of Ray ended ({first_line(error)}); the parts predicted before are done. They may lack memory: "
        "use fewer --workers, and repeat the command for the rest"
    )
