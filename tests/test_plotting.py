"""Figures are drawn with matplotlib's defaults, whatever the current folder or the user sets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure

from querybox.plotting import default_style

HOSTILE = "text.usetex: True\nfont.size: 77\nsvg.fonttype: path\n"
CODE = """
from querybox.plotting import default_style, import_matplotlib
matplotlib = import_matplotlib()
print(matplotlib.rcParams['font.size'], end=' ')
with default_style():
    print(matplotlib.rcParams['text.usetex'], matplotlib.rcParams['font.size'])
"""


def test_the_settings_of_the_user_do_not_apply_but_are_kept() -> None:
    with matplotlib.rc_context({"text.usetex": True, "font.size": 77}):
        with default_style():
            assert not matplotlib.rcParams["text.usetex"]
            assert Figure().text(0, 0, "a").get_fontsize() == 10
        assert matplotlib.rcParams["text.usetex"]
        assert matplotlib.rcParams["font.size"] == 77


@pytest.mark.parametrize("content", [HOSTILE.encode(), b"\xff\xfe\x1b[31m: \x9b", None])
def test_the_matplotlibrc_of_the_current_folder_is_not_read(content: bytes | None, tmp_path: Path) -> None:
    if content is None and not hasattr(os, "mkfifo"):
        pytest.skip("the system has no named pipes")
    if content is None:
        os.mkfifo(tmp_path / "matplotlibrc")  # would be waited for
    else:
        (tmp_path / "matplotlibrc").write_bytes(content)
    words = [sys.executable, "-c", CODE]
    answer = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout == "10.0 False 10.0\n"
    assert not answer.stderr
