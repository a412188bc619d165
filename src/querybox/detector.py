"""The detector and all that can be done with it: load, predict, trace, optimise, save."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from querybox.errors import ConfigError
from querybox.modules.detector import DetectionTransformer
from querybox.structures import Category, ImageBatch, Target

if TYPE_CHECKING:
    from querybox.exporting import ExportedModel
    from querybox.fast import OptimizedDetector
    from querybox.inference.detections import Detections
    from querybox.inference.sources import Source
    from querybox.inspect import Trace


def load(path: str | Path, *, trusted: bool = False) -> Detector | ExportedModel:
    """Open any model: a detector's weights of any known layout, a run folder, a name on the Hub, or an exported model.

    Both kinds can `predict` and be evaluated; a `Detector` can be trained and changed as well.

    Args:
        path: What `Detector.load` reads, or a ``.onnx``, ``.xml`` (OpenVINO) or ``.pt2`` (PyTorch) file that
            `querybox.export` wrote.
        trusted: Needed for ``.pt2``, for PyTorch executes code that such a file may hold.

    Raises:
        CheckpointError: The file is missing, corrupt, of another kind, or not trusted.
        MissingExtraError: The package that runs an exported model is not installed.
    """
    from querybox.exporting import EXPORTED, load_exported

    if Path(path).suffix in EXPORTED:
        return load_exported(path, trusted=trusted)
    return Detector.load(path)


class Detector(DetectionTransformer):
    """A `DetectionTransformer` with its tools; the heavy ones are imported when they are first used."""

    @classmethod
    def of(cls, model: DetectionTransformer) -> Self:
        """Give `model` these tools; both share their parts."""
        detector = cls(
            model.backbone,
            model.neck,
            model.encoder,
            model.queries,
            model.decoder,
            denoising=model.denoising,
            categories=model.categories,
            preprocessing=model.preprocessing,
            recipe=model.recipe,
        )
        detector.training = model.training  # not `train`, which would switch the parts as well
        return detector

    @classmethod
    def from_recipe(
        cls,
        name: str,
        *,
        num_classes: int | None = None,
        categories: Sequence[Category] | None = None,
        **settings: Any,
    ) -> Detector:
        """Build a named model with fresh weights, e.g. ``Detector.from_recipe("detr_r50", num_classes=80)``.

        Args:
            name: One of `querybox.models.RECIPES`.
            num_classes: How many classes, where names do not matter.
            categories: The classes, where they do.
            settings: Settings of the recipe that shall differ, e.g. ``width=128``.

        Raises:
            ConfigError: Unknown recipe or setting, or not exactly one of `num_classes` and `categories`.
        """
        from querybox.checkpoints.backbone import build
        from querybox.models import find

        if (num_classes is None) == (categories is None):
            raise ConfigError(f"recipe '{name}': give either num_classes or categories")
        recipe = find(name).replace(**settings)
        numbered = [Category(id=label, name=str(label)) for label in range(num_classes or 0)]
        return cls.of(build(recipe, categories or numbered))

    @classmethod
    def load(cls, path: str | Path, *, dilation: bool | None = None, heads: int | None = None) -> Self:
        """Read a detector: one that `save` wrote, or a public checkpoint of any layout that is known.

        Nothing in it is executed. Known are the names of the authors' own code, of MMDetection 3.x (2.x for DETR) and
        of Hugging Face (which has no DINO). The layout is recognised by the names of the tensors, the recipe is
        inferred from their shapes. Class names come from the file, else they are COCO's where the class head has 91
        or 80 rows beside "no object". Images are resized as the layout's own code does it. What had to be assumed is
        logged.

        Args:
            path: A ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file, or the ``.index.json`` of one in shards; the
                folder of a run, whose best detector is taken; a Hugging Face folder; or ``hf://owner/name``, with or
                without ``@revision``, which is downloaded.
            dilation: Whether the backbone's last stage is dilated (DC5), which no tensor shows. None: as the file says,
                else not.
            heads: Of attention, which no tensor shows. None: as the file says, else 8.

        Returns:
            The detector, weights in float32, on the CPU, in evaluation mode.

        Raises:
            CheckpointError: The file is missing, corrupt, would need code to be executed, or is no such detector.
            ConfigError: `dilation` or `heads` contradicts the file.
        """
        from querybox.checkpoints.read import load_detector

        return cls.of(load_detector(path, dilation=dilation, heads=heads))

    def save(self, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write weights, settings, classes and preprocessing to one safetensors file, atomically.

        Args:
            path: The file, usually ``*.safetensors``.
            dtype: Floating type on disk; ``torch.float16`` halves the size.

        Raises:
            CheckpointError: The detector was composed by hand: there are no settings to rebuild it from.
        """
        from querybox.checkpoints.blueprint import save

        save(self, path, dtype=dtype)

    def optimize(
        self,
        *,
        dtype: torch.dtype = torch.float32,
        compile: bool = False,  # noqa: A002 - torch's word
    ) -> OptimizedDetector:
        """Return a copy for inference that detects the same, about twice as fast on a CPU.

        Batch norms are folded into the convolutions, these fused with what comes after them, constants kept, and
        only the last decoder layer answers. In float32 logits and boxes stay within 1e-4. `predict` and `evaluate`
        make such a copy themselves; who predicts often keeps one. Later changes of this detector do not reach it.

        Args:
            dtype: What it computes in; ``torch.bfloat16`` is the faster one where the machine has it. The heads stay
                in float32.
            compile: Compile it with `torch.compile`, for all image sizes at once, when it is first called. This takes
                minutes and is meant for GPUs.

        Raises:
            ConfigError: `dtype` is none of float32, bfloat16 and float16.
        """
        from querybox.fast import optimize

        return optimize(self, dtype=dtype, compile=compile)

    def predict(
        self,
        sources: Source | Sequence[Source],
        *,
        threshold: float = 0.5,
        top_k: int = 100,
        nms: float | None = None,
        batch_size: int = 8,
    ) -> list[Detections]:
        """Detect objects with an optimised copy; see `querybox.inference.predict.predict`."""
        return self.optimize().predict(
            sources, threshold=threshold, top_k=top_k, nms=nms, batch_size=batch_size
        )

    def trace(self, image: Source | ImageBatch, target: Target | None = None) -> Trace:
        """Follow one image through the detector: what every stage made of it, and where each layer looked.

        The mode (training or evaluation) is left as it was found; dropout and denoising are off.

        Args:
            image: A file, PIL image, array or tensor, as `predict` takes it; or a batch of one, which may be padded.
            target: Its objects. With them the trace has the matching, its costs, and the losses, too.

        Raises:
            ConfigError: It is not one image, or the target has labels that the detector does not know.
            DataError: There is no such file.
            ImageError: The image cannot be read.
        """
        from querybox.inspect import trace

        return trace(self, image, target)
