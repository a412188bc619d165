"""The setting ``train.compile``: compile the backbone with `torch.compile`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from querybox.errors import ConfigError
from querybox.modules.detector import DetectionTransformer


def compile_backbone(detector: DetectionTransformer) -> None:
    """Compile the backbone on its first call, for all image sizes.

    The transformer is not compiled, because it would be compiled again for each size.
    """
    detector.backbone.compile(dynamic=True)


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Translate errors of the compiler.

    Raises:
        ConfigError: The compiler failed.
    """
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        reason = " ".join(str(error).strip().partition("\n\n")[0].split())
        raise ConfigError(
            f"setting 'train.compile': torch.compile fails on this machine ({reason}); set it to false"
        ) from error
