"""Type aliases for NumPy arrays of a fixed dtype.

`Rows` holds row indices of a table, `Mask` selects rows, and `Proba` holds class probabilities. Shapes are documented
where the aliases are used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]
F16 = NDArray[np.float16]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Proba = NDArray[np.float64]
