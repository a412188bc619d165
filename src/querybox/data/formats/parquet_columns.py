"""The columns of a Parquet file with images and boxes, as on the Hugging Face Hub, and the names of its classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from querybox.data.formats.hugging_face_objects import CATEGORY, are_of_objects, class_names
from querybox.data.parquet_file import has_content, is_text
from querybox.data.parsing import partial_json
from querybox.errors import DataError
from querybox.text import listed

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGES = ("image", "img", "image_path", "file_name", "path")


class Columns(NamedTuple):
    """The columns of a file that are read."""

    image: str
    embedded: bool
    """Whether images are in the file; otherwise their paths."""
    objects: str | None
    """The column of the objects; None if their lists are columns of their own."""
    names: tuple[str, ...]
    """All columns to read, without the images themselves."""


def find_columns(file: Path | str, schema: pa.Schema) -> Columns:
    """Return the columns of a file.

    Raises:
        DataError: It has no images or no boxes.
    """
    fields = {field.name: field.type for field in schema}
    embedded = [name for name, type_ in fields.items() if has_content(type_)]
    paths = [name for name in _IMAGES if name in fields and is_text(fields[name])]
    objects = next((name for name, type_ in fields.items() if "bbox" in _keys(type_)), None)
    if not (embedded or paths) or (objects is None and "bbox" not in fields):
        raise DataError(
            f"{file}: has the columns {listed(list(fields))}; expected 'image', with binary 'bytes' or a path, and "
            "'objects' with 'bbox'"
        )
    image = (embedded or paths)[0]
    lists = ("bbox", *CATEGORY, "iscrowd", "area") if objects is None else (objects,)
    others = [name for name in (*lists, "width", "height") if name in fields]
    return Columns(image, bool(embedded), objects, (f"{image}.path" if embedded else image, *others))


def _keys(type_: pa.DataType) -> set[str]:
    """Return the keys of a structure, or of a list of structures."""
    import pyarrow as pa

    while pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        type_ = type_.value_type
    return {field.name for field in type_} if pa.types.is_struct(type_) else set()


def stated_names(schema: pa.Schema) -> dict[int, str]:
    """Return the names of classes by number in the metadata of a file; empty if it has none.

    See `are_of_objects` for the class label of an image as a whole.
    """
    metadata = (schema.metadata or {}).get(b"huggingface", b"{}")
    features = partial_json(metadata.decode(errors="replace"))
    return class_names(_class_label(features, name) for name in CATEGORY)


def _class_label(node: Any, feature: str) -> Any:
    """Return the first `ClassLabel` of objects in a feature with this name; None if there is none."""
    if not isinstance(node, list | dict):
        return None
    if isinstance(node, dict) and are_of_objects(node) and (found := _label_of(node.get(feature))):
        return found
    items = node if isinstance(node, list) else node.values()
    return next((found for item in items if (found := _class_label(item, feature))), None)


def _label_of(node: Any) -> Any:
    """Return the `ClassLabel` that a feature is, or a list of; None if it is another one."""
    while isinstance(node, dict) and node.get("_type") != "ClassLabel":
        node = node.get("feature")
    return node if isinstance(node, dict) else None
