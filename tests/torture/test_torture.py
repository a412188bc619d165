"""Every fault in its short form."""

from __future__ import annotations

from pathlib import Path

import pytest

from torture.__main__ import PARTS, Outcome, main, with_section
from torture.case import Case
from torture.server import PRELOADED, fork_server


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{part}: {case.name}") for part in PARTS for case in PARTS[part]]
)
def test_it_is_survived(case: Case, tmp_path: Path) -> None:
    case.run(tmp_path, False)


def test_processes_begin_with_everything_imported() -> None:
    """The server ignores modules that it does not find."""
    imported = f"import sys; sys.exit(not {set(PRELOADED)} <= set(sys.modules))"
    process = fork_server().Process(target=exec, args=(imported,))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_names_of_cases_are_unique() -> None:
    names = [f"{part}: {case.name}" for part in PARTS for case in PARTS[part]]
    assert len(names) == len(set(names))


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["unknown"])
    assert "unknown" in capsys.readouterr().err


def test_the_page_keeps_its_other_sections() -> None:
    case = Case(name="a | b", required="reported", run=lambda *_: "")
    outcomes = [Outcome(part="data", case=case, survived=True, happened="1\n2", seconds=0.04)]
    page = "# Torture\n"
    for part in ("data", "disk", "data"):
        page = with_section(page, part, outcomes)
    assert page.count("| a \\| b | reported | 1 2 | yes | 0.0 |\n") == 2
    assert page.startswith("# Torture\n\n## Data\n\n| fault |")
    assert page.index("## Data") < page.index("\n\n## Disk\n\n")
