"""The script for Slurm in docs/cluster.md does what the page says."""

import os
import re
import subprocess
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"


def test_the_script_for_slurm_gives_each_job_of_the_array_its_part(tmp_path: Path) -> None:
    (script,) = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "part.sh").write_text(script, encoding="utf-8")
    subprocess.run(["bash", "-n", "part.sh"], cwd=tmp_path, check=True)
    command = tmp_path / "betakd-pipe"
    command.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    first, last = re.findall(r"^#SBATCH --array=(\d+)-(\d+)$", script, re.MULTILINE)[0]
    of_slurm = {"SLURM_ARRAY_TASK_ID": last, "SLURM_ARRAY_TASK_COUNT": str(int(last) - int(first) + 1)}
    environment = os.environ | of_slurm | {"OUT": "/shared/a cache", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "part.sh"], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    arguments = ["cache-teacher", "--config", "cache.yaml", "--out", "/shared/a cache", "--part", "63/64"]
    assert done.stdout.splitlines() == arguments
