from __future__ import annotations

import platform

import pytest

from querybox.training.environment import describe_platform


def test_the_c_library_is_that_of_linux_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere Python searches its executable for it, and that of the Microsoft Store cannot be opened."""

    def libc_ver() -> tuple[str, str]:
        if platform.system() != "Linux":
            raise OSError(22, "Invalid argument")
        return "glibc", "2.36"

    monkeypatch.setattr(platform, "libc_ver", libc_ver)
    monkeypatch.setattr(platform, "release", lambda: "6.1")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert describe_platform() == "Linux-6.1-x86_64-with-glibc2.36"
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    assert describe_platform() == "Windows-6.1-x86_64"
