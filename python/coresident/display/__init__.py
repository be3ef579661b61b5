"""What people look at: progress bars, pictures of timelines, grids of images.

``Timeline`` needs nothing beyond the standard library, :func:`grid` needs Pillow, and
:func:`watch` and :class:`JobProgress` need rich; ``pip install 'coresident[diffusers]'`` brings
both.
"""

from coresident.display.grid import grid
from coresident.display.progress import JobProgress
from coresident.display.span import Span
from coresident.display.timeline import Timeline
from coresident.display.watch import Watch, watch

__all__ = ["JobProgress", "Span", "Timeline", "Watch", "grid", "watch"]
