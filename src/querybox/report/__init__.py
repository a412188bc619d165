"""The report of a training run or an evaluation: one HTML file that needs no server, no network, no other file."""

from querybox.report.write import WORST, write_report

__all__ = ["WORST", "write_report"]
