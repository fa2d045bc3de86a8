"""What a picture is given, checked before it is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np


def same_length(**arrays: Any) -> list[np.ndarray]:
    """The arrays as float64, each (N,). ValueError where their lengths differ, or where a value cannot be drawn."""
    checked = {name: np.asarray(values, np.float64) for name, values in arrays.items()}
    names, shapes = ", ".join(checked), {name: values.shape for name, values in checked.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"{names} must be lists of the same length, got shapes {shapes}; give one value for each")
    if not all(map(len, checked.values())):
        raise ValueError(f"{names} are empty, so there is nothing to draw; give at least one value")
    if not all(np.isfinite(values).all() for values in checked.values()):
        raise ValueError(f"{names} must be finite numbers to be drawn; leave out what is infinite or no number")
    return list(checked.values())
