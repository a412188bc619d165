"""Where and with what a row was measured."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from querybox.training.environment import describe_environment, installed

PEERS = (
    "transformers",
    "pycocotools",
    "onnxruntime",
    "openvino",
    "faster-coco-eval",
    "opencv-python-headless",
)


WITH_PATH = ("--coco", "--facebook", "--output")


def command(words: Sequence[str], program: str = "python -m benchmarks") -> str:
    """Return the command line as anyone could type it: without the paths of this machine."""
    said = []
    for before, word in zip(("", *words), words, strict=False):
        option, equals, _ = word.partition("=")
        if before in WITH_PATH:
            said.append("PATH")
        else:
            said.append(f"{option}=PATH" if equals and option in WITH_PATH else word)
    return " ".join([program, *said])


def describe(command: str) -> dict[str, Any]:
    """Return date, command, machine and versions as plain values."""
    environment = describe_environment(processes=1)
    environment["packages"] |= {name: installed(name) for name in PEERS}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "processor": processor(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        **environment,
    }


def processor() -> str:
    """Return what the processor calls itself, with the instructions that matter to speed."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    known = set(facts.get("flags", "").split())
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    flags = ", ".join(flag for flag in wanted if flag in known)
    return f"{facts.get('model name', platform.machine())} ({flags})"
