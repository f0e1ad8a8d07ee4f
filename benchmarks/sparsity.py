"""What keeping K entries costs in exactness: each energy and its gradient against everything kept, in float64.

    python benchmarks/sparsity.py [--device cpu|cuda] [--quick] [--json FILE]

Teachers are Zipf-like over V tokens in a random order; the student is a blurred teacher plus noise. The error of a
value is |sparse - dense| / dense, that of a gradient the norm of the difference at the student's logits over the norm;
figures are medians over tokens with the 90th percentile. The tail's own temperature is on the grid, so what is measured
is the assumption that the teacher's tail has the student's shape.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from betakd_stages.energies import ENERGIES, make_energy
from betakd_stages.statistics import Head, student_statistics
from betakd_stages.targets import TeacherTargets

TEMPERATURES = (0.5, 1.0, 2.0, 5.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="a vocabulary of 400 and fewer tokens")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    arguments = parser.parse_args()
    vocabulary_size, num_tokens = (400, 32) if arguments.quick else (4000, 128)
    rows = measure(vocabulary_size, num_tokens, arguments.device)
    table = Table(title=f"Error of K kept entries, V = {vocabulary_size:,}: median (90th percentile)")
    for name in ("energy", "K", "kept mass", "value", "gradient"):
        table.add_column(name, justify="left" if name == "energy" else "right")
    for row in rows:
        table.add_row(
            row["energy"],
            str(row["kept"]),
            f"{row['kept_mass']:.4f}",
            f"{row['value_error']:.1e} ({row['value_error_p90']:.1e})",
            f"{row['gradient_error']:.1e} ({row['gradient_error_p90']:.1e})",
        )
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure(vocabulary_size: int, num_tokens: int, device: str) -> list[dict[str, Any]]:
    """One row per energy and K."""
    teacher, student, gold_ids = make_logits(vocabulary_size, num_tokens, device)
    everything = TeacherTargets.from_logits(teacher, gold_ids, temperatures=TEMPERATURES)
    rows = []
    for name in sorted(ENERGIES):
        dense = evaluate(name, student, everything)
        for num_kept in (8, 32, 128):
            targets = TeacherTargets.from_logits(teacher, gold_ids, top_k=num_kept, temperatures=TEMPERATURES)
            values, gradients = evaluate(name, student, targets)
            value_errors = (values - dense[0]).abs() / dense[0].abs()
            gradient_errors = (gradients - dense[1]).norm(dim=1) / dense[1].norm(dim=1)
            rows.append(
                {
                    "energy": name,
                    "kept": num_kept,
                    "kept_mass": float(1 - targets.tail_log_probability().exp().median()),
                    "value_error": float(value_errors.median()),
                    "value_error_p90": float(value_errors.quantile(0.9)),
                    "gradient_error": float(gradient_errors.median()),
                    "gradient_error_p90": float(gradient_errors.quantile(0.9)),
                }
            )
    return rows


def make_logits(vocabulary_size: int, num_tokens: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher and student logits `[N, V]` in float64, and labels drawn from the teacher."""
    generator = torch.Generator().manual_seed(0)
    zipf = -2.0 * torch.arange(1, vocabulary_size + 1, dtype=torch.float64).log()
    order = torch.argsort(torch.rand(num_tokens, vocabulary_size, generator=generator), dim=1)
    teacher = zipf[order] + 0.5 * torch.randn(order.shape, generator=generator, dtype=torch.float64)
    student = 0.8 * teacher + torch.randn(order.shape, generator=generator, dtype=torch.float64)
    gold_ids = torch.multinomial(torch.softmax(teacher, dim=1), 1, generator=generator).squeeze(1)
    return teacher.to(device), student.to(device), gold_ids.to(device)


def evaluate(name: str, student: Tensor, targets: TeacherTargets) -> tuple[Tensor, Tensor]:
    """Values `[N]` and their gradients at the student's logits `[N, V]`."""
    energy = make_energy(name).to(student.device)
    logits = student.clone().requires_grad_()
    head = Head(torch.eye(student.shape[1], dtype=student.dtype, device=student.device))
    statistics = student_statistics(logits, head, targets, energy.needs(targets))
    values = energy(statistics, targets)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    return values.detach(), gradient


if __name__ == "__main__":
    main()
