"""The precision of computations: its names in all settings and commands, and what a device computes natively.

PyTorch is imported in the functions, because the command line reads the names for ``--help``.
"""

from __future__ import annotations

import logging
import platform
import time
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

ComputedPrecision = Literal["float32", "bf16", "fp16"]
Precision = Literal["auto", ComputedPrecision]
FORMER_NAMES: dict[str, ComputedPrecision] = {"no": "float32"}
"""Values of `train.precision` in run files and checkpoints of version 0.1, with their present names."""
DTYPES: dict[ComputedPrecision, str] = {"float32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Names of the dtypes in PyTorch."""
SIZE, REPEATS = 512, 3
"""Size of the matrices whose product is timed, and number of timed products, of which the fastest counts."""


def present_name(precision: object) -> object:
    """Return `precision`, or its present name if it is a former one; see `FORMER_NAMES`."""
    return FORMER_NAMES.get(precision, precision) if isinstance(precision, str) else precision


def resolve_precision(precision: Precision, device: torch.device) -> ComputedPrecision:
    """Return the precision to compute in on `device`.

    ``"auto"`` is bf16 if the device computes it natively, otherwise float32. Any other value is returned as it is, with
    a warning if the device takes longer for it than for float32.
    """
    if precision == "auto":
        return "bf16" if is_native("bf16", device) else "float32"
    if not is_native(precision, device):
        factor = slowdown(precision, device)
        if factor > 1:
            logger.warning(
                "precision '%s' is emulated on this device (%s): a matrix product takes %.1f times as long as in "
                "float32; use 'float32', or 'auto'",
                precision,
                device,
                factor,
            )
    return precision


def is_native(precision: ComputedPrecision, device: torch.device) -> bool:
    """Return whether `device` has instructions for `precision`; False if that is unknown."""
    import torch

    if precision == "float32":
        return True
    match device.type:
        case "cuda":
            return precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
        case "mps":
            return precision == "fp16"  # bf16 depends on the chip, which PyTorch does not report
        case "cpu" if not torch.backends.mkldnn.is_available():
            return False  # PyTorch for Apple's processors has no oneDNN
        case "cpu" if precision == "fp16":
            return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
        case "cpu" if platform.machine().lower() in ("arm64", "aarch64"):
            return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # on x86 it is True for AVX-512 alone
        case "cpu":
            return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        case _:
            return False


@cache
def slowdown(precision: ComputedPrecision, device: torch.device) -> float:
    """Return the time of a matrix product in `precision`, relative to float32; it is measured once."""
    import torch

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(SIZE, SIZE, dtype=dtype, device=device)
        times = []
        for _ in range(REPEATS + 1):  # the first one is a warm-up
            start = time.perf_counter()
            (matrix @ matrix)[0, 0].item()  # waits for the device
            times.append(time.perf_counter() - start)
        return min(times[1:])

    return seconds(dtype_of(precision)) / seconds(torch.float32)


def dtype_of(precision: ComputedPrecision) -> torch.dtype:
    """Return PyTorch's dtype of `precision`."""
    import torch

    dtype: torch.dtype = getattr(torch, DTYPES[precision])
    return dtype
