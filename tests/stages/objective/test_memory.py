"""The peak memory of the objective, as its benchmark measures it, scaled down."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "objective.py"
MIB = 2**20


def test_the_peak_is_a_few_tiles_and_a_tenth_of_dense_distillation(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--memory", "--quick", "--json", str(tmp_path / "rows.json")]
    names = ["CE + fkl", "CE + fkl, dense"]
    subprocess.run([*command, *(f"--variant={name}" for name in names)], check=True, capture_output=True)
    rows = json.loads((tmp_path / "rows.json").read_text())
    num_tokens, width, vocabulary_size = rows[0]["shape"]
    cross_entropy, tiled, dense = (row["peak_mib"] for row in rows)
    num_kept, tile_mib, saved_mib = 64, 16, 64
    # Logits, scratch and gradient of a tile, the tiles kept for the backward pass, and tensors as the inputs'.
    tiles_mib = 3 * tile_mib + saved_mib
    own_mib = 32 * num_tokens * (width + num_kept) * 4 / MIB
    assert tiled < tiles_mib + own_mib
    assert tiled < 1.05 * cross_entropy + own_mib
    # So small a peak would mean that nothing was measured; so large a one is what the whole logits take.
    assert tiles_mib / 2 < tiled
    assert 3 * num_tokens * vocabulary_size * 4 / MIB < dense
    assert tiled < dense / 10
