"""``train.compile``: what `torch.compile` takes on, and what is said where it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from querybox.errors import ConfigError
from querybox.modules.detector import DetectionTransformer


def compile_backbone(detector: DetectionTransformer) -> None:
    """Compile the backbone when it first runs, once for all sizes; transformers would be compiled for each size."""
    detector.backbone.compile(dynamic=True)


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Say which setting is at fault where the compiler fails.

    Raises:
        ConfigError: It did.
    """
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        reason = " ".join(str(error).strip().partition("\n\n")[0].split())
        raise ConfigError(
            f"setting 'train.compile': torch.compile fails here ({reason}); set it to false"
        ) from error
