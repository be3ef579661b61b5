"""For torch: models that threads load, move and patch at the same time."""

from coresident.torch.install import Installation, install

__all__ = ["Installation", "install"]
