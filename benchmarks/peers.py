"""The other implementations with querybox's weights: facebookresearch/detr and Hugging Face transformers."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Absent
from benchmarks.setup import NUM_CLASSES
from querybox.checkpoints.convert import convert
from querybox.detector import Detector
from querybox.models.layouts.facebook import FACEBOOK as FACEBOOK_LAYOUT
from querybox.models.layouts.huggingface import HUGGINGFACE
from querybox.structures import ImageBatch, Target

FACEBOOK, TRANSFORMERS = "facebookresearch", "transformers"


@contextmanager
def importable(checkout: Path | None) -> Iterator[None]:
    """Make the modules of a facebookresearch checkout importable; they are not in a package.

    Raises:
        Absent: There is no checkout.
    """
    if checkout is None or not (checkout / "models" / "detr.py").is_file():
        raise Absent("needs a checkout of facebookresearch/detr: --facebook PATH")
    sys.path.insert(0, str(checkout))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the code is old
            yield
    finally:
        sys.path.remove(str(checkout))


def facebook(checkout: Path | None, detector: Detector | None = None) -> tuple[Any, Any]:
    """Return facebookresearch's DETR R50 and criterion, with the detector's weights or random ones.

    Raises:
        Absent: There is no checkout.
    """
    with importable(checkout):
        options = importlib.import_module("main").get_args_parser().parse_args(["--device", "cpu"])
        # The main process downloads ImageNet weights, which are not needed.
        vars(importlib.import_module("models.backbone"))["is_main_process"] = lambda: False
        model, criterion, _ = importlib.import_module("models").build_model(options)
    if detector is not None:
        model.load_state_dict(FACEBOOK_LAYOUT.to_theirs(detector.state_dict()))
    return model, criterion


def nested(batch: ImageBatch) -> Any:
    """Return a batch in the format of facebookresearch's model."""
    return sys.modules["util.misc"].NestedTensor(batch.images, batch.padding_mask)


def facebook_targets(targets: Sequence[Target]) -> list[dict[str, torch.Tensor]]:
    """Return targets in the format of facebookresearch's criterion."""
    return [{"boxes": target.boxes, "labels": target.labels} for target in targets]


def transformers(detector: Detector | None = None) -> Any:
    """Return transformers' DETR R50, with the detector's weights or random ones."""
    from transformers import DetrForObjectDetection

    model = DetrForObjectDetection(transformers_config())
    if detector is not None:
        ours = detector.state_dict()
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                own_name = next(iter(HUGGINGFACE.to_ours({name: tensor})))
                tensor.copy_(ours[own_name])
    return model


def transformers_config() -> Any:
    """Return the config of its DETR R50, with fused attention and auxiliary losses."""
    from transformers import DetrConfig

    options: dict[str, Any] = {
        "num_labels": NUM_CLASSES,
        "auxiliary_loss": True,
        "attn_implementation": "sdpa",
    }
    return DetrConfig(**options)


def transformers_from_files(detector: Detector, model_class: str, folder: Path) -> Any:
    """Return a model of transformers with the detector's weights, read from `folder`, which is written if missing."""
    import transformers

    if not folder.exists():
        source = folder.with_suffix(".safetensors")
        detector.save(source)
        convert(source, folder, to="huggingface")
    return getattr(transformers, model_class).from_pretrained(folder).eval()


def transformers_targets(targets: Sequence[Target]) -> list[dict[str, torch.Tensor]]:
    """Return targets in the format of transformers' criterion."""
    return [{"boxes": target.boxes, "class_labels": target.labels} for target in targets]
