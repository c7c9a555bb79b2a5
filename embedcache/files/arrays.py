"""Names for types of arrays that more than one room uses."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
AnyFloats: TypeAlias = NDArray[np.floating[Any]]  # float32 or float64
Codes: TypeAlias = NDArray[np.int64]  # numbers of classes or of rows, from 0
Rows: TypeAlias = NDArray[Any]  # (n, dim): float32, or uint8 where rows are pictures
