"""Running the jobs of a queue: one worker for each device, and parts of jobs on idle devices.

:meth:`coresident.Runtime.serve` starts it. How a worker goes about a job is told in ``_worker.py``.
"""

from coresident.serving.borrowing import borrowable
from coresident.serving.idle import IdlePolicy
from coresident.serving.job import ServedJob, current_job
from coresident.serving.server import Server

__all__ = ["IdlePolicy", "ServedJob", "Server", "borrowable", "current_job"]
