"""The student on held-out data while it trains: which step's is kept, and when it is no use to go on."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from betakd_stages.distillation.checkpoints import OBJECTIVE_FILE, STUDENT_FILE, last_checkpoint, step_of
from betakd_stages.distillation.distiller import Distiller, load_trained, load_weights, save_trained, save_weights
from betakd_stages.distillation.training_log import keep_rows, rows_until
from betakd_stages.processes import index_and_count
from betakd_stages.settings.selection import SelectionSettings

VALIDATION = "validation.jsonl"
ACCURACY = "validation_accuracy"


class Selection:
    """Measures the student, writes validation.jsonl, and holds the weights of the best step under checkpoints/.

    The rows are all the state there is: a resumed run drops those beyond its checkpoint and measures again. Where
    several processes train, all of them have the rows, and the first one writes.
    """

    def __init__(
        self,
        settings: SelectionSettings,
        out: Path,
        resumed_step: int,
        distiller: Distiller,
        measure: Callable[[], dict[str, float]],
    ) -> None:
        """`measure` gives the columns of a row: the accuracy, which decides, and others."""
        self._settings = settings
        self._path = out / VALIDATION
        self._checkpoints = out / "checkpoints"
        self._distiller = distiller
        self._measure = measure
        self._writes = index_and_count()[0] == 0
        self._rows: list[dict[str, Any]] = []
        if settings.evaluate_every_steps:
            self._rows = (keep_rows if self._writes else rows_until)(self._path, resumed_step)

    def row_of(self, step: int) -> dict[str, Any] | None:
        """What was measured after this step, if it was."""
        return self._rows[-1] if self._rows and self._rows[-1]["step"] == step else None

    def after_step(self, step: int, *, last: bool) -> bool:
        """Measure if it is time to; whether the student has not become better for too long."""
        every_steps = self._settings.evaluate_every_steps
        if every_steps is None or (step % every_steps and not last):
            return False
        self._rows.append({"step": step, **self._measure()})
        best = best_row(self._rows)
        if self._settings.keep_best and best["step"] == step:
            self._keep(step)
        if self._writes:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self._rows[-1]) + "\n")
        num_since = len(self._rows) - 1 - self._rows.index(best)
        return self._settings.patience is not None and num_since >= self._settings.patience

    def restore_best(self) -> int | None:
        """The step whose weights the student and the objective have now; None if the last ones are kept."""
        if not self._settings.keep_best:
            return None
        step: int = best_row(self._rows)["step"]
        load_trained(self._distiller.student, self._folder(step) / STUDENT_FILE)
        load_weights(self._distiller.objective, self._folder(step) / OBJECTIVE_FILE)
        return step

    def _keep(self, step: int) -> None:
        """Save this step's weights; older ones go, but for those that a run resumed from a checkpoint calls best."""
        save_trained(self._distiller.student, self._folder(step) / STUDENT_FILE)
        save_weights(self._distiller.objective, self._folder(step) / OBJECTIVE_FILE)
        if not self._writes:
            return
        checkpoint = last_checkpoint(self._checkpoints)
        before = [row for row in self._rows if checkpoint and row["step"] <= step_of(checkpoint)]
        needed = {step} | ({best_row(before)["step"]} if before else set())
        for folder in self._checkpoints.glob("best-*"):
            if step_of(folder) not in needed:
                shutil.rmtree(folder)

    def _folder(self, step: int) -> Path:
        return self._checkpoints / f"best-{step}"


def best_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row with the highest accuracy; the earlier of equals."""
    return max(rows, key=lambda row: row[ACCURACY])
