"""The data of a run: checked before its first step, and required to stay the same when it is resumed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Self

from pydantic import ValidationError

from querybox.checkpoints.find import LAST
from querybox.data import DetectionData, read_train_and_val
from querybox.data.deep import DeepValues
from querybox.data.holdout import divide, hold_out
from querybox.data.records import log_warnings, require_usable
from querybox.data.scan import examine_images, with_observations
from querybox.data.settings import NO_VALIDATION
from querybox.data.validate import VALIDATION, SplitReport, with_dataset_findings
from querybox.errors import ConfigError, DataError
from querybox.evaluation.evaluate import labels_by_name
from querybox.files import write_text
from querybox.settings import type_adapter
from querybox.text import counted, listed, to_json
from querybox.training.settings import RunSettings
from querybox.urls import is_url

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

HELD_OUT = "held_out.txt"
"""Name of the file in the run folder that lists the held-out images, one path per line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Identifies the content of a split, so that a resumed run can check that it has not changed."""

    digest: str
    """Hash of the images that are used and their objects."""
    classes: tuple[str, ...]
    left_out: tuple[int, ...]
    """Ids of the images that could not be read and are excluded."""
    images: int | None = None
    """Number of images that are used; None in early files."""
    objects: int | None = None
    """Number of their objects; None in early files."""
    held_out: tuple[int, ...] = ()
    """Ids of the images of a split that was held out of the training data; empty for others, and in early files."""

    @classmethod
    def of(cls, data: DetectionData, *, held_out: bool) -> Self:
        """Compute the fingerprint of a split whose images have been checked."""
        ids = {image.id for image in data.images} | set(data.excluded)
        return cls(
            digest=digest(data),
            classes=class_names(data),
            left_out=tuple(sorted(data.excluded)),
            images=len(data.images),
            objects=data.num_objects,
            held_out=tuple(sorted(ids)) if held_out else (),
        )

    def restore(self, data: DetectionData, folder: Path) -> DetectionData:
        """Return the images of `data` that the run in `folder` uses, after reading the dataset again.

        Raises:
            DataError: The split has changed.
        """
        used = data.only({image.id for image in data.images} - set(self.left_out))
        same_classes = class_names(data) == self.classes
        if same_classes and digest(used) == self.digest:
            return used
        if not same_classes:
            change = f"its classes were {listed(self.classes)} and are now {listed(class_names(data))}"
        elif self.images is not None and (self.images, self.objects) != (len(used.images), used.num_objects):
            change = (
                f"it had {counted(self.images, 'image')} with {self.objects} objects and has now "
                f"{counted(len(used.images), 'image')} with {used.num_objects}"
            )
        else:
            change = "its images or their objects are different"
        raise DataError(
            f"{data.source}: has changed since the run in {folder} began: {change}; restore it, or start a new run "
            f"from the weights of this one, which keeps classes by name: --weights {quote(str(folder / LAST))}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """The training and validation data of a run, whose images have not been checked."""

    training: DetectionData
    validation: DetectionData | None
    held_out: bool = False
    """Whether the validation data is a part of the dataset that was held out because it has no validation split."""

    @property
    def num_images(self) -> int:
        """Number of images in both."""
        return len(self.training.images) + (len(self.validation.images) if self.validation else 0)

    def describe(self, settings: RunSettings) -> str | None:
        """Return what the run is validated on in one line, if this is not what the data says; None otherwise."""
        if self.held_out:
            assert self.validation is not None
            count = len(self.validation.images)
            return (
                f"{self.training.source}: has no validation split; {count} of {self.num_images} images are held out "
                f"(data.val_fraction = {settings.data.val_fraction:g}), see {settings.folder / HELD_OUT}"
            )
        if self.validation is None:
            is_set = settings.data.val == NO_VALIDATION
            cure = "remove data.val=none" if is_set else "add images with objects, or set data.val"
            found = "NO VALIDATION: the run will end without AP, best weights and report"
            return f"{self.training.source}: {found}; {cure}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """The training and validation data of a run."""

    training: DetectionData
    validation: DetectionData | None
    held_out: bool
    """See `Splits`."""
    fingerprints: Mapping[str, Fingerprint]
    """Fingerprints by split, ``train`` and ``val``."""
    reports: Mapping[str, SplitReport]
    """Validation results by split; empty if a resumed run has them already."""
    deep: Sequence[DeepValues]
    """Pixel values of the training images with more than 8 bits; empty if a resumed run has checked the images."""

    def write(self, folder: Path) -> None:
        """Write ``validation.json`` and the list of held-out images, unless a resumed run has them."""
        if not self.reports:
            return
        if self.held_out:
            assert self.validation is not None
            write_text(folder / HELD_OUT, "".join(f"{image.file}\n" for image in self.validation.images))
        content = {
            name: {"fixed": asdict(self.fingerprints[name]), **report.to_json()}
            for name, report in self.reports.items()
        }
        write_text(folder / VALIDATION, to_json(content, indent=1) + "\n")


def read_splits(settings: RunSettings, *, resume: bool, written: Collection[str] = ()) -> Splits:
    """Read the annotations of the training and the validation data; without validation data, hold out a part.

    Nothing is held out of a dataset with too few images with objects. A resumed run that was started without validation
    data goes on without.

    Args:
        settings: The settings of the run.
        resume: Whether it is resumed.
        written: Names of the settings that the user has written; see `Given.written`.

    Raises:
        ConfigError: A fraction to hold out is set for a dataset with validation data.
        DataError: A dataset cannot be read.
    """
    if resume:
        require_places(settings)
    training, validation = read_train_and_val(settings.data)
    if validation is not None and "data.val_fraction" in written:
        raise ConfigError(
            f"setting data.val_fraction has no effect with the validation data in {validation.source}, because nothing "
            "is held out then: omit data.val_fraction"
        )
    known = read_fingerprints(settings.folder / VALIDATION) if resume else {}
    if validation is not None or settings.data.val == NO_VALIDATION or (known and "val" not in known):
        return Splits(training=training, validation=validation)
    if len(training.images) < 2:
        return Splits(training=training, validation=None)
    if known and known["val"].held_out:
        rest, validation = divide(training, set(known["val"].held_out))
    else:
        rest, validation = hold_out(training, settings.data.val_fraction)
        if not validation.num_objects:
            return Splits(training=training, validation=None)
    return Splits(training=rest, validation=validation, held_out=True)


def check_masks(data: DetectionData, settings: RunSettings, written: Collection[str]) -> None:
    """Check that there are masks to train a mask head with, and warn if there are none for that of the weights.

    Args:
        data: The training images.
        settings: The resolved settings of the run.
        written: Names of the settings that the user has written; see `Given.written`.

    Raises:
        ConfigError: The user has asked for masks, and there are none.
    """
    if not settings.model["masks"] or any(image.masks for image in data.images):
        return
    if "model.masks" in written:
        raise ConfigError(
            f"setting 'model.masks' is {to_json(settings.model['masks'])}, but {data.source} has no masks; expected a "
            "dataset with masks, or false"
        )
    logger.warning(
        "%s: has no masks, so the mask head is not trained; model.masks=false drops it",
        data.source,
    )


def require_places(settings: RunSettings) -> None:
    """Raise DataError if the data of a run to resume is no longer where it was."""
    for name in ("train", "val"):
        path = getattr(settings.data, name)
        if path not in (None, NO_VALIDATION) and not is_url(path) and not Path(path).exists():
            raise DataError(
                f"{path}: no such file or folder, but the run was started with it; restore it, or set its new place: "
                f"data.{name}=PLACE"
            )


def check_splits(read: Splits, settings: RunSettings, accelerator: Accelerator, *, resume: bool) -> RunData:
    """Check all images.

    Images that cannot be read are excluded. They are determined once, before the first step, by all processes together;
    a resumed run reads them from its folder.

    Raises:
        DataError: A dataset cannot be used, or it has changed since the run started.
        ConfigError: The two datasets have different classes.
    """
    folder = settings.folder
    splits = {"train": read.training} | ({} if read.validation is None else {"val": read.validation})
    fingerprints = read_fingerprints(folder / VALIDATION) if resume else {}
    if fingerprints.keys() == splits.keys():
        splits = {
            name: require_usable(fingerprints[name].restore(data, folder)) for name, data in splits.items()
        }
        reports, deep = {}, []
    else:
        checked = {name: check_images(data, settings, accelerator) for name, data in splits.items()}
        splits = {name: data for name, (data, _) in checked.items()}
        deep = checked["train"][1]
        fingerprints = {
            name: Fingerprint.of(data, held_out=read.held_out and name == "val")
            for name, data in splits.items()
        }
        reports = {name: SplitReport.of(data) for name, data in splits.items()}
    if "val" in splits:
        labels_by_name(splits["train"].categories, splits["val"].categories)
    return RunData(
        training=splits["train"],
        validation=splits.get("val"),
        held_out=read.held_out,
        fingerprints=fingerprints,
        reports=reports,
        deep=deep,
    )


def check_images(
    data: DetectionData, settings: RunSettings, accelerator: Accelerator
) -> tuple[DetectionData, list[DeepValues]]:
    """Decode all images of a split, distributed over the processes, and add the findings.

    Returns:
        The split, and the pixel values of its images with more than 8 bits.

    Raises:
        DataError: The split cannot be used.
    """
    from accelerate.utils import gather_object

    own = data.images[accelerator.process_index :: accelerator.num_processes]
    options = settings.data
    observations = examine_images(own, pixel_range=options.pixel_range, in_parts=options.tile is not None)
    found = sorted(gather_object(observations))
    data = with_observations(data, found)
    data = with_dataset_findings(data, options.max_corrupt, settings.model["queries"], settings=options)
    require_usable(data)
    if accelerator.is_main_process:
        log_warnings(data)
    return data, [observation.deep for observation in found if observation.deep is not None]


def read_fingerprints(path: Path) -> dict[str, Fingerprint]:
    """Return the fingerprints of a run's splits; empty if the run ended before they were written.

    Raises:
        DataError: The file is corrupt.
    """
    if not path.is_file():
        return {}
    try:
        content = type_adapter(dict[str, dict[str, object]]).validate_json(path.read_bytes())
        return {
            name: type_adapter(Fingerprint).validate_python(split.get("fixed"))
            for name, split in content.items()
        }
    except ValidationError:
        raise DataError(
            f"{path}: is corrupt; expected the validation result of the run's data: remove it to check the data again"
        ) from None


def class_names(data: DetectionData) -> tuple[str, ...]:
    """Return the class names in order of label."""
    return tuple(category.name for category in data.categories)


def digest(data: DetectionData) -> str:
    """Return a hash of all images' names, sizes and objects, which does not depend on their folder."""
    content_hash = hashlib.sha256()
    for image in data.images:
        name = f"{image.id} {image.path.name} {image.width} {image.height}"
        content_hash.update(name.encode(errors="surrogatepass"))  # of a file name that is not UTF-8
        for array in (image.boxes_xyxy, image.labels, image.crowd, image.areas):
            content_hash.update(array.tobytes())
    return content_hash.hexdigest()
