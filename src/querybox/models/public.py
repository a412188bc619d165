"""Public weights, which have short names wherever weights are taken."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True, slots=True)
class PublicWeights:
    """Weights that others have published; each kind lists its own. Numbers are those of their authors."""

    source: str
    """``hf://owner/name``, which is downloaded, or the address of a file or page from which users download them."""
    AP: float
    """AP of boxes on COCO's val2017, in percent."""
    parameters: int
    """Number of parameters in millions."""
    gflops: int | None
    """GFLOPs for one image, in which a multiplication and an addition count as two for RT-DETR and its relatives and as
    one for the others; None if the authors do not state it."""
    AP_masks: float | None = None
    """AP of masks on COCO's val2017, in percent; None without masks."""
    PQ: float | None = None
    """Panoptic quality on COCO's val2017, in percent, by the authors' code; None without masks."""
    license: str = "Apache-2.0"
    trained_on: str = "COCO"
    not_stated: str = ""
    """Arguments of `querybox.load` that their file does not state."""

    @property
    def on_hub(self) -> bool:
        """Whether they are on the Hugging Face Hub in a layout that querybox reads."""
        return self.source.startswith("hf://")


panoptic = partial(PublicWeights, trained_on="COCO panoptic, with the classes of stuff")
objects365 = partial(PublicWeights, trained_on="Objects365, which has terms of its own, then COCO")
