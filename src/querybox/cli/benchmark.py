"""``querybox benchmark``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from querybox.cli.sizes import parse_size
from querybox.cli.streams import print_json, print_text
from querybox.cli.tables import table
from querybox.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from querybox.benchmark import BenchmarkResult
    from querybox.tuning import Tuning


def benchmark(
    *models: Path,
    size: str | None = None,
    batch_size: int = 1,
    json: bool = False,
    trust: bool = False,
    tune: bool = False,
) -> None:
    """Measure how fast models run on this machine, and their memory.

    A checkpoint is run as is, optimised as by `querybox predict`, and optimised in bfloat16; an exported model is run
    as is. Times are from resized pixels in memory to detections. Close other programs, which affect the results.

    ```
    querybox benchmark model.safetensors
    querybox benchmark run model.onnx model.xml  # compare with its exported models
    querybox benchmark run --size 480x640 --batch-size 8 --json > speed.json
    querybox benchmark run --tune                  # find the fastest engine, for querybox predict --tuned
    ```

    Args:
        models: Checkpoints of any layout, run folders, exported models: .onnx, .xml (OpenVINO), .pt2 (PyTorch), .pte
            (ExecuTorch).
        size: Height x width of the images; by default that of a 4:3 photo as resized for the first model.
        batch_size: Images per forward pass.
        json: Print JSON instead of a table.
        trust: Trust the source of a .pt2 or .pte file, which may execute code.
        tune: Find the fastest engine (PyTorch, ONNX Runtime, OpenVINO), precision (float32; bf16 where the CPU computes
            it natively) and number of threads for the first model, and remember them in the user's cache folder for
            --tuned of other commands. Further models are exports of the first to measure as well, such as one in
            int8. It takes one minute, besides the time for exporting the model.
    """
    from querybox.benchmark import benchmark as run
    from querybox.checkpoints.find import find_weights, is_exported
    from querybox.terminal import Console

    if not models:
        raise ConfigError(
            "querybox benchmark got no model; expected a checkpoint, a run folder or an exported model"
        )
    if tune:
        tune_model(models[0], models[1:], size, json=json)
        return
    paths = [path if is_exported(path) else find_weights(path) for path in models]
    shape = None if size is None else parse_size(size)
    with Console(stderr=True).status("Measuring"):
        result = run(paths, size=shape, batch_size=batch_size, trusted=trust)
    if json:
        print_json(dataclasses.asdict(result), indent=2)
    else:
        Console().print(results_table(result))


def tune_model(model: Path, exported: Sequence[Path], size: str | None, *, json: bool) -> None:
    """Find the fastest engine for a model and print what was measured."""
    from pydantic import TypeAdapter

    from querybox.checkpoints.find import find_weights
    from querybox.terminal import Console
    from querybox.tuning import Tuning, tune

    shape = None if size is None else parse_size(size)
    with Console(stderr=True).status("loading") as status:
        tuning = tune(find_weights(model), exported, size=shape, callback=status.update)
    if json:
        print_json(TypeAdapter(Tuning).dump_python(tuning, mode="json"), indent=2)
        return
    Console().print(tuning_table(tuning))
    for each in tuning.measurements:
        if each.note:
            print_text(f"{each.candidate}: not chosen: {each.note}")
    print_text(
        f"Chosen: {tuning.choice.candidate}. Use it: querybox predict {quote(str(model))} IMAGES --tuned"
    )


def tuning_table(tuning: Tuning) -> Table:
    """Show one row per engine that was measured."""
    height, width = tuning.choice.size
    rows = [
        (
            str(each.candidate),
            f"{1e3 * each.seconds:.1f}",
            f"{each.ratio:.2f}x",
            f"{each.scores:.1g}",
            f"{each.boxes:.1g}",
        )
        for each in tuning.measurements
        if each.seconds is not None
    ]
    heads = ["engine", "ms per image", "speed", "difference of scores", "of boxes"]
    return table(f"one image of {height}x{width}", heads, rows, numeric=range(1, 5))


def results_table(result: BenchmarkResult) -> Table:
    """Show one row per engine; the title states what they have in common."""
    facts = [
        f"batch {result.batch_size} of {result.size[0]}x{result.size[1]}",
        result.device,
        f"{result.threads} threads",
    ]
    if result.parameters is not None and result.flops is not None:
        facts += [f"{result.parameters / 1e6:.2f} M parameters", f"{result.flops / 1e9:.1f} GFLOPs per image"]
    rows = [
        (
            each.name,
            f"{1e3 * each.seconds:.1f}",
            " - ".join(f"{1e3 * quartile:.1f}" for quartile in each.quartiles),
            f"{each.images_per_second:.2f}",
            "-" if each.peak_memory is None else f"{each.peak_memory / 1e6:.0f}",
            f"{each.load_seconds:.2f}",
        )
        for each in result.engines
    ]
    heads = ["engine", "ms per batch", "quartiles", "images / s", "peak memory, MB", "load, s"]
    return table(", ".join(facts), heads, rows, numeric=range(1, 6))
