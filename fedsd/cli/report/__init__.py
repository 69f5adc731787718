"""The report of a run: report.html, one file that opens anywhere without a network, and README.md, a model card."""

from fedsd.cli.report.page import write_report

__all__ = ["write_report"]
