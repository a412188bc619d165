"""The formats of datasets that can be read: one file a format, and one line here."""

from querybox.data.formats.coco import COCO
from querybox.data.formats.voc import VOC
from querybox.data.formats.yolo import YOLO
from querybox.data.splits import Format

FORMATS: tuple[Format, ...] = (COCO, VOC, YOLO)
"""All formats, in the order of messages."""
