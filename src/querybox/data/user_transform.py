"""Augmentation that the user provides: a transform of `torchvision.transforms.v2` or of Albumentations."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from querybox.data.transforms import Sample
from querybox.data.windows import clipped
from querybox.errors import ConfigError, ImageError
from querybox.pixels import as_pixels

CONVENTION = (
    "expected a transform of torchvision.transforms.v2, which is called with an image and "
    '{"boxes": ..., "labels": ...} and returns both, or a Compose of Albumentations'
)
BBOX_PARAMS = 'bbox_params=A.BboxParams(format="pascal_voc", label_fields=["labels"])'
"""What a Compose of Albumentations needs to transform boxes and their labels."""


class UserTransform:
    """Applies a user's transform to training images, and checks what it returns.

    The random numbers of PyTorch, NumPy, Python and Albumentations that it uses depend on the image, the epoch and the
    seed of the run, and the global generators are left as they were.

    Args:
        transform: A callable, see `CONVENTION`.
        classes: Number of classes.
        pickled: Whether worker processes receive it.

    Raises:
        ConfigError: It is not such a callable, or cannot be pickled.
    """

    def __init__(self, transform: Any, classes: int, *, pickled: bool) -> None:
        self.transform = transform
        self.classes = classes
        if not callable(transform):
            raise ConfigError(f"transform: got {transform!r}; {CONVENTION}")
        self.call = call_torchvision
        if type(transform).__module__.partition(".")[0] == "albumentations":
            check_albumentations(transform)
            self.call = call_albumentations
        if pickled:
            check_picklable(transform)

    def __call__(self, sample: Sample, rng: np.random.Generator, where: str) -> Sample:
        """Return the transformed image and its objects, clipped to it; those below one pixel are dropped.

        Args:
            sample: The image and its objects.
            rng: Source of the seed of all random numbers.
            where: The image, for messages.

        Raises:
            ConfigError: The transform failed, or returned something that cannot be trained on.
        """
        seed = int(rng.integers(2**32))
        try:
            with seeded(seed):
                if hasattr(self.transform, "set_random_seed"):  # Albumentations 2 has generators of its own
                    self.transform.set_random_seed(seed)
                own = copy.deepcopy(sample)  # may be changed in place
                transformed = self.call(self.transform, own)
        except ConfigError as error:
            raise ConfigError(f"transform: on {where}: {error}") from error
        except Exception as error:
            raise ConfigError(
                f"transform: failed on {where} ({type(error).__name__}: {error}); {CONVENTION}"
            ) from error
        labels = transformed.labels
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise ConfigError(
                f"transform: on {where}: returned the labels {sorted(set(labels.tolist()))}; expected labels in "
                f"0 to {self.classes - 1}"
            )
        return clipped(transformed)


def call_torchvision(transform: Callable[..., Any], sample: Sample) -> Sample:
    """Call a transform as those of `torchvision.transforms.v2` are called.

    Raises:
        ConfigError: It returned something else, or boxes that do not belong to the image.
    """
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional as F

    shape = tuple(sample.pixels.shape[-2:])
    boxes: Any = tv_tensors.BoundingBoxes(
        sample.boxes_xyxy, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=shape
    )
    given = {"boxes": boxes, "labels": sample.labels}
    if sample.masks is not None:
        given["masks"] = tv_tensors.Mask(sample.masks)
    result = transform(tv_tensors.Image(sample.pixels), given)
    if not (isinstance(result, tuple | list) and len(result) == 2 and isinstance(result[1], dict)):
        raise ConfigError(f"returned a {type(result).__name__}; expected (image, target)")
    image, target = result
    boxes, labels = target.get("boxes"), target.get("labels")
    if not isinstance(boxes, tv_tensors.BoundingBoxes):
        raise ConfigError(
            f"returned a target with {type(boxes).__name__} as 'boxes'; expected torchvision.tv_tensors.BoundingBoxes: "
            "remove ToPureTensor, and wrap what your own functions return"
        )
    boxes = F.convert_bounding_box_format(boxes, new_format=tv_tensors.BoundingBoxFormat.XYXY)
    masks = None if sample.masks is None else target.get("masks")
    if masks is None and sample.masks is not None:
        raise ConfigError(
            "returned a target without 'masks', which the model is trained on; expected those of the objects: "
            "transform and drop them with the boxes"
        )
    return as_sample(image, boxes.as_subclass(torch.Tensor), labels, boxes.canvas_size, masks)


def call_albumentations(transform: Callable[..., Any], sample: Sample) -> Sample:
    """Call a Compose of Albumentations.

    Raises:
        ConfigError: It returned something that cannot be trained on.
    """
    pixels = np.ascontiguousarray(sample.pixels.permute(1, 2, 0).numpy())
    height, width = pixels.shape[:2]
    corners = sample.boxes_xyxy.double().numpy().clip(0, [width, height] * 2)
    masks = {} if sample.masks is None else {"masks": list(sample.masks.byte().numpy())}
    # With masks, of which it drops none, the labels are indices of the objects.
    labels = sample.labels.numpy() if sample.masks is None else np.arange(len(sample.labels))
    result = transform(image=pixels, bboxes=corners, labels=labels, **masks)
    boxes = torch.from_numpy(np.array(result["bboxes"], dtype=np.float64).reshape(-1, 4))
    kept = torch.from_numpy(np.array(result["labels"], dtype=np.int64).reshape(-1))
    if sample.masks is None:
        return as_sample(result["image"], boxes, kept, None)
    shape = (0, *result["image"].shape[:2])
    stacked = torch.from_numpy(
        np.stack(result["masks"]) if len(result["masks"]) else np.zeros(shape, dtype=bool)
    )
    return as_sample(result["image"], boxes, sample.labels[kept], None, stacked[kept].bool())


def as_sample(
    image: Any,
    boxes: torch.Tensor,
    labels: Any,
    canvas_size: tuple[int, int] | None,
    masks: Any = None,
) -> Sample:
    """Check what a transform returned, and return it as a sample.

    Args:
        image: The image.
        boxes: Corners in pixels.
        labels: The labels.
        canvas_size: (height, width) of the image that the boxes belong to, if it is known.
        masks: Pixels of each object, if the image has them.

    Raises:
        ConfigError: The image is not 8-bit RGB, the boxes or the masks belong to an image of another size, or their
            number is not that of the labels.
    """
    try:
        pixels = as_pixels(image.as_subclass(torch.Tensor) if isinstance(image, torch.Tensor) else image)
    except ImageError as error:
        raise ConfigError(
            f"{error}. querybox normalises images itself: remove ToDtype, ToFloat and Normalize"
        ) from None
    height, width = pixels.shape[-2:]
    # After torchvision's own rotation they differ by a pixel, or are those before it if there are no boxes.
    stated = canvas_size if canvas_size and len(boxes) else (height, width)
    if max(abs(stated[0] - height), abs(stated[1] - width)) > 1:
        raise ConfigError(
            f"returned an image of {height}x{width} (height x width) and boxes of one of {stated[0]}x"
            f"{stated[1]}; expected those of the same image: transform both in one call"
        )
    if not isinstance(labels, torch.Tensor) or len(labels) != len(boxes) or labels.is_floating_point():
        count = f"{len(labels)} labels" if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise ConfigError(
            f"returned {len(boxes)} boxes and {count}; expected one integer label for each box: boxes that are dropped "
            "have to be dropped with their labels, as SanitizeBoundingBoxes does"
        )
    if not boxes.isfinite().all():
        raise ConfigError("returned boxes that are NaN or infinite")
    if masks is not None:
        masks = torch.as_tensor(masks).as_subclass(torch.Tensor).bool()
        if masks.shape != (len(boxes), height, width):
            raise ConfigError(
                f"returned masks {list(masks.shape)} with {len(boxes)} boxes and an image of {height}x{width}; "
                "expected a mask for each box, of the size of the image: transform and drop them with the boxes"
            )
    return Sample(pixels, boxes.float(), labels.long(), masks)


def check_albumentations(transform: Any) -> None:
    """Check that a transform of Albumentations is one that returns boxes and labels.

    Raises:
        ConfigError: It is not.
    """
    processor = getattr(transform, "processors", {}).get("bboxes")
    params = getattr(processor, "params", None)
    if params is None or params.format != "pascal_voc" or list(params.label_fields or ()) != ["labels"]:
        raise ConfigError(
            f"transform: got {describe(transform)}, which does not return boxes with their labels; expected "
            f"A.Compose([...], {BBOX_PARAMS})"
        )


def check_picklable(transform: Callable[..., Any]) -> None:
    """Check that a transform can be sent to worker processes.

    Raises:
        ConfigError: It cannot.
    """
    try:
        pickle.dumps(transform)
    except Exception as error:  # noqa: BLE001 - any error of a user's class
        raise ConfigError(
            f"transform: {describe(transform)} cannot be sent to the processes that load images ({error}); expected no "
            "lambdas and local functions: define them in a module, or set data.workers=0"
        ) from None


def describe(transform: Callable[..., Any]) -> str:
    """Return a description of a transform, which is the same in every process."""
    kind = transform if hasattr(transform, "__qualname__") else type(transform)
    text = " ".join(repr(transform).split())
    return f"{kind.__module__}.{kind.__qualname__}" if kind is transform or " at 0x" in text else text


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of PyTorch, NumPy and Python, and restore their states at the end."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
