"""`python -m betakd_pipe`, for launchers that want a module."""

import sys

from betakd_pipe.cli import main

if __name__ == "__main__":
    sys.exit(main())
