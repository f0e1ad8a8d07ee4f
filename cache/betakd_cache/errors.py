"""The one error of this package."""


class CacheError(ValueError):
    """A cache cannot be written, read or used; one line: what was found, what was expected, what to do."""
