"""``querybox predict --ray``: collections of any size, on one machine or a cluster."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from querybox.cli.model import load_model, require_order
from querybox.cli.progress import progress_bar
from querybox.cli.streams import UNREADABLE, print_summary
from querybox.precision import Precision
from querybox.text import counted
from querybox.urls import is_url, public_name


def predict_collection(
    model: Path,
    sources: Sequence[str],
    output: str,
    options: Mapping[str, Any],
    precision: Precision,
    trust: bool,
    *,
    ray: str,
    workers: int | None,
    allow_network: bool,
) -> int:
    """Predict what has not been predicted by an earlier call, and return the exit code.

    Args:
        model: As for `querybox predict`, as the following ones.
        sources: Images, folders, patterns and shards.
        output: Path or URL of the folder of the Parquet files.
        options: See `querybox.inference.options.Options`.
        precision: Precision of a checkpoint's computations.
        trust: Whether a .pt2 or .pte file may execute code.
        ray: See `address` of `querybox.bulk.cluster.cluster`.
        workers: Number of processes; None for one for each GPU or core.
        allow_network: Whether URLs may be opened.
    """
    from querybox.arguments import require_consent, require_number
    from querybox.bulk.cluster import cluster
    from querybox.bulk.run import predict_parts, prepare
    from querybox.data.tiling import Tiling
    from querybox.inference.options import Options

    require_order("querybox predict", model, sources)
    for url in filter(is_url, (*sources, output)):
        require_consent(public_name(url), allow_network=allow_network)
    if workers is not None:
        require_number("predict", "workers", workers, 1, whole=True)
    values = Options(**options)
    model = model.absolute() if model.exists() else model
    load = partial(load_model, model, trusted=trust, precision=precision)
    Tiling.of(values.tile, values.overlap, load().preprocessing)  # a model that cannot be read ends it here
    plan = {"model": model_digest(model), "precision": precision, **asdict(values)}
    collection = prepare(sources, output, plan)
    left = collection.left()
    total = collection.count_others(left)
    with ExitStack() as stack:
        stack.callback(collection.remove_leftovers)  # once the processes have ended
        if left:
            stack.enter_context(cluster(ray, workers))
            advance = stack.enter_context(progress_bar(len(left), "Parts"))
            processes, gpus = resources(model, workers)
            for tally in predict_parts(left, collection.output, load, values, processes, gpus):
                total += tally
                advance(tally)
    return summarise(total, len(collection.parts), len(left), output)


def model_digest(model: Path) -> str:
    """Return the SHA-256 of the files of a model."""
    from querybox.checkpoints.digest import digest_of
    from querybox.checkpoints.files import model_files
    from querybox.checkpoints.find import find_weights, is_exported

    return digest_of(*model_files(model if is_exported(model) else find_weights(model)))


def resources(model: Path, workers: int | None) -> tuple[int, float]:
    """Return the number of processes, and how many GPUs each has; 0 for one core of a CPU."""
    import ray

    from querybox.checkpoints.find import is_exported

    available = ray.cluster_resources()
    gpus = 0 if is_exported(model) else int(available.get("GPU", 0))
    processes = workers or gpus or max(1, int(available.get("CPU", 1)))
    return processes, 1 / math.ceil(processes / gpus) if gpus else 0


def summarise(total: Counter[str], parts: int, left: int, output: str) -> int:
    """Print what was found, by this call and the earlier ones, and return the exit code."""
    errors = total["errors"]
    read = f"Found {total['objects']:,} objects in {counted(total['images'] - errors, 'image')}"
    failed = f", {errors:,} could not be read" if errors else ""
    before = f"; {parts - left:,} of {counted(parts, 'part')} had been done before" if left < parts else ""
    print_summary(f"{read}{failed}{before}. Results are in {public_name(output)}")
    return UNREADABLE if errors else 0
