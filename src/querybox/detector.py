"""The detector with its tools: load, save, predict, optimise, trace, and its training criterion.

Imports that take long are in the methods that need them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

from querybox.arguments import require_number, require_path
from querybox.checkpoints.find import is_exported
from querybox.errors import ConfigError
from querybox.inference.predictor import Predictor
from querybox.modules.detector import DetectionTransformer, as_categories
from querybox.precision import Precision
from querybox.structures import MAX_CLASSES, Category, ImageBatch, Target
from querybox.text import listed

if TYPE_CHECKING:
    from querybox.exporting import ExportedModel
    from querybox.inference.optimized import OptimizedDetector
    from querybox.inference.sources import Source
    from querybox.inspect import Trace
    from querybox.losses.criterion import Criterion


def load(
    path: str | Path,
    *,
    trusted: bool = False,
    dilation: bool | None = None,
    heads: int | None = None,
    activation: Literal["relu", "silu"] | None = None,
    discrete: bool | None = None,
) -> Detector | ExportedModel:
    """Load a model: weights of any supported layout, a run folder, a name on the Hub, or an exported model.

        detector = querybox.load("runs/first")
        detections = detector.predict("photos")

    No code in weights is executed. Supported are the layouts of the authors' code, of MMDetection 3.x (2.x for DETR)
    and of Hugging Face (which has no DINO). The layout is recognised by the names of the tensors, and the recipe is
    inferred from their shapes. Class names are read from the file; otherwise they are COCO's if the class head has 91
    or 80 rows besides no-object. Images are resized as in the layout's library. Assumptions are logged.

    Args:
        path: A ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file, or the ``.index.json`` of a sharded one; the
            folder of a run, of which the best detector is loaded; a Hugging Face folder; ``hf://owner/name``,
            optionally with ``@revision``, which is downloaded; a short name in `querybox.models.PUBLIC_WEIGHTS`; or a
            ``.onnx``, ``.xml`` (OpenVINO), ``.pt2`` (PyTorch) or ``.pte`` (ExecuTorch) file from `querybox.export`.
        trusted: Required for ``.pt2`` and ``.pte``, because such a file may execute code.
        dilation: For weights: whether the backbone's last stage is dilated (DC5), which cannot be inferred from the
            tensors. None for the value in the file, or else False.
        heads: For weights: number of attention heads, which cannot be inferred from the tensors. None for the value in
            the file, or else 8.
        activation: For weights: the decoder's activation, which cannot be inferred from the tensors: ``"silu"`` for
            those of DEIM. None for the value in the file, or else ReLU.
        discrete: For weights: whether single cells are sampled without interpolation, which cannot be inferred from the
            tensors: True for the DSP weights of RT-DETRv2. None for the value in the file, or else False.

    Returns:
        A `Detector` in float32, on the CPU, in evaluation mode; or an exported model, which has `predict` as well and
        can be evaluated.

    Raises:
        CheckpointError: The file is missing, corrupt, not a model, requires code to be executed, or is not trusted.
        ConfigError: `dilation`, `heads`, `activation` or `discrete` contradicts the file, or is given for an exported
            model.
        MissingExtraError: The package that runs an exported model is not installed.
    """
    path = require_path("load", path, "a model")
    if is_exported(path):
        from querybox.exporting import load_exported

        arguments = {"dilation": dilation, "heads": heads, "activation": activation, "discrete": discrete}
        if given := [f"{name}={value}" for name, value in arguments.items() if value is not None]:
            raise ConfigError(
                f"{path}: got {', '.join(given)} for an exported model, which contains such settings; omit them"
            )
        return load_exported(path, trusted=trusted)
    return Detector.load(path, dilation=dilation, heads=heads, activation=activation, discrete=discrete)


class Detector(DetectionTransformer, Predictor):
    """A `DetectionTransformer` with methods to load, save, predict, optimise and trace."""

    @classmethod
    def of(cls, model: DetectionTransformer) -> Self:
        """Wrap `model`; both share their submodules."""
        detector = cls(
            model.backbone,
            model.neck,
            model.encoder,
            model.queries,
            model.decoder,
            denoising=model.denoising,
            mask_head=model.mask_head,
            categories=model.categories,
            preprocessing=model.preprocessing,
            recipe=model.recipe,
        )
        detector.training = model.training  # not `train()`, which would change the submodules
        return detector

    @classmethod
    def from_recipe(
        cls,
        name: str,
        *,
        num_classes: int | None = None,
        categories: Sequence[Category | str] | None = None,
        **settings: Any,
    ) -> Detector:
        """Create a model with new weights, e.g. ``Detector.from_recipe("detr_r50", num_classes=80)``.

        Args:
            name: One of `querybox.models.RECIPES`.
            num_classes: Number of classes, at most 65,536, whose names are then their labels.
            categories: The classes, or their names: ``["cat", "dog"]``.
            settings: Settings of the recipe to change, e.g. ``width=128``.

        Raises:
            ConfigError: Unknown recipe or setting, not exactly one of `num_classes` and `categories`, no class, too
                many, or two with the same id or name.
            OutOfMemoryError: There is not enough memory for the weights.
        """
        from querybox.checkpoints.backbone import build
        from querybox.models import find

        if (num_classes is None) == (categories is None):
            raise ConfigError(f"recipe '{name}': pass either num_classes or categories")
        recipe = find(name).replace(**settings)
        if num_classes is not None:
            require_number("from_recipe", "num_classes", num_classes, 1, MAX_CLASSES, whole=True)
            categories = [Category(id=label, name=str(label)) for label in range(num_classes)]
        assert categories is not None
        classes = as_categories("from_recipe", categories)
        counts = Counter(value for each in classes for value in (each.id, each.name))
        if repeated := [value for value, count in counts.items() if count > 1]:
            raise ConfigError(
                f"recipe '{name}': several categories have the same id or name ({listed(repeated)}); make them unique"
            )
        return cls.of(build(recipe, classes))

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dilation: bool | None = None,
        heads: int | None = None,
        activation: Literal["relu", "silu"] | None = None,
        discrete: bool | None = None,
    ) -> Self:
        """Load a detector like `querybox.load`, which also loads exported models.

        Args:
            path: Weights, as for `querybox.load`.
            dilation: As for `querybox.load`.
            heads: As for `querybox.load`.
            activation: As for `querybox.load`.
            discrete: As for `querybox.load`.

        Raises:
            CheckpointError: The file is missing or corrupt, requires code to be executed, or is not a supported
                detector.
            ConfigError: `dilation`, `heads`, `activation` or `discrete` contradicts the file.
        """
        from querybox.checkpoints.read import load_detector

        path = require_path("Detector.load", path, "a model")
        return cls.of(
            load_detector(path, dilation=dilation, heads=heads, activation=activation, discrete=discrete)
        )

    def save(self, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write weights, settings, classes and preprocessing to a safetensors file, atomically.

        Hooks are not stored.

        Args:
            path: The file, usually ``*.safetensors``.
            dtype: Floating-point type on disk; ``torch.float16`` halves the size.

        Raises:
            CheckpointError: The detector was composed manually, so there are no settings to rebuild it from; or it was
                changed, so that another one would be loaded from the file, or none: its modules do not fit its
                settings and classes, the forward method of one was replaced, it was quantised, or a weight is NaN or
                infinite, maybe only in `dtype`. Nothing is written.
            ConfigError: `dtype` is not a floating-point type that safetensors stores.
        """
        from querybox.checkpoints.blueprint import STORABLE, save

        if dtype not in STORABLE:
            raise ConfigError(
                f"save got dtype={dtype!r}; expected a floating-point type such as torch.float16"
            )
        save(self, require_path("save", path, "the file to write"), dtype=dtype)

    def criterion(self) -> Criterion:
        """Return the training criterion of this kind of detector.

            losses = detector.criterion()(detector(batch, targets), targets)

        Raises:
            ConfigError: The detector was composed manually.
        """
        if self.recipe is None:
            raise ConfigError(
                "criterion: the detector was not built by a recipe, so its losses are not known; create a Criterion, "
                "with classification=FocalLoss() if its scores are a sigmoid for each class, or return it from this "
                "method in a subclass"
            )
        return self.recipe.criterion()

    def optimize(
        self,
        *,
        precision: Precision = "float32",
        compile: bool = False,  # noqa: A002 - PyTorch's name
    ) -> OptimizedDetector:
        """Return a copy for inference with the same predictions, about twice as fast on a CPU.

        Batch norms are folded into convolutions, which are fused with the following operations; constants are cached;
        and only the last decoder layer makes predictions. In float32, logits and boxes differ by less than 1e-4.
        `predict` and `evaluate` make such a copy themselves; keep one if you predict often. Later changes of this
        detector do not affect it.

        Args:
            precision: Precision of the computations: ``"float32"``, ``"bf16"``, ``"fp16"``, or ``"auto"``, which is
                bf16 if the device computes it natively, otherwise float32. bf16 and fp16 are faster only on such
                devices. The heads stay in float32.
            compile: Compile the copy with `torch.compile`, for all image sizes at once, on the first call. This takes
                minutes and is meant for GPUs.

        Raises:
            ConfigError: `precision` is unknown.
        """
        from querybox.inference.optimized import OptimizedDetector

        return OptimizedDetector(self, precision=precision, compile=compile)

    def trace(self, image: Source | ImageBatch, target: Target | None = None) -> Trace:
        """Trace one image through the detector: the output of every stage, and the attention of every layer.

        The training mode is restored afterwards; dropout and denoising are off.

        Args:
            image: A file, PIL image, array or tensor, as for `predict`; or a batch of one, which may be padded.
            target: The objects of the image. With them the trace includes the matching, its costs, and the losses, by
                `criterion`.

        Raises:
            ConfigError: `image` is not a single image, the target has unknown labels, or there is one and the criterion
                of the detector is not known.
            DataError: There is no such file.
            ImageError: The image cannot be read.
        """
        from querybox.inspect import trace

        return trace(self, image, target)
