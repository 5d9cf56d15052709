"""The report of a run: one HTML page without network, for a reader who did not run it."""

from gradflow.training.report.data import Dependence, Importance, ReportData, TableFacts
from gradflow.training.report.page import layers_html, report_html

__all__ = ["Dependence", "Importance", "ReportData", "TableFacts", "layers_html", "report_html"]
