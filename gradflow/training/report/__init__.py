"""The report of a run: one HTML page without network, for a reader who did not run it."""

from gradflow.training.report.data import ReportData
from gradflow.training.report.page import layers_html, report_html

__all__ = ["ReportData", "layers_html", "report_html"]
