"""The machine and software versions with which a row was measured."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from querybox.machine import package_version
from querybox.training.environment import describe_environment

PEERS = (
    "transformers",
    "pycocotools",
    "onnxruntime",
    "openvino",
    "faster-coco-eval",
    "opencv-python-headless",
)


WITH_PATH = ("--coco", "--facebook", "--output", "--ultralytics")


def command(words: Sequence[str], program: str = "python -m benchmarks") -> str:
    """Return the command line without the paths of this machine."""
    result = []
    for before, word in zip(("", *words), words, strict=False):
        option, equals, _ = word.partition("=")
        if before in WITH_PATH:
            result.append("PATH")
        else:
            result.append(f"{option}=PATH" if equals and option in WITH_PATH else word)
    return " ".join([program, *result])


def describe(command: str) -> dict[str, Any]:
    """Return date, command, machine and versions as plain values."""
    environment = describe_environment(processes=1)
    environment["packages"] |= {name: package_version(name) for name in PEERS}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "processor": processor(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        **environment,
    }


def processor() -> str:
    """Return the processor's name, with the instruction sets that affect speed."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    facts = dict(
        line.split(":", 1) for line in cpuinfo.read_text(encoding="utf-8").splitlines() if ":" in line
    )
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    supported = set(facts.get("flags", "").split())
    relevant = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    flags = ", ".join(flag for flag in relevant if flag in supported)
    return f"{facts.get('model name', platform.machine())} ({flags})"
