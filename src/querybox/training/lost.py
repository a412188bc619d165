"""Images that go missing, or break, while a run is under way: they weigh nothing, and the run's record names them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from querybox.data.loader import Lost, TrainingImages
from querybox.diagnosis.record import add_to_record, read_record
from querybox.errors import TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


class LostImages:
    """Those of a run so far, the same in every process."""

    def __init__(self, accelerator: Accelerator, folder: Path, images: TrainingImages) -> None:
        """Begin with none.

        Args:
            accelerator: The processes.
            folder: Of the run; the first process writes its record.
            images: What the run trains on, and which share of it may be lost.
        """
        self.accelerator = accelerator
        self.folder = folder
        self.images = len(images)
        self.most = images.settings.max_corrupt
        self.reasons: dict[int, str] = {}

    def resume(self) -> None:
        """Go on from what is recorded.

        Raises:
            DataError: The record is damaged.
        """
        self.reasons = dict(read_record(self.folder).lost)

    def note(self, lost: Sequence[Lost]) -> None:
        """Write down what this and the other processes could not read; all of them call this at once.

        Raises:
            TrainingError: Too many images are lost; in every process.
        """
        from accelerate.utils import gather_object

        new = {
            image_id: reason
            for image_id, reason in sorted(gather_object(list(lost)))
            if image_id not in self.reasons
        }
        if not new:
            return
        self.reasons |= new
        if self.accelerator.is_main_process:
            for image_id, reason in new.items():
                logger.warning("image %d is lost, it weighs nothing until it is back: %s", image_id, reason)
            add_to_record(self.folder, lost=self.reasons)
        if len(self.reasons) > self.most * self.images:
            raise TrainingError(
                f"{len(self.reasons)} of {self.images} training images have been lost during the run, more than "
                f"data.max_corrupt = {self.most:g} allows, the last with {next(reversed(new.values()))}; "
                "nothing was updated: put them back and resume"
            )
