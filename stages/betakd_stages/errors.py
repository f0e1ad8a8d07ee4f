"""The errors a user can cause, in one tree.

    ValueError
        UserError           anything a user can mend; the command line prints one line and exits with 2
            ConfigError     a setting
            DataError       a sample, an image, a data specification
            ModelError      a model folder
            MismatchError   a cache that does not belong to what the student sees

`betakd_cache.CacheError` is the cache package's own; it too inherits ValueError.
Every message says what was found, what was expected and what to do.
"""


class UserError(ValueError):
    """Something the user can mend."""


class ConfigError(UserError):
    """A setting is wrong."""


class DataError(UserError):
    """A sample, an image or a data specification is wrong."""


class ModelError(UserError):
    """A model folder is wrong."""


class MismatchError(UserError):
    """The cache does not belong to what the student sees."""
