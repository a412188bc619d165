"""``train.compile``: with Dynamo alone, whose graphs are run as they are; no compiler takes part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from programs import run_program

from querybox.training import RunSettings

PROGRAM = """
import csv, sys
from pathlib import Path

import torch

from querybox.errors import ConfigError
from querybox.training import RunSettings, train

graphs = []
compiled = torch.compile


def count(graph, _):
    graphs.append(graph)
    return graph.forward


def fail(graph, _):
    raise RuntimeError("no C++ compiler")


def run(output, *, compile, backend=count):
    torch.compile = lambda function, **options: compiled(function, backend=backend, **options)
    settings = RunSettings.model_validate_json(Path(sys.argv[1]).read_text())
    train(settings.replace(output=output, train=settings.train.replace(compile=compile)))
    with open(f"{output}/metrics.csv", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


plain = run("plain", compile=False)
assert not graphs
fast = run("compiled", compile=True)
assert 1 <= len(graphs) <= 2, len(graphs)  # for all sizes; of the last batch, which is smaller, too
assert all(abs(a / b - 1) < 1e-4 for a, b in zip(fast, plain, strict=True)), (fast, plain)
torch._dynamo.reset()
try:
    run("failed", compile=True, backend=fail)
except ConfigError as error:
    assert "train.compile" in str(error) and "no C++ compiler" in str(error), error
else:
    raise AssertionError("nothing was said")
"""


def test_the_backbone_is_compiled_once_for_all_sizes(
    run_settings: Callable[..., RunSettings], tmp_path: Path
) -> None:
    """In a program of its own, where no shapes are checked: the checks would be compiled too."""
    settings = run_settings(epochs=1, batch_size=3)
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    run_program(PROGRAM, tmp_path, "settings.json")
