"""A student of your own in your own PyTorch loop: the cache, the energies and the weights, without the Trainer.

    python examples/own_loop.py --student STUDENT --cache CACHE --data digits:transfer --out MODEL

The cache is one that `betakd-pipe cache-teacher` wrote from the same data; the teacher itself is not needed.
"""

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from betakd_cache import open_cache
from betakd_stages.data import load_samples
from betakd_stages.distillation.dataset import EncodedSamples, make_collator
from betakd_stages.distillation.distiller import Distiller
from betakd_stages.distillation.matching import match_cache
from betakd_stages.models.loading import load_model
from betakd_stages.objective_building import build_objective


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("student", "cache", "data", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    torch.manual_seed(0)

    # The student, and the samples that it encodes exactly as the teacher did; anything else is refused by name.
    student = load_model(arguments.student)
    cache = open_cache(arguments.cache)
    matched = match_cache(cache, load_samples(arguments.data), student.encoder, on_mismatch="stop")
    dataset = EncodedSamples(matched.samples, student.encoder, matched.image_sha256)
    collate = make_collator(student.encoder, cache, matched.cache_indices)
    batches = DataLoader(dataset, batch_size=16, shuffle=True, collate_fn=collate)

    # Two energies beside the labels, and one learned weight for each (task-level Beta-KD).
    objective = build_objective(energies=[("fkl", {}), ("cosine_probs", {})], weighting="task")
    device = student.model.device
    distiller = Distiller(student.model, objective, student.encoder.vocabulary_size, cache.manifest).to(device).train()
    groups = objective.parameter_groups(weighting_lr=0.05, lr=1e-3)
    optimizer = torch.optim.AdamW([{"params": list(student.model.parameters())}, *groups], lr=1e-3)
    for epoch in range(arguments.epochs):
        total = count = 0.0
        for batch in batches:
            output = distiller({k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()})
            optimizer.zero_grad()
            (output.total / output.count).backward()
            optimizer.step()
            total, count = total + output.total.item(), count + output.count.item()
        betas = ", ".join(f"{name} {beta:.3g}" for name, beta in zip(objective.channels, output.betas[0], strict=True))
        print(f"epoch {epoch + 1}: objective {total / count:.4f}; weights: {betas}")
    student.model.save_pretrained(arguments.out)
    student.encoder.save(Path(arguments.out))


if __name__ == "__main__":
    main()
