"""The data of a run: looked at before its first step, and the same from then on, whatever becomes of the files."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import TypeAdapter, ValidationError

from querybox.data import DetectionData, read_train_and_val
from querybox.data.records import require_sound, warn
from querybox.data.scan import examine_images, with_seen
from querybox.data.validate import VALIDATION, SplitReport, judged
from querybox.errors import DataError
from querybox.evaluation.evaluate import labels_by_name
from querybox.files import atomic
from querybox.text import listed
from querybox.training.settings import RunSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """What a split was when the run began; from then on it is nothing else."""

    digest: str
    """Of the images that are used and their objects."""
    classes: tuple[str, ...]
    left_out: tuple[int, ...]
    """Ids of the images that could not be read."""

    @classmethod
    def of(cls, data: DetectionData) -> Self:
        """Fix a split, the images of which were looked at."""
        return cls(digest=digest(data), classes=class_names(data), left_out=tuple(sorted(data.left_out)))

    def again(self, data: DetectionData, folder: Path) -> DetectionData:
        """Return the same images of `data`, which was read anew, for the run in `folder`.

        Raises:
            DataError: It is not what it was.
        """
        used = data.only({image.id for image in data.images} - set(self.left_out))
        if class_names(data) != self.classes:
            change = f"its classes were {listed(self.classes)} and are {listed(class_names(data))}"
        elif digest(used) != self.digest:
            change = "its images or their objects are others"
        else:
            return used
        raise DataError(
            f"{data.source}: has changed since the run in {folder} began: {change}; put it back, or start a new run "
            f"from the weights of this one, whose classes are kept by name: --weights {folder / 'last.safetensors'}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """What a run trains and is evaluated on."""

    training: DetectionData
    validation: DetectionData | None
    fixed: Mapping[str, Fixed]
    """By the names of the splits: ``train`` and ``val``."""
    reports: Mapping[str, SplitReport]
    """What was found, where the images were looked at and not known from before."""

    def write(self, folder: Path) -> None:
        """Write ``validation.json``, unless all of it was known from there."""
        if not self.reports:
            return
        content = {
            name: {"fixed": asdict(self.fixed[name]), **report.to_json()}
            for name, report in self.reports.items()
        }
        with atomic(folder / VALIDATION) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_data(settings: RunSettings, accelerator: Accelerator, *, resume: bool) -> RunData:
    """Read the datasets to train on and to evaluate on.

    Images that cannot be read are left out. Which ones these are is found out once, before the first step, where every
    process looks at its share of the images; a run that goes on takes it from its folder.

    Raises:
        DataError: A dataset cannot be used, or is another one than when the run began.
        ConfigError: The two have different classes.
    """
    folder = Path(settings.output)
    training, validation = read_train_and_val(settings.data)
    splits = {"train": training} if validation is None else {"train": training, "val": validation}
    known = read_fixed(folder / VALIDATION) if resume else {}
    if known.keys() == splits.keys():
        splits = {name: require_sound(known[name].again(data, folder)) for name, data in splits.items()}
        fixed, reports = known, {}
    else:
        splits = {name: look_at(data, settings, accelerator) for name, data in splits.items()}
        fixed = {name: Fixed.of(data) for name, data in splits.items()}
        reports = {name: SplitReport.of(data) for name, data in splits.items()}
    if "val" in splits:
        labels_by_name(splits["train"].categories, splits["val"].categories)
    return RunData(training=splits["train"], validation=splits.get("val"), fixed=fixed, reports=reports)


def look_at(data: DetectionData, settings: RunSettings, accelerator: Accelerator) -> DetectionData:
    """Decode all images of a split, shared out between the processes, and judge what is found.

    Raises:
        DataError: The split cannot be used.
    """
    from accelerate.utils import gather_object

    share = data.images[accelerator.process_index :: accelerator.num_processes]
    seen = gather_object(examine_images(share))
    data = judged(with_seen(data, sorted(seen)), settings.data.max_corrupt, settings.model["queries"])
    require_sound(data)
    if accelerator.is_main_process:
        warn(data)
    return data


def read_fixed(path: Path) -> dict[str, Fixed]:
    """Return what is known of the splits of a run that was begun; nothing where it was killed before.

    Raises:
        DataError: The file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        content = TypeAdapter(dict[str, dict[str, object]]).validate_json(path.read_bytes())
        return {
            name: TypeAdapter(Fixed).validate_python(split.get("fixed")) for name, split in content.items()
        }
    except ValidationError:
        raise DataError(
            f"{path}: is damaged; expected what was found of the run's data: remove it, and they are looked at anew"
        ) from None


def class_names(data: DetectionData) -> tuple[str, ...]:
    """Return the names of the classes, by label."""
    return tuple(category.name for category in data.categories)


def digest(data: DetectionData) -> str:
    """Return what changes with any image or object, but not with the folder that they are in."""
    total = hashlib.sha256()
    for image in data.images:
        total.update(f"{image.id} {image.path.name} {image.width} {image.height}".encode())
        for array in (image.boxes_xyxy, image.labels, image.crowd, image.areas):
            total.update(array.tobytes())
    return total.hexdigest()
