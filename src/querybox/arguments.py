"""Checks of the arguments of public functions, so that a wrong type is an error of the library.

They are for values that Python would accept at first and that fail far from the call, if at all.
"""

from __future__ import annotations

import math
import os
import re
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, SupportsFloat, TypeGuard

from querybox.errors import ConfigError
from querybox.memory import first_line
from querybox.urls import is_url

if TYPE_CHECKING:
    import torch

FORMER_URL = re.compile(r"[a-z][a-z0-9+.-]+:/[^/]")
ROUNDING = 1e-3
"""Tolerance of the range of boxes, for rounding errors of those at the edge of an image."""
MAX_AREA = 1 << 23
"""Maximum product of the sides of resized images in pixels, just above that of a 4K video frame."""


def require_path(where: str, value: object, expected: str) -> Path:
    """Return `value` as a path.

    Args:
        where: The function that got it, for messages.
        value: A string or a path.
        expected: What is at the path, such as ``"a dataset"``.

    Raises:
        ConfigError: It is of another type, or empty.
    """
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(
            f"{where} got {kind_of(value)}; expected the path of {expected}: a str or a pathlib.Path"
        )
    if value == "":
        raise ConfigError(f"{where} got an empty path; expected the path of {expected}")
    return Path(value)


def require_dataset(where: str, value: object) -> Path | str:
    """Return `value`, which names a dataset, as a path, or as the URL that it is.

    Args:
        where: The function that got it, for messages.
        value: A string or a path.

    Raises:
        ConfigError: As for `require_path`; or it is a URL that was converted to a path and thereby lost a slash.
    """
    if isinstance(value, str) and is_url(value):
        return value
    path = require_path(where, value, "a dataset")
    if FORMER_URL.match(path.as_posix()) and not path.exists():
        raise ConfigError(
            f"{where} got {path}, a URL without one of its slashes, which pathlib.Path removes; expected the whole URL "
            "as a str"
        )
    return path


def require_number(
    where: str, name: str, value: object, low: float, high: float = math.inf, *, whole: bool = False
) -> None:
    """Check that `value` is a number from `low` to `high`, or an integer if `whole`.

    Raises:
        ConfigError: It is of another type, such as bool, out of this range, or NaN.
    """
    kind, noun = (Integral, "an integer, ") if whole else (Real, "")
    try:
        valid = is_number(value, kind) and low <= float(value) <= high
    except OverflowError:  # of an integer with hundreds of digits
        valid = False
    if not valid:
        between = f"{low} {'or more' if high == math.inf else f'to {high}'}"
        raise ConfigError(f"{where} got {name}={value!r}; expected {noun}{between}")


def is_number(value: object, kind: type = Real) -> TypeGuard[SupportsFloat]:
    """Return whether `value` is a number of this kind, and not True or False, which Python takes for 1 and 0."""
    return isinstance(value, kind) and not isinstance(value, bool)


def is_range(value: object) -> bool:
    """Return whether `value` is a tuple of two finite numbers, the lower first."""
    if not isinstance(value, tuple) or len(value) != 2 or not all(map(is_number, value)):
        return False
    return -math.inf < value[0] < value[1] < math.inf


def require_size(where: str, size: object, smallest: int = 1) -> None:
    """Check that `size` is the (height, width) of resized images in pixels, with sides of at least `smallest`.

    Raises:
        ConfigError: It is of another type or out of range.
    """
    if not isinstance(size, tuple) or len(size) != 2:
        raise ConfigError(
            f"{where} got size={size!r}; expected (height, width) in pixels, such as (640, 640)"
        )
    for side in size:
        require_number(where, "size", side, smallest, MAX_AREA // smallest, whole=True)
    if size[0] * size[1] > MAX_AREA:
        raise ConfigError(f"{where} got size={size!r}; expected at most {MAX_AREA:,} pixels")


def require_fractions(where: str, low: float, high: float) -> None:
    """Check the lowest and the highest value of boxes, which are cxcywh in 0-1 of the image.

    Raises:
        ConfigError: One is out of this range, or NaN.
    """
    if not -ROUNDING <= low <= high <= 1 + ROUNDING:
        raise ConfigError(
            f"{where} got boxes with values from {low:g} to {high:g}; expected (centre x, centre y, width, height) "
            "from 0 to 1: divide pixels by the size of the image"
        )


def require_device(where: str, device: torch.device | str) -> torch.device:
    """Return a device by its name in PyTorch.

    Args:
        where: The function that got it, for messages.
        device: The device or its name.

    Raises:
        ConfigError: PyTorch knows no such device, or finds none here.
    """
    import torch

    require_type(where, device, (torch.device, str), "a device, such as 'cpu'")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # the latter from PyTorch without CUDA
        raise ConfigError(
            f"{where} got device={str(device)!r}, which PyTorch cannot use ({first_line(error)}); expected 'cpu', or "
            "the accelerator that PyTorch finds here: 'cuda' for GPUs of NVIDIA and AMD, 'mps' for those of Apple"
        ) from None


def require_type(where: str, value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    """Check that `value` is an instance of one of the types.

    Args:
        where: The function that got it, for messages.
        value: The argument.
        kinds: The allowed types.
        expected: These types in words, and how to get one.

    Raises:
        ConfigError: It is of another type.
    """
    if not isinstance(value, kinds):
        raise ConfigError(f"{where} got {kind_of(value)}; expected {expected}")


def kind_of(value: object) -> str:
    """Return the type of `value` in words."""
    return "None" if value is None else f"an object of type {type(value).__name__}"


def require_consent(name: str, *, allow_network: bool) -> None:
    """Check that querybox may connect to something on the network.

    Args:
        name: Its name without credentials.
        allow_network: Whether the user has allowed it.

    Raises:
        ConfigError: It may not.
    """
    if not allow_network:
        raise ConfigError(
            f"{name}: is on the network, and querybox connects to nothing without permission; allow it with "
            "--allow-network, data.allow_network=true in training, or allow_network=True in Python"
        )
