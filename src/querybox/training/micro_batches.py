"""The number of micro-batches that an update has to be divided into to fit into memory (`train.accumulate=auto`).

Steps with one and with two images are measured with a copy of the detector, and the memory of larger micro-batches
follows, because it grows by the same amount with each image. A number that is set is checked in the same way on a CPU,
where the system ends a process that takes too much memory without an error.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from querybox.data import DataSettings, DetectionData
from querybox.errors import ConfigError, OutOfMemoryError
from querybox.fast.memory import release_freed_memory
from querybox.fast.training import for_training
from querybox.memory import available_memory, is_out_of_memory, peak_memory, reports_memory, reset_peak
from querybox.modules.detector import DetectionTransformer
from querybox.structures import ImageBatch, Target
from querybox.text import counted
from querybox.training.loss import DetectionLoss
from querybox.training.settings import RunSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

SHARE = 0.75
"""Share of the available memory that a step may take; the rest is for images, workers and fragmentation. Measured on a
CPU, steps with six images took up to 9 % more than follows from two."""
STATES = 3
"""Copies of the trained parameters besides the model: two averages of AdamW and the average of the weights."""
MOST_PER_PIXEL = 2**16
"""Bytes of a step for each pixel of its images that no model takes; `dino_r50` takes 3,500."""
GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMemory:
    """Memory of a training step beyond the model, in bytes."""

    one: int
    """Memory of a step with one image."""
    each: int
    """Additional memory of each further image; larger than any memory if two images do not fit."""

    def of(self, images: int) -> int:
        """Return the memory of a step with this many images."""
        return self.one + (images - 1) * self.each


def with_micro_batches(
    settings: RunSettings,
    training: DetectionData,
    detector: DetectionTransformer,
    criterion: nn.Module,
    accelerator: Accelerator,
) -> tuple[RunSettings, str]:
    """Set `train.accumulate` if it is `auto`, otherwise check that the micro-batches fit.

    Returns:
        The settings, and one line: what was chosen and why, or a warning; empty if there is nothing to say.

    Raises:
        ConfigError: The system does not report the memory of a process.
        OutOfMemoryError: The micro-batches that are set do not fit, or not even the smallest one.
    """
    from accelerate.utils import gather_object

    objects = max((len(image.boxes_xyxy) for image in training.images), default=0)
    measured = measure_step(detector, criterion, settings.data, objects, accelerator)
    total = settings.train.batch_size // accelerator.num_processes
    smallest = 2 if settings.data.mixup else 1
    if settings.train.accumulate != "auto":
        if accelerator.device.type != "cpu" or not reports_memory(accelerator.device):
            return settings, ""  # a GPU raises an error by itself
        images = min(total // settings.train.accumulate, len(training.images))
        available = available_on(accelerator)
        if is_small(detector, settings.data, images, available):
            return settings, ""
        with closing(measured):
            return settings, check_micro_batch(measured, images, total, available, smallest=smallest)
    *_, memory = measured
    available = int(SHARE * available_on(accelerator))
    own = fewest_micro_batches(memory, total, available, smallest=smallest)
    parts = max(gather_object([own]))
    return settings.replace(train=settings.train.replace(accumulate=parts)), (
        f"{counted(parts, 'micro-batch', 'micro-batches')} of {counted(total // parts, 'image')} per update "
        f"(train.accumulate): an image takes {memory.each / GB:.2f} GB, and {available / GB:.1f} GB can be used"
    )


def is_small(detector: DetectionTransformer, data: DataSettings, images: int, available: int) -> bool:
    """Return whether a step takes so little of the `available` bytes that it need not be measured."""
    short, long = largest_shape(data)
    parameters = sum(each.nbytes for each in detector.parameters())
    return images * short * long * MOST_PER_PIXEL + (STATES + 1) * parameters <= SHARE * available


def check_micro_batch(
    measured: Iterable[StepMemory], images: int, total: int, available: int, *, smallest: int
) -> str:
    """Check that a micro-batch whose size is set fits into the main memory.

    Args:
        measured: Estimates of the memory, see `measure_step`; the next one is made only if the last one does not fit.
        images: Size of the micro-batch.
        total: Number of images per update.
        available: Memory in bytes.
        smallest: See `fewest_micro_batches`.

    Returns:
        A warning in one line if it leaves less than is needed for other purposes; empty otherwise.

    Raises:
        OutOfMemoryError: It does not fit.
    """
    memory = StepMemory(one=0, each=0)
    for memory in measured:
        if memory.of(images) <= SHARE * available:
            return ""
    taken = memory.of(images)
    found = (
        f"a step with {counted(images, 'image')} takes about {taken / GB:.1f} GB, and {available / GB:.1f} GB are "
        "available"
    )
    parts = fitting_micro_batches(memory, total, int(SHARE * available), smallest=smallest)
    cure = (
        "set a smaller 'data.image_size' or model"
        if parts is None
        else f"set train.accumulate={parts}, which computes the same update in parts"
    )
    if taken > available:
        raise OutOfMemoryError(f"there is not enough memory: {found}; {cure}")
    return f"little memory is left: {found}; if the system ends it, {cure}"


def fewest_micro_batches(memory: StepMemory, total: int, available: int, *, smallest: int) -> int:
    """Return the smallest number of equal micro-batches that fit; see `fitting_micro_batches`.

    Raises:
        OutOfMemoryError: Not even the smallest ones fit.
    """
    parts = fitting_micro_batches(memory, total, available, smallest=smallest)
    if parts is not None:
        return parts
    least = total // possible_micro_batches(total, smallest)[-1]
    raise OutOfMemoryError(
        f"there is not enough memory: a step with {counted(least, 'image')} takes {memory.of(least) / GB:.1f} GB, and "
        f"{available / GB:.1f} GB can be used; set a smaller 'data.image_size' or model"
    )


def fitting_micro_batches(memory: StepMemory, total: int, available: int, *, smallest: int) -> int | None:
    """Return the smallest number of equal micro-batches, `total` images together, that fit into `available` bytes.

    The result is None if not even those of `smallest` images fit, or of the next larger number that divides `total`.
    """
    possible = possible_micro_batches(total, smallest)
    if not possible:  # fewer images than mixup needs: an error of `train_loader`
        return 1
    return next((parts for parts in possible if memory.of(total // parts) <= available), None)


def possible_micro_batches(total: int, smallest: int) -> list[int]:
    """Return into how many equal micro-batches of at least `smallest` images `total` images can be divided."""
    return [parts for parts in range(1, total + 1) if total % parts == 0 and total // parts >= smallest]


def available_on(accelerator: Accelerator) -> int:
    """Return the bytes that this process can use on the device: that of a GPU, or its share of the main memory."""
    if accelerator.device.type != "cuda":
        return available_memory() // accelerator.num_processes
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(accelerator.device)
    return int(free)


def measure_step(
    detector: DetectionTransformer,
    criterion: nn.Module,
    data: DataSettings,
    objects: int,
    accelerator: Accelerator,
) -> Generator[StepMemory, None, None]:
    """Measure the memory of steps with the largest training images.

    Yields:
        An upper bound, of the first step with one image, in which libraries allocate memory that they keep; then an
        estimate, of further steps with one and two images, unless the main memory might not be enough for two.

    Args:
        detector: The detector, which is not changed.
        criterion: Its criterion.
        data: The settings of the images.
        objects: Number of objects in each image.
        accelerator: The accelerator of the run.

    Raises:
        ConfigError: The system does not report the memory of a process.
    """
    device = accelerator.device
    copied = copy.deepcopy(detector).to(device).to(memory_format=torch.channels_last).train()
    model = DetectionLoss(for_training(copied), criterion)
    trained = sum(each.nbytes for each in copied.parameters() if each.requires_grad)
    states = STATES * trained + sum(each.nbytes for each in detector.parameters()) * (device.type == "cuda")
    try:
        first = step_memory(model, data, 1, objects, accelerator)
        yield StepMemory(one=first + states, each=first)
        if device.type == "cpu" and 2 * first > available_on(accelerator):
            return
        one, two = (step_memory(model, data, images, objects, accelerator) for images in (1, 2))
    finally:
        del model, copied
        release_freed_memory()
    yield StepMemory(one=one + states, each=max(0, two - one))


def largest_shape(data: DataSettings) -> tuple[int, int]:
    """Return the sides of the largest training images in pixels."""
    sizes = data.sizes()
    short = max(sizes.scales)
    long = round(short * sizes.long_side / sizes.short_side) if data.stretch else sizes.long_side
    return short, long


def step_memory(
    model: DetectionLoss, data: DataSettings, images: int, objects: int, accelerator: Accelerator
) -> int:
    """Return the bytes that a forward and a backward pass take beyond the model, the gradients included."""
    device, detector = accelerator.device, model.detector
    short, long = largest_shape(data)
    pixels = torch.zeros(images, 3, short, long, dtype=torch.uint8, device=device)
    shapes = torch.tensor([[short, long]] * images, device=device)
    masks = None
    if detector.mask_head is not None:
        masks = torch.ones(objects, short, long, dtype=torch.bool, device=device)
    target = Target(
        boxes=torch.full((objects, 4), 0.5, device=device),
        labels=torch.zeros(objects, dtype=torch.int64, device=device),
        masks=masks,
    )
    release_freed_memory()
    before = reset_peak(device)
    try:
        with accelerator.autocast():
            losses = model(ImageBatch.from_pixels(pixels, shapes, detector.preprocessing), [target] * images)
        torch.stack(list(losses.values())).sum().backward()
    except RuntimeError as error:
        if images == 1 or not is_out_of_memory(error):
            raise
        return 2**62
    finally:
        model.zero_grad()
    taken = peak_memory(device, before)
    if taken is None:
        raise ConfigError(
            "train.accumulate is 'auto', but this system does not report the memory of a process; set a number"
        )
    return taken
