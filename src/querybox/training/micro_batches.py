"""The number of micro-batches that an update has to be divided into to fit into memory (`train.accumulate=auto`).

Steps with one and with two images are measured with a copy of the detector, and the memory of larger micro-batches
follows, because it grows by the same amount with each image.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from querybox.data import DataSettings, DetectionData
from querybox.errors import ConfigError, OutOfMemoryError
from querybox.fast.memory import release_freed_memory
from querybox.fast.training import for_training
from querybox.memory import available_memory, is_out_of_memory, peak_memory, reset_peak
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
GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMemory:
    """Memory of a training step beyond the model, in bytes."""

    one: int
    """With one image."""
    each: int
    """With each further image; more than there is if two do not fit."""

    def of(self, images: int) -> int:
        """Return the memory of a step with so many images."""
        return self.one + (images - 1) * self.each


def with_micro_batches(
    settings: RunSettings,
    training: DetectionData,
    detector: DetectionTransformer,
    criterion: nn.Module,
    accelerator: Accelerator,
) -> tuple[RunSettings, str]:
    """Set `train.accumulate` if it is `auto`.

    Returns:
        The settings, and what was chosen and why in one line, empty if nothing was.

    Raises:
        ConfigError: The system does not report the memory of a process.
        OutOfMemoryError: Not even the smallest micro-batch fits.
    """
    if settings.train.accumulate != "auto":
        return settings, ""
    from accelerate.utils import gather_object

    objects = max((len(image.boxes_xyxy) for image in training.images), default=0)
    memory = measure_step(detector, criterion, settings.data, objects, accelerator)
    available = int(SHARE * available_on(accelerator))
    total = settings.train.batch_size // accelerator.num_processes
    own = fewest_micro_batches(memory, total, available, smallest=2 if settings.data.mixup else 1)
    parts = max(gather_object([own]))
    train = {**settings.train.model_dump(exclude_unset=True), "accumulate": parts}
    return settings.replace(train=train), (
        f"{counted(parts, 'micro-batch', 'micro-batches')} of {counted(total // parts, 'image')} per update "
        f"(train.accumulate): an image takes {memory.each / GB:.2f} GB, and {available / GB:.1f} GB can be used"
    )


def fewest_micro_batches(memory: StepMemory, total: int, available: int, *, smallest: int) -> int:
    """Return the smallest number of equal micro-batches, `total` images together, that fit into `available` bytes.

    Raises:
        OutOfMemoryError: Not even those of `smallest` images fit, or of the next larger number that divides `total`.
    """
    counts = [parts for parts in range(1, total + 1) if total % parts == 0 and total // parts >= smallest]
    if not counts:  # fewer images than mixup needs: an error of `train_loader`
        return 1
    for parts in counts:
        if memory.of(total // parts) <= available:
            return parts
    least = total // counts[-1]
    raise OutOfMemoryError(
        f"there is not enough memory: a step with {counted(least, 'image')} takes {memory.of(least) / GB:.1f} GB, and "
        f"{available / GB:.1f} GB can be used; set a smaller 'data.image_size' or model"
    )


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
) -> StepMemory:
    """Measure the memory of steps with one and two of the largest training images.

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
    try:
        _, one, two = (step_memory(model, data, images, objects, accelerator) for images in (1, 1, 2))
    finally:
        del model, copied
        release_freed_memory()
    states = STATES * trained + sum(each.nbytes for each in detector.parameters()) * (device.type == "cuda")
    return StepMemory(one=one + states, each=max(0, two - one))


def step_memory(
    model: DetectionLoss, data: DataSettings, images: int, objects: int, accelerator: Accelerator
) -> int:
    """Return the bytes that a forward and a backward pass take beyond the model, the gradients included."""
    device, detector = accelerator.device, model.detector
    sizes = data.sizes()
    short = max(sizes.scales)
    long = round(short * sizes.long_side / sizes.short_side) if data.stretch else sizes.long_side
    pixels = torch.zeros(images, 3, short, long, dtype=torch.uint8, device=device)
    shapes = torch.tensor([[short, long]] * images, device=device)
    target = Target(
        boxes=torch.full((objects, 4), 0.5, device=device),
        labels=torch.zeros(objects, dtype=torch.int64, device=device),
        masks=None
        if detector.mask_head is None
        else torch.ones(objects, short, long, dtype=torch.bool, device=device),
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
