"""What an objective carries from step to step is the same in every process, and as if one process had seen all."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[3]


def final_states(num_processes: int, store: Path) -> list[dict[str, dict[str, Any]]]:
    """What the objectives of every process end up with."""
    command = [sys.executable, "-m", "tests.stages.objective.training_process"]
    running = [
        subprocess.Popen(
            [*command, str(rank), str(num_processes), str(store)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for rank in range(num_processes)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0] * num_processes
    return [json.loads(output) for output in outputs]


def test_two_processes_hold_the_state_of_one_that_saw_all_batches(tmp_path: Path) -> None:
    """TAID's t, CTKD's temperature and curriculum, task weights, manual scales."""
    (alone,) = final_states(1, tmp_path / "unused")
    left, right = final_states(2, tmp_path / "store")
    assert left == right
    for kind, state in alone.items():
        assert state.keys() == left[kind].keys()
        for name, value in state.items():
            # Each of two processes measures half of the batches.
            if name != "weighting.num_seen":
                found, expected = torch.tensor(left[kind][name]), torch.tensor(value)
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, msg=name)
    assert alone["learned"]["energies.taid.t"] > 0.4 + 0.6 * 0.4
    assert alone["learned"]["energies.ctkd.raw"] != -2.0
