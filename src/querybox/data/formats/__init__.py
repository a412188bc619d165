"""The formats of datasets that can be read: one file for each format, and one line here."""

from querybox.data.formats.coco import COCO
from querybox.data.formats.coco_panoptic import COCO_PANOPTIC
from querybox.data.formats.createml import CREATEML
from querybox.data.formats.csv_boxes import CSV
from querybox.data.formats.cvat import CVAT
from querybox.data.formats.hugging_face import HUGGING_FACE
from querybox.data.formats.kitti import KITTI
from querybox.data.formats.label_studio import LABEL_STUDIO
from querybox.data.formats.labelme import LABELME
from querybox.data.formats.open_images import OPEN_IMAGES
from querybox.data.formats.parquet import PARQUET
from querybox.data.formats.shard_urls import SHARD_URLS
from querybox.data.formats.supervisely import SUPERVISELY
from querybox.data.formats.via import VIA
from querybox.data.formats.visdrone import VISDRONE
from querybox.data.formats.voc import VOC
from querybox.data.formats.webdataset import WEBDATASET
from querybox.data.formats.wider_face import WIDER_FACE
from querybox.data.formats.yolo import YOLO
from querybox.data.splits import Format

FORMATS: tuple[Format, ...] = (
    COCO,
    COCO_PANOPTIC,
    VOC,
    YOLO,
    CSV,
    LABELME,
    CVAT,
    LABEL_STUDIO,
    CREATEML,
    OPEN_IMAGES,
    HUGGING_FACE,
    PARQUET,
    WEBDATASET,
    SHARD_URLS,
    VIA,
    SUPERVISELY,
    KITTI,
    VISDRONE,
    WIDER_FACE,
)
"""All formats, in the order of messages."""
