"""The reference head, in double and without tricks: `csrc/head_ref.cpp`.  To check other heads with, and machines."""

from __future__ import annotations

from pycam import _native
from pycam.head.cpu import NativeHead

HEAD = NativeHead("reference", _native.finish_ref, _native.explain_ref, _native.overlay_ref)
