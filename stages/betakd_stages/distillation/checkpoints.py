"""The checkpoints of a run: folders named after their steps."""

from pathlib import Path

CHECKPOINT_COMPLETE = "complete"
OBJECTIVE_FILE = "objective.safetensors"
STUDENT_FILE = "student.safetensors"
FIGURES_FILE = "figures.safetensors"
TRAINER_STATE_FILE = "trainer_state.json"


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{CHECKPOINT_COMPLETE}")]
    return max(complete, key=step_of, default=None)


def step_of(folder: Path) -> int:
    """The step that `checkpoint-STEP` or `best-STEP` holds."""
    return int(folder.name.rpartition("-")[2])
