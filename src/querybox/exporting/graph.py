"""The exported graph: a detector with its pre- and postprocessing, with dynamic or fixed sizes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch._dynamo import config as _dynamo_config
from torch.export import Dim, ExportedProgram
from torch.fx import config as fx_config
from torch.fx.experimental import _config, proxy_tensor

from querybox.exporting.stand_ins import StandIns, restore
from querybox.fast.fusion import fuse
from querybox.fast.inference import cache_cells
from querybox.inference.postprocess import postprocess, select_top_k
from querybox.modules.detector import DetectionTransformer
from querybox.modules.masks import MaskHead
from querybox.structures import ImageBatch

MAX_MASKS = 120
"""Number of detections of an image with masks: the 100 that are evaluated, and more whose scores may equal theirs."""
METADATA = "_extract_tensor_metadata"
"""PyTorch's function that describes the result of an operation in a trace."""
VALUES = "cross_attention.value"
"""Layer of the decoder that runs on every token of an image; neither scores nor boxes are computed from it directly."""


class Graph(nn.Module):
    """A detector with pre- and postprocessing: padded uint8 images in, detections and raw predictions out."""

    def __init__(self, detector: DetectionTransformer, unpadded: tuple[int, int] | None = None) -> None:
        """Wrap a detector.

        Args:
            detector: The model.
            unpadded: (height, width) of all images, none of which is padded; None if they may be.
        """
        super().__init__()
        self.detector = detector
        self.unpadded = unpadded

    def forward(self, pixels: UInt8[Tensor, "B 3 H W"], sizes: Int[Tensor, "B 2"]) -> tuple[Tensor, ...]:
        """Return the values that `querybox.exporting.card.Card.outputs` describes."""
        preprocessing = self.detector.preprocessing
        unpadded = sizes if self.unpadded is None else torch.tensor([self.unpadded])
        batch = ImageBatch.from_pixels(pixels, unpadded, preprocessing, padded=self.unpadded is None)
        predictions = self.detector(batch).layers[-1]
        scores, labels, boxes_xyxy, _ = postprocess(
            predictions,
            sizes,
            top_k=predictions.logits.shape[1],
            clip_boxes=preprocessing.clip_boxes,
        )
        outputs = scores, labels, boxes_xyxy, predictions.logits, predictions.boxes
        if predictions.masks is None:
            return outputs
        # With a sigmoid for each class, a query may be found as several.
        found = predictions.logits.shape[1] * (1 if predictions.no_object else predictions.num_classes)
        _, _, queries = select_top_k(predictions, torch.sym_min(MAX_MASKS, found))
        return *outputs, queries, predictions.masks.logits(queries)


class DynamicConv2dSame(Conv2dSame):
    """TensorFlow's "same" convolution for dynamic image sizes.

    timm computes the padding with a maximum and a ceiling, which a trace turns into constraints on the image size.
    Here it is computed with floor divisions only.
    """

    def forward(self, x: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        """Pad to ceil(size / stride) windows, with an odd pixel at the right and bottom, and convolve."""
        padding: list[int] = []
        for axis in (1, 0):  # F.pad starts with the last axis
            size, stride, reach = (
                x.shape[2 + axis],
                self.stride[axis],
                self.dilation[axis] * (self.kernel_size[axis] - 1),
            )
            missing = (size - 1) // stride * stride + reach + 1 - size if reach else 0
            padding += [missing // 2, missing - missing // 2]
        return F.conv2d(F.pad(x, padding), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class DynamicMaskHead(MaskHead):
    """A mask head for dynamic image sizes.

    A trace turns whether a slice is as large as the map into a constraint on the image size.
    """

    def cut(
        self, x: Float[Tensor, "B D _ _"], height: int | torch.SymInt, width: int | torch.SymInt
    ) -> Float[Tensor, "B D h w"]:
        """Return the top left cells of a map, selected by their indices."""
        rows, columns = (torch.arange(side, device=x.device) for side in (height, width))
        return x.index_select(2, rows).index_select(3, columns)


@contextmanager
def sizes_as_traced() -> Iterator[None]:
    """Have PyTorch decompose a traced program without checking again for every size whether it is 1.

    The trace has established that already, and the checks would take most of the time of a conversion.
    """
    if not hasattr(_config, "backed_size_oblivious"):  # in PyTorch 2.6
        yield
        return
    with _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        yield


@contextmanager
def without_stack_traces() -> Iterator[None]:
    """Keep PyTorch from collecting a stack trace for each operation, which takes an eighth of the time of a trace."""
    before = getattr(fx_config, "do_not_emit_stack_traces", False)
    fx_config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        fx_config.do_not_emit_stack_traces = before


@contextmanager
def without_memory_formats() -> Iterator[None]:
    """Keep PyTorch from finding the memory format of each result, which takes a tenth of the time of a trace.

    The formats are of no use for exports, which have the strides.
    """
    before = vars(proxy_tensor).get(METADATA)
    if before is None:  # not every version of PyTorch has this private function
        yield
        return
    vars(proxy_tensor)[METADATA] = partial(before, include_contiguity=False)
    try:
        yield
    finally:
        vars(proxy_tensor)[METADATA] = before


def trace(
    detector: DetectionTransformer, size: tuple[int, int] | None = None, *, padded: bool = True
) -> ExportedProgram:
    """Trace a detector in evaluation mode.

    Args:
        detector: The model.
        size: Fixed (height, width) of a single image; None for a dynamic batch size, height and width.
        padded: Whether an image may be smaller than `size`. Otherwise masks are left out and positions are constants.
    """
    detector = copy.deepcopy(detector).cpu().eval()
    if not padded:
        cache_cells(detector, torch.float32)
    for part in (detector.backbone, detector.neck, detector.encoder):
        fuse(part)  # batch norms folded
    detector.to(memory_format=torch.contiguous_format)
    for part in detector.modules():
        if type(part) is Conv2dSame:
            part.__class__ = DynamicConv2dSame
        if type(part) is MaskHead and size is None:
            part.__class__ = DynamicMaskHead
        if hasattr(part, "inplace"):
            # Otherwise it would be made functional later, node by node.
            part.inplace = False  # type: ignore[assignment]
    graph = Graph(detector, None if padded else size)
    # Sizes that are not multiples of each other or of a stride, because the trace would take accidental equality as a
    # constraint.
    shape, sizes = ((2, 3, 165, 229), [[165, 229], [140, 201]]) if size is None else ((1, 3, *size), [size])
    dynamic_sizes = {
        "pixels": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},
        "sizes": {0: Dim.DYNAMIC},
    }
    # Few operations of a trace are found in PyTorch's cache of results, whose entries take a third of the time.
    uncached = _dynamo_config.patch(fake_tensor_cache_enabled=False)
    # The casts of an outer autocast would become a part of the program.
    with (
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        uncached,
        without_stack_traces(),
        without_memory_formats(),
        StandIns(),
    ):
        program = torch.export.export(
            graph,
            (torch.zeros(shape, dtype=torch.uint8), torch.tensor(sizes)),
            dynamic_shapes=dynamic_sizes if size is None else None,
            strict=False,
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # of an older PyTorch: files would name paths of this machine
    restore(program.graph)
    program.graph_module.recompile()
    return program


def min_side(program: ExportedProgram) -> int:
    """Return the smallest height and width for which a trace for images of any size is valid.

    It is one pixel more than a cell of the coarsest feature map. With smaller images engines fail or return other
    detections.
    """
    (pixels,) = (node for node in program.graph.nodes if node.name == "pixels")
    ranges = [program.range_constraints[side.node.expr] for side in pixels.meta["val"].shape[2:]]
    return max(int(each.lower) for each in ranges)


def decoder_nodes(program: ExportedProgram) -> frozenset[str]:
    """Return the names of the graph nodes of the queries, the decoder and its heads, less `VALUES`."""
    modules = (
        (node.name, [path for path, _ in node.meta.get("nn_module_stack", {}).values()])
        for node in program.graph.nodes
    )
    return frozenset(
        name
        for name, paths in modules
        if any(path.startswith(("detector.queries", "detector.decoder")) for path in paths)
        and not any(path.endswith(VALUES) for path in paths)
    )
