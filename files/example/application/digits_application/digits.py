"""What this application knows of digits: instances of 64 numbers, predictions of 10 probabilities."""

from __future__ import annotations

import math
from typing import Any

PIXELS = 64
INK = 16  # the largest value of a pixel
CLASSES = 10


def is_pixel(value: Any) -> bool:
    """A number from 0 to 16. The comparison also refuses NaN and the infinities, which Python's JSON parser accepts."""
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value <= INK


def check_prediction(prediction: Any) -> None:
    """Raises ValueError unless it is a probability for each digit."""
    if (
        not isinstance(prediction, list)
        or len(prediction) != CLASSES
        or not all(isinstance(p, int | float) and math.isfinite(p) for p in prediction)
    ):
        raise ValueError(f"{CLASSES} probabilities")


def digit_of(prediction: list[float]) -> int:
    """The most probable digit; of equal ones the lowest."""
    return max(range(CLASSES), key=prediction.__getitem__)
