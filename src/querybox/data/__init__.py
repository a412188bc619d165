"""Datasets: reading, validation, augmentation and loading."""

from querybox.data.formats.coco import read_coco
from querybox.data.image import read_image
from querybox.data.loader import Batch, train_loader
from querybox.data.read import read_dataset, read_train_and_val
from querybox.data.records import DetectionData, ImageRecord
from querybox.data.settings import DataSettings
from querybox.data.training_images import read_pixels
from querybox.data.transforms import resize, resized_shape
from querybox.data.validate import validate
from querybox.data.write import split_dataset

__all__ = [
    "Batch",
    "DataSettings",
    "DetectionData",
    "ImageRecord",
    "read_coco",
    "read_dataset",
    "read_image",
    "read_pixels",
    "read_train_and_val",
    "resize",
    "resized_shape",
    "split_dataset",
    "train_loader",
    "validate",
]
