"""The report: a run folder turned into one HTML file that opens from disk, without network or script."""

from coke.report.page import write_page

__all__ = ["write_page"]
