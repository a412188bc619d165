"""Images that become unreadable during training: they are excluded from the loss and named in the run's record."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from querybox.data.training_images import TrainingImages, UnreadableImage
from querybox.diagnosis.record import add_to_record, read_record
from querybox.errors import TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


class UnreadableImages:
    """The images of a run that could not be read so far; the same in every process."""

    def __init__(self, accelerator: Accelerator, folder: Path, images: TrainingImages) -> None:
        """Start with none.

        Args:
            accelerator: The accelerator of the run.
            folder: Folder of the run; the main process writes its record.
            images: The training images, whose settings limit how many may be unreadable.
        """
        self.accelerator = accelerator
        self.folder = folder
        self.num_images = len(images)
        self.max_corrupt = images.settings.max_corrupt
        self.reasons: dict[int, str] = {}

    def resume(self) -> None:
        """Restore the images from the run's record.

        Raises:
            DataError: The record is corrupt.
        """
        self.reasons = dict(read_record(self.folder).lost)

    def add(self, images: Sequence[UnreadableImage]) -> None:
        """Record the images that could not be read in any process; every process must call this.

        Raises:
            TrainingError: Too many images are unreadable; raised in every process.
        """
        from accelerate.utils import gather_object

        new = {
            image_id: reason
            for image_id, reason in sorted(gather_object(list(images)))
            if image_id not in self.reasons
        }
        if not new:
            return
        self.reasons |= new
        if self.accelerator.is_main_process:
            for image_id, reason in new.items():
                logger.warning(
                    "image %d is excluded from the loss until it can be read: %s", image_id, reason
                )
            add_to_record(self.folder, lost=self.reasons)
        if len(self.reasons) > self.max_corrupt * self.num_images:
            raise TrainingError(
                f"{len(self.reasons)} of {self.num_images} training images have become unreadable during the run, more "
                f"than data.max_corrupt = {self.max_corrupt:g} allows, the last one: {next(reversed(new.values()))}; "
                "the weights were not updated: restore the images and resume"
            )
