"""A classifier of real digits: the judge of what the pipeline draws."""

from __future__ import annotations

import numpy as np
import torch
from dataset import digits
from PIL.Image import Image
from sklearn.svm import SVC
from torch import Tensor
from torch.nn import functional


def features(images: Tensor) -> np.ndarray:
    """Images ``(count, 3, size, size)``, -1 to 1, as eight by eight shades."""
    shades = functional.adaptive_avg_pool2d(images.mean(dim=1, keepdim=True), 8)
    return shades.flatten(1).numpy()


def train_classifier() -> SVC:
    """Learns all the digits."""
    images, labels = digits()
    return SVC(gamma=0.05, C=10).fit(features(images), labels.numpy())


def recognise(classifier: SVC, drawn: list[Image]) -> list[int]:
    """The digit in each of these images."""
    arrays = np.stack([np.asarray(image.convert("RGB")) for image in drawn])
    images = torch.from_numpy(arrays).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return classifier.predict(features(images)).tolist()
