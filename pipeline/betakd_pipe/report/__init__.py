"""The report of ablations and runs: one self-contained HTML page, its tables and figures as files beside it."""

from betakd_pipe.report.page import write_report
from betakd_pipe.report.records import ReportError, ReportScenario
from betakd_pipe.report.scenario import read_scenario

__all__ = ["ReportError", "ReportScenario", "read_scenario", "write_report"]
