"""Several GPUs, several models and many users in one Python process, safely and fast.

Importing this package touches no GPU, creates no CUDA context and starts no thread.
"""

from coresident import _exit as _exit
from coresident._core import (
    Borrow,
    CancelToken,
    Device,
    DevicePool,
    DeviceStatus,
    Holder,
    Lease,
    LoadLock,
    LockGuard,
    LockStatus,
    LockUser,
    Ticket,
    Waiter,
    WorkerPool,
    WorkerStatus,
    __version__,
    current_cancel_token,
    current_device,
    devices,
    register_provider,
    shares,
    virtual_devices,
)
from coresident._providers import torch_accelerators
from coresident.errors import (
    CancelledError,
    ClosedError,
    CoresidentError,
    DeadlockError,
    DeviceNotFoundError,
    DeviceRemovedError,
    ForkedError,
    InvalidDeviceError,
    InvalidTypeError,
    InvalidValueError,
    ReleasedError,
    WaitTimeoutError,
)
from coresident.runtime import Runtime

__all__ = [
    "Borrow",
    "CancelToken",
    "CancelledError",
    "ClosedError",
    "CoresidentError",
    "DeadlockError",
    "Device",
    "DeviceNotFoundError",
    "DevicePool",
    "DeviceRemovedError",
    "DeviceStatus",
    "ForkedError",
    "Holder",
    "InvalidDeviceError",
    "InvalidTypeError",
    "InvalidValueError",
    "Lease",
    "LoadLock",
    "LockGuard",
    "LockStatus",
    "LockUser",
    "ReleasedError",
    "Runtime",
    "Ticket",
    "WaitTimeoutError",
    "Waiter",
    "WorkerPool",
    "WorkerStatus",
    "__version__",
    "current_cancel_token",
    "current_device",
    "devices",
    "register_provider",
    "shares",
    "virtual_devices",
]

register_provider(torch_accelerators)
