"""The detector: DETR's forward pass on one screen (Carion et al. 2020, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from querybox.structures import Category, DetectorOutput, ImageBatch, Preprocessing, Target

if TYPE_CHECKING:
    from querybox.detections import Detections
    from querybox.inspect import Trace
    from querybox.optimize import OptimizedDetector
    from querybox.recipes import Recipe
    from querybox.sources import Source


class Detector(nn.Module):
    """Images in, a class and a box for every object query out.

    Attributes:
        categories: The classes by label, 0 ... C-1.
        preprocessing: How an image becomes the model's input.
        recipe: The settings it was built from, or None for one composed by hand (which cannot be saved).
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        encoder: nn.Module,
        queries: nn.Module,
        decoder: nn.Module,
        *,
        denoising: nn.Module | None = None,
        categories: Sequence[Category],
        preprocessing: Preprocessing,
        recipe: Recipe | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.encoder = encoder
        self.queries = queries
        self.decoder = decoder
        self.denoising = denoising
        self.categories = tuple(categories)
        self.preprocessing = preprocessing
        self.recipe = recipe

    def forward(self, batch: ImageBatch, targets: Sequence[Target] | None = None) -> DetectorOutput:
        """Detect objects in a batch; one set of predictions for every decoder layer.

        Args:
            batch: The images.
            targets: Their objects, in training; only denoising, where the detector has it, looks at them.
        """
        features = self.backbone(batch.images)  # maps [B, channels, h, w]
        features = self.neck(features)  # maps [B, D, h, w]
        memory = self.encoder(features, batch.padding_mask)  # tokens [B, S, D]
        queries = self.queries(memory)  # [B, Q, D]
        if self.denoising is not None and targets is not None:
            queries = self.denoising(queries, targets)
        return DetectorOutput.of(self.decoder(queries, memory), queries)

    @property
    def class_rows(self) -> tuple[int, ...]:
        """The row of the class head that answers for each class, by label; the last row is "no object"."""
        unused = self.recipe.unused_rows if self.recipe else ()
        rows = range(len(self.categories) + len(unused))
        return tuple(row for row in rows if row not in unused)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

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
            name: One of `querybox.recipes.RECIPES`.
            num_classes: How many classes, where names do not matter.
            categories: The classes, where they do.
            settings: Settings of the recipe that shall differ, e.g. ``width=128``.

        Raises:
            ConfigError: Unknown recipe or setting, or not exactly one of `num_classes` and `categories`.
        """
        from querybox.recipes import build

        return build(name, num_classes=num_classes, categories=categories, **settings)

    @classmethod
    def load(cls, path: str | Path) -> Detector:
        """Read a detector that `save` wrote, weights in float32, on the CPU, in evaluation mode.

        Raises:
            CheckpointError: The file is missing, corrupt, or not querybox's.
        """
        from querybox.recipes.files import load

        return load(path)

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, *, dilation: bool | None = None, heads: int | None = None
    ) -> Detector:
        """Read a public checkpoint of DETR, Deformable DETR or DINO, or a file that `save` wrote.

        Nothing in it is executed. Known are the names of the authors' own code, of MMDetection 3.x (2.x for DETR) and
        of Hugging Face (which has no DINO). The layout is recognised by the names of the tensors, the recipe is
        inferred from their shapes. Class names come from the file, else they are COCO's where the class head has 91
        or 80 rows beside "no object". Images are resized as the layout's own
        code does it. What had to be assumed is logged.

        Args:
            path: A ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file, the ``.index.json`` of a sharded one, or a
                Hugging Face folder.
            dilation: Whether the backbone's last stage is dilated (DC5), which no tensor shows. None: as the file says,
                else not.
            heads: Of attention, which no tensor shows. None: as the file says, else 8.

        Returns:
            The detector, weights in float32, on the CPU, in evaluation mode.

        Raises:
            CheckpointError: The file is missing, corrupt, would need code to be executed, or is no such detector.
            ConfigError: `dilation` or `heads` contradicts the file.
        """
        from querybox.checkpoints import from_checkpoint

        return from_checkpoint(path, dilation=dilation, heads=heads)

    def save(self, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write weights, settings, classes and preprocessing to one safetensors file, atomically.

        Args:
            path: The file, usually ``*.safetensors``.
            dtype: Floating type on disk; ``torch.float16`` halves the size.

        Raises:
            CheckpointError: The detector was composed by hand: there are no settings to rebuild it from.
        """
        from querybox.recipes.files import save

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
        from querybox.optimize import optimize

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
        """Detect objects in files, folders, PIL images or arrays; see `querybox.predict.predict`."""
        from querybox.predict import predict

        return list(predict(self, sources, threshold=threshold, top_k=top_k, nms=nms, batch_size=batch_size))

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
