"""The errors a user can cause, in one tree.

    ValueError
        UserError           anything a user can mend; the command line prints one line and exits with 2
            ConfigError     a setting
            DataError       a sample, an image, a data specification
            ModelError      a model folder
            MismatchError   a cache that does not belong to what the student sees
            Interrupted     SIGTERM or Ctrl-C: the same command goes on

`betakd_cache.CacheError` is the cache package's own; it too inherits ValueError.
Every message says what was found, what was expected and what to do.
"""

import signal

NUMBER_BASE = 128
"""A process that a signal ended has this plus the signal's number as its exit code, in every shell."""


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


class Interrupted(UserError):
    """A command was stopped by a signal, and can go on; `where` says how far it came."""

    def __init__(self, by: signal.Signals, where: str) -> None:
        super().__init__(f"stopped by {by.name} {where}; the same command again goes on from there")
        self.exit_code = NUMBER_BASE + by
