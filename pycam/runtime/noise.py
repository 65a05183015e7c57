"""Random numbers for methods that need them: the same seed gives the same bits, whatever the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray


def draw(
    kind: Literal["normal", "uniform"], shape: Sequence[int], seed: int, variants: Sequence[int], stream: int = 0
) -> NDArray[np.float32]:
    """One sample per variant, float32 (len(variants), *shape).

    Variant `i` is drawn by numpy's `Generator(Philox(key=[seed, i + 2³²·stream]))`, so that it does not depend on the
    variants drawn with it.

    Args:
        kind: "normal": mean 0, variance 1; "uniform": in [0, 1).
        shape: Of a sample.
        seed: 0 … 2⁶⁴ − 1.
        variants: Their indices.
        stream: Tells several noises of one method apart.
    """
    out = np.empty((len(variants), *shape), np.float32)
    for i, variant in enumerate(variants):
        generator = np.random.Generator(np.random.Philox(key=[seed, int(variant) + (stream << 32)]))
        fill = generator.standard_normal if kind == "normal" else generator.random
        fill(dtype=np.float32, out=out[i])
    return out
