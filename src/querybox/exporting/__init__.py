"""Exported models: files that other programs run, and the engines that run them here."""

from querybox.exporting.engine import ExportedModel
from querybox.exporting.load import EXPORTED, load_exported
from querybox.exporting.write import Exported, export

__all__ = ["EXPORTED", "Exported", "ExportedModel", "export", "load_exported"]
