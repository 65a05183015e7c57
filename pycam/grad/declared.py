"""Ops that no gradient flows through, each with the reason."""

from __future__ import annotations

from .registry import ALL, Kind, refuse, stop

_STOPPED: dict[tuple[str, Kind], tuple[str, ...]] = {
    ("it works on integers", "integer"): (
        "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "ImageDecoder",
    ),
    ("it works on text, or counts words", "integer"): (
        "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer",
    ),
    ("it depends on shapes and sizes alone", "integer"): (
        "BlackmanWindow", "ConstantOfShape", "EyeLike", "HammingWindow", "HannWindow",
    ),
    ("it gives positions", "integer"): ("NonMaxSuppression", "NonZero"),
    ("it is a constant", "setting"): ("Constant",),
    ("its edges are rounded to whole frequencies", "zero"): ("MelWeightMatrix",),
    ("it draws at random, which depends on its input in steps or not at all", "random"): (
        "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
    ),
}  # fmt: skip

for (_why, _kind), _ops in _STOPPED.items():
    for _op in _ops:
        stop(_op, ALL, why=_why, kind=_kind)

refuse("BitCast", why="it reads the bits of a number as another type")
refuse("Unique", 0, why="which of several equal inputs a value stands for is not defined, in PyTorch neither")
