"""The two stages: teachers that fill a cache, students that learn from it. Importing this package imports no torch."""
