"""The teacher cache: what a teacher said about every sample, on disk. Needs numpy, pyarrow and zarr, never torch."""
