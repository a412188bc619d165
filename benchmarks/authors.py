"""Compare a detector with its authors' code: ``python -m benchmarks.authors CHECKOUT CONFIG``.

CHECKOUT is a checkout of Peterande/D-FINE or ShihuaHuang95/DEIM, or the folder ``rtdetrv2_pytorch`` of
lyuwenyu/RT-DETR; CONFIG is one of its YAML files. The authors' model gets random weights and is saved as their training
saves it; querybox reads the file, and both models see the same image, in float64. Fails if their predictions differ.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn

import querybox
from querybox import Detector
from querybox.structures import ImageBatch

MAX_DIFFERENCE = 1e-6
"""Of logits, and of boxes in 0-1; some constants of the authors' models are in float32."""
SIDE = 640
UNUSED = frozenset({"calflops", "faster_coco_eval", "loguru"})
"""Packages that the authors' code imports and their models do not use."""


class UnusedPackages(MetaPathFinder, Loader):
    """Finds empty modules, whose attributes are empty classes, in place of `UNUSED`."""

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        """Return the specification of an empty module; None for other packages."""
        return ModuleSpec(fullname, self, is_package=True) if fullname.split(".")[0] in UNUSED else None

    def exec_module(self, module: ModuleType) -> None:
        """Let the module have any public attribute."""
        vars(module)["__getattr__"] = empty_class


def empty_class(name: str) -> type:
    """Return a class of this name, as an attribute of a module (PEP 562)."""
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


def authors_model(checkout: Path, config: str) -> Any:
    """Return the model of a config of the authors, with random weights."""
    sys.meta_path.append(UnusedPackages())
    sys.path.insert(0, str(checkout))
    core: Any = importlib.import_module("engine.core" if is_deim(checkout) else "src.core")
    settings = core.YAMLConfig(str(checkout / config))
    for backbone in ("HGNetv2", "PResNet"):
        settings.yaml_cfg.get(backbone, {})["pretrained"] = False
    return randomized(settings.model.eval())


def is_deim(checkout: Path) -> bool:
    """Return whether a checkout is that of DEIM, whose decoders have SiLU, which no file states."""
    return (checkout / "engine").is_dir()


@torch.no_grad()
def randomized(model: nn.Module) -> nn.Module:
    """Give weights that are zero, and the statistics of batch norms, random values, so that each makes a difference."""
    noise = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.is_floating_point() and (parameter.ndim > 1 or not parameter.any()):
            parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.02)
    for name, statistics in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            statistics.add_(torch.rand(statistics.shape, generator=noise))
    return model


def read(model: nn.Module, activation: Literal["relu", "silu"]) -> Detector:
    """Return the detector that querybox reads from a checkpoint of the authors."""
    state = model.state_dict()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pth"
        torch.save({"last_epoch": 0, "model": state, "ema": {"module": state, "updates": 1}}, path)
        detector = querybox.load(path, activation=activation)
    assert isinstance(detector, Detector)
    return detector


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare both models and print the differences; return 1 if they are too large."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.authors", description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("config")
    args = parser.parse_args(arguments)
    if not (args.checkout / args.config).is_file():
        parser.error(f"{args.checkout / args.config}: no such file; expected a YAML file of the checkout")
    torch.manual_seed(0)
    theirs = authors_model(args.checkout, args.config)
    ours = read(theirs, "silu" if is_deim(args.checkout) else "relu").double()
    pixels = torch.rand(1, 3, SIDE, SIDE, dtype=torch.float64)
    batch = ImageBatch(
        images=pixels,
        padding_mask=torch.zeros(1, SIDE, SIDE, dtype=torch.bool),
        sizes=torch.tensor([[SIDE, SIDE]]),
    )
    with torch.inference_mode():
        expected, found = theirs.double()(pixels), ours(batch).layers[-1]
    logits = (found.logits - expected["pred_logits"]).abs().max()
    boxes = (found.boxes - expected["pred_boxes"]).abs().max()
    print(f"{args.config}: logits differ by {logits:.1e}, boxes by {boxes:.1e}")
    return int(max(logits, boxes) > MAX_DIFFERENCE)


if __name__ == "__main__":
    sys.exit(main())
