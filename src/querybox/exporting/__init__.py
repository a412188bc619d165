"""Export of detectors to ONNX, OpenVINO, `torch.export` and ExecuTorch files, and engines that run these files."""

from querybox.exporting.engine import ExportedModel
from querybox.exporting.load import load_exported
from querybox.exporting.write import Exported, export

__all__ = ["Exported", "ExportedModel", "export", "load_exported"]
