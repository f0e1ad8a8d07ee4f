"""The report of one or more ablations: one self-contained HTML page and its figures as PNG."""

from betakd_pipe.report.page import write_report
from betakd_pipe.report.records import ReportError, ReportScenario

__all__ = ["ReportError", "ReportScenario", "write_report"]
