"""Draws docs/figures/energies_on_the_simplex.png: four energies of a student anywhere on the simplex of three tokens.

python docs/figures/energies_on_the_simplex.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch

from betakd_stages.energies import make_energy
from betakd_stages.statistics import Head, student_statistics
from betakd_stages.targets import TeacherTargets

TEACHER = (0.6, 0.3, 0.1)
TITLES = {"fkl": "forward KL", "rkl": "reverse KL", "mse_probs": "squared error", "cosine_probs": "1 - cosine"}
STEPS = 120
"""Points along an edge."""


def main() -> None:
    students = np.array([(i, j, STEPS - i - j) for i in range(1, STEPS) for j in range(1, STEPS - i)], dtype=np.float64)
    students /= STEPS
    x, y = students[:, 1] + 0.5 * students[:, 2], students[:, 2] * 3**0.5 / 2
    figure, axes = plt.subplots(1, 4, figsize=(11, 2.9), constrained_layout=True)
    for axis, (name, title) in zip(axes, TITLES.items(), strict=True):
        values = energies(name, students)
        # Levels at equal shares of the simplex make the four scales comparable.
        levels = np.unique(np.quantile(values, np.linspace(0, 1, 13)))
        filled = axis.tricontourf(x, y, values, levels=levels, cmap="viridis_r")
        figure.colorbar(filled, ax=axis, shrink=0.7, ticks=levels[::4], format="%.2g")
        axis.plot(TEACHER[1] + 0.5 * TEACHER[2], TEACHER[2] * 3**0.5 / 2, "w*", markersize=9, markeredgecolor="black")
        axis.set_title(title, fontsize=10)
        axis.set_aspect("equal")
        axis.axis("off")
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


def energies(name: str, students: np.ndarray) -> np.ndarray:
    """The energy of each student distribution `[N, 3]` against TEACHER, `[N]`."""
    logits = torch.tensor(TEACHER, dtype=torch.float64).log().expand(len(students), 3)
    targets = TeacherTargets.from_logits(logits, torch.zeros(len(students), dtype=torch.int64))
    energy = make_energy(name)
    head = Head(torch.eye(3, dtype=torch.float64))
    statistics = student_statistics(torch.tensor(students).log(), head, targets, energy.needs(targets))
    return energy(statistics, targets).numpy()


if __name__ == "__main__":
    main()
