"""Every fault in its short form."""

from __future__ import annotations

from pathlib import Path

import pytest

from torture.__main__ import PARTS, main
from torture.case import Case


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{part}: {case.name}") for part in PARTS for case in PARTS[part]]
)
def test_it_is_survived(case: Case, tmp_path: Path) -> None:
    case.run(tmp_path, False)


def test_names_of_cases_are_unique() -> None:
    names = [f"{part}: {case.name}" for part in PARTS for case in PARTS[part]]
    assert len(names) == len(set(names))


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["unknown"])
    assert "unknown" in capsys.readouterr().err
