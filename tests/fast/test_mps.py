"""What Apple's GPUs lack: float64, and some operators. Recorded on the CPU, on the path of all other devices."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any
from unittest.mock import PropertyMock, patch

import pytest
import torch
import yaml
from tiny_models import TRAINABLE
from torch import Tensor
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from querybox import Detector, ImageBatch, Target
from querybox.fast.training import for_training
from querybox.inference.postprocess import postprocess

OF_THE_CPU = ("_scaled_dot_product_flash_attention_for_cpu",)
"""Operators that stand for the one of each device."""
COMPOSITE = (
    "CompositeExplicitAutograd",
    "CompositeImplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
)
TARGETS = (
    Target(boxes=torch.tensor([[0.5, 0.5, 0.2, 0.3], [0.3, 0.4, 0.2, 0.2]]), labels=torch.tensor([0, 1])),
    Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)),
)


class Recorder(TorchDispatchMode):
    """Records the operators that are called, and those that return float64."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: set[str] = set()
        self.float64: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func).removesuffix(".default")
        if name.startswith("aten."):
            self.operators.add(name.removeprefix("aten."))
        if any(isinstance(each, Tensor) and each.dtype == torch.float64 for each in tree_leaves(result)):
            self.float64.add(name)
        return result


@cache
def native_functions() -> dict[str, dict[str, Any]]:
    """Return PyTorch's declarations of its operators by name."""
    path = files("torchgen").joinpath("packaged", "ATen", "native", "native_functions.yaml")
    entries = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
    return {entry["func"].partition("(")[0]: entry for entry in entries}


def runs_on_mps(name: str) -> bool:
    entry = native_functions()[name]
    if delegate := entry.get("structured_delegate"):
        return runs_on_mps(delegate)
    keys = {key.strip() for keys in entry.get("dispatch", {}) for key in keys.split(",")}
    return not keys or "MPS" in keys or any(key in keys for key in COMPOSITE)


def test_the_list_of_operators_is_read() -> None:
    assert runs_on_mps("add.Tensor")
    assert not runs_on_mps("sparse_sampled_addmm.out")


@pytest.mark.parametrize(
    "recipe", ["detr_r50", "conditional_detr_r50", "deformable_detr_r50_two_stage", "dino_r50"]
)
def test_training_and_prediction_need_neither_float64_nor_a_missing_operator(recipe: str) -> None:
    detector = Detector.from_recipe(recipe, num_classes=2, **TRAINABLE)
    assert detector.recipe is not None
    criterion = detector.recipe.criterion()
    with patch.object(Detector, "device", PropertyMock(return_value=torch.device("mps"))):
        model = for_training(detector.train())
    pixels = [torch.full((3, *size), 90, dtype=torch.uint8) for size in ((96, 128), (64, 96))]
    batch = ImageBatch.from_images(pixels, detector.preprocessing, device=torch.device("cpu"))
    optimizer = AdamW(model.parameters(), fused=True)
    with Recorder() as recorder:
        losses = criterion(model(batch, TARGETS), TARGETS)
        sum(losses.values(), torch.zeros(())).backward()
        optimizer.step()
        with torch.inference_mode():
            last = detector.eval()(batch).layers[-1]
            postprocess(last, batch.sizes, top_k=10, clip_boxes=True)
    assert "convolution_backward" in recorder.operators
    assert not recorder.float64
    assert not [
        name for name in sorted(recorder.operators) if not (name.startswith(OF_THE_CPU) or runs_on_mps(name))
    ]
