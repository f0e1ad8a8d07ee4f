"""Evaluation: greedy answers of a model on a benchmark, scored."""

from betakd_stages.evaluation.run import evaluate

__all__ = ["evaluate"]
