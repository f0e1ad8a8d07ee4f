"""Single samples end to end: what the teacher said, what a student says, and how much that counted."""

from betakd_stages.inspection.run import inspect_samples
from betakd_stages.inspection.views import ChannelView, Guess, SampleView, TokenView

__all__ = ["ChannelView", "Guess", "SampleView", "TokenView", "inspect_samples"]
