"""Which of several processes this is, as launchers (accelerate launch, torchrun) tell each of them."""

import os


def is_first_process() -> bool:
    """Whether this process is the one that writes and prints; true where there is one process."""
    return os.environ.get("RANK", "0") == "0"
