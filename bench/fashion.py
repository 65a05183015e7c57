"""The fashion scenes: items on textures with exact masks (numpy alone, so that any environment can read them)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARED = Path(os.environ.get("PYCAM_SHARED") or Path(__file__).parents[2] / "shared")
CACHE = Path(os.environ.get("PYCAM_BENCH_CACHE") or Path(__file__).parent / ".cache")
CNN = SHARED / "models" / "fashion_scene_cnn.onnx"
VIT = CACHE / "regions_vit.onnx"
TRAINED = 800
"""The scenes before this one taught `VIT`."""


class Missing(Exception):
    """Data that is not here; the message says which."""


def fashion_arrays() -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.int64]]:
    """Pictures (1000, 64, 64), masks of the item in each, and its class.

    Raises:
        Missing: the file is not there.
    """
    path = SHARED / "images" / "fashion_scenes.npz"
    if not path.exists():
        raise Missing(f"{path.name} is not in the shared folder (set PYCAM_SHARED)")
    with np.load(path) as arrays:
        masks: NDArray[Any] = np.unpackbits(arrays["masks"], axis=-1)
        return arrays["images"], masks.astype(bool), arrays["labels"].astype(np.int64)
