"""The command line: configuration, run folders, ablations and reports over the two stages."""

__version__ = "0.1.0"
