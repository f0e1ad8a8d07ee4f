"""The command, in processes that accelerate takes for several GPUs: it knows FSDP there only, torch on CPUs too."""

import sys
from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule

from betakd_pipe.cli import main
from betakd_stages.distillation.callback import RunCallback

of_state, of_callback = PartialState.__init__, RunCallback.on_train_begin


def init(self: PartialState, *arguments: Any, **named: Any) -> None:
    of_state(self, *arguments, **named)
    if self.distributed_type is DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


def on_train_begin(self: RunCallback, *arguments: Any, **named: Any) -> None:
    sharded = {
        type(module).__name__ for module in self._trainer.model_wrapped.modules() if isinstance(module, FSDPModule)
    }
    assert {"FSDPDistiller", "FSDPLlamaDecoderLayer"} <= sharded, sharded
    of_callback(self, *arguments, **named)


PartialState.__init__ = init
RunCallback.on_train_begin = on_train_begin  # type: ignore[method-assign]
sys.exit(main())
