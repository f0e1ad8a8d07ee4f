"""Evaluation: a model's greedy answers on benchmarks, and scores of answers by the benchmarks' official rules."""
