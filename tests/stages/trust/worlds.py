"""Planted worlds: labels, and a teacher that is right, wrong or random where it is planted so."""

import numpy as np

from betakd_stages.settings import TrustSettings
from betakd_stages.trust.background import Answers, Background
from betakd_stages.trust.evidence import Evidence
from betakd_stages.trust.groups import Groups

SETTINGS = TrustSettings(cache="cache", data="data", num_fits=1)
NUM_LABELS = 8


def planted(
    num_samples: int, knows: list[float], noise: float = 0.2, seed: int = 0, content_at: int = 0
) -> tuple[Evidence, Groups]:
    """Samples in as many groups as `knows` has shares: of the teacher's confident answers, those that are right.

    Labels are wrong with the probability `noise`. Inputs say nothing but how sure the teacher is. With `content_at`,
    so many tokens that anybody can predict stand before the label.
    """
    generator = np.random.default_rng(seed)
    groups = np.arange(num_samples, dtype=np.int32) % len(knows)
    truth = generator.integers(0, NUM_LABELS, num_samples)
    others = (truth + generator.integers(1, NUM_LABELS, num_samples)) % NUM_LABELS
    says = np.where(generator.random(num_samples) < np.array(knows)[groups], truth, others)
    wrong = (truth + generator.integers(1, NUM_LABELS, num_samples)) % NUM_LABELS
    label = np.where(generator.random(num_samples) < noise, wrong, truth)
    p1 = generator.uniform(0.8, 0.99, num_samples)
    rest = (1 - p1) / (NUM_LABELS - 1)
    gold = np.log(np.where(label == says, p1, rest))
    tokens = np.column_stack([np.full((num_samples, content_at), NUM_LABELS), label])
    answers = Answers(tokens.reshape(-1), np.arange(num_samples + 1) * (content_at + 1), groups)
    background = Background(vocabulary_size=100)
    background.add(answers)
    chance = background.log_probabilities(answers).reshape(num_samples, content_at + 1)
    predictable = np.zeros((num_samples, content_at))
    evidence = Evidence(
        inputs=np.column_stack([p1, p1 - rest]).astype(np.float32),
        teachers=np.column_stack([predictable, gold]).astype(np.float32)[:, None],
        background=chance.astype(np.float32),
        held=np.ones((num_samples, 1), bool),
        margin=(p1 - rest).astype(np.float32)[:, None],
        gap=np.where(label == says, 0, np.log(p1 / rest)).astype(np.float32)[:, None],
    )
    return evidence, Groups(tuple(f"group {number}" for number in range(len(knows))), groups)
