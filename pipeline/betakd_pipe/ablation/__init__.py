"""Ablations: what they compare, their runs, and the tables that they make."""
