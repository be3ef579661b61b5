"""For torch: models that threads load, move and patch at the same time."""

from coresident.torch.installation import Installation, install
from coresident.torch.loading import load
from coresident.torch.model import Model
from coresident.torch.per_job import per_job
from coresident.torch.replica import Replica, StrayWriteWarning
from coresident.torch.residence import Residence
from coresident.torch.working_memory import WorkingMemory
from coresident.torch.writable import lora, writable

__all__ = [
    "Installation",
    "Model",
    "Replica",
    "Residence",
    "StrayWriteWarning",
    "WorkingMemory",
    "install",
    "load",
    "lora",
    "per_job",
    "writable",
]
