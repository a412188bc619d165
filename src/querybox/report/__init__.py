"""The report of a training run or an evaluation: one HTML file that needs no server, no network, no other file."""

from querybox.report.write import write_report

__all__ = ["write_report"]
