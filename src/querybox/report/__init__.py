"""The report of a training run or an evaluation: one HTML file that needs no server and no network."""

from querybox.report.write import WORST, write_report

__all__ = ["WORST", "write_report"]
