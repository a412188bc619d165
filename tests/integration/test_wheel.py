"""The wheel holds what users need and nothing else, and predicts outside the repository, offline."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "blood_cells"

PREDICT = """
import socket, sys, querybox

def refuse(*_):
    raise OSError("this program is offline")

socket.socket.connect = refuse
detector = querybox.Detector.load(sys.argv[1])
found, = detector.predict(sys.argv[2], threshold=0.3)
print(querybox.__file__)
print(*sorted(set(found.names)), sep=",")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(ROOT))
    (path,) = folder.glob("querybox-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a fresh environment with the wheel; its dependencies are those of the environment that tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(
        sysconfig.get_path("purelib")
    )  # without its editable installs
    return python


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True, timeout=120)


def run(program: Path, *arguments: str, cwd: Path) -> list[str]:
    """Lines that `program` prints in `cwd`, without an environment that could point to the repository."""
    result = subprocess.run(
        [str(program), *arguments],
        cwd=cwd,
        env={"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    source = ROOT / "src"
    files = {
        str(path.relative_to(source))
        for path in (source / "querybox").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == files
    assert "querybox/py.typed" in held


def test_the_installed_command_knows_its_version(installed: Path, tmp_path: Path) -> None:
    (line,) = run(installed.with_name("querybox"), "--version", cwd=tmp_path)
    assert version("querybox") in line


def test_it_predicts_offline_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    weights = EXAMPLE / "weights.safetensors"
    if not weights.is_file():
        pytest.skip("the example's weights are not there yet")
    image = min((EXAMPLE / "images").glob("*.jpg"))
    home, names = run(installed, "-c", PREDICT, str(weights), str(image), cwd=tmp_path)
    assert not Path(home).is_relative_to(ROOT)
    assert "RBC" in names.split(",")
