"""How a stage tells whoever started it how far it is."""

from typing import Protocol


class Progress(Protocol):
    """Receives the progress of one activity after another; `start` and `finish` enclose each."""

    def start(self, description: str, total: int, done: int = 0) -> None:
        """Begin an activity of `total` units, of which an earlier call already did `done`."""

    def advance(self, num_units: int = 1, **shown: float | str) -> None:
        """Report `num_units` more, with figures worth showing beside the bar, such as `loss=0.3`."""

    def finish(self) -> None:
        """End the activity, whether or not it reached its total."""


class SilentProgress:
    """Progress that shows nothing."""

    def start(self, description: str, total: int, done: int = 0) -> None:
        pass

    def advance(self, num_units: int = 1, **shown: float | str) -> None:
        pass

    def finish(self) -> None:
        pass
