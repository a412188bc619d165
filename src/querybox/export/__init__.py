"""Exported models: files that other programs run, and the engines that run them here."""

from querybox.export.engine import ExportedModel
from querybox.export.load import load_engine
from querybox.export.write import Exported, export

__all__ = ["Exported", "ExportedModel", "export", "load_engine"]
