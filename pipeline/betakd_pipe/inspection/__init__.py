"""Showing single samples of a run: on the terminal, and as one self-contained HTML page."""
