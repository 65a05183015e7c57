"""What no gradient flows through: random numbers, whole numbers, text; and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from pycam.errors import LayerError, UnsupportedOpError
from pycam.gradient import vjp

STOPPED = [
    "r = RandomNormalLike(x) y = Mul(x, r)",
    "r = RandomUniformLike(x) y = Mul(x, r)",
    "b = Bernoulli(x) y = Mul(x, b)",
    "n = EyeLike(x) y = Mul(x, n)",
    "i = NonZero(x) f = Cast<to=11>(i) s = ReduceSum(f) y = Mul(x, s)",
]


@pytest.mark.parametrize("body", STOPPED)
def test_beside_a_path_it_is_a_factor(check, body):
    """`d(x·f)/dx = f`: what the op itself adds is nothing."""
    nodes = vjp(check.model(body, {"x": (3, 3)}), ["x"]).graph.node
    assert [node.op_type for node in nodes if node.output[0] == "x.gradient" or "pycam" in node.name] == ["Mul"]


def test_alone_there_is_no_path(check):
    with pytest.raises(LayerError, match="no differentiable path"):
        check.gradient("y = RandomNormalLike(x)", {"x": (2, 2)})


def test_a_unique_value_may_stand_for_several(check):
    with pytest.raises(UnsupportedOpError, match="several equal inputs"):
        check.gradient("y = Unique(x)", {"x": np.arange(3.0)})


def test_the_bits_of_a_number_end_the_path_and_are_refused_as_a_float(check):
    with pytest.raises(LayerError, match="no differentiable path"):
        check.gradient("b = BitCast<to=7>(x) y = BitCast<to=11>(b)", {"x": np.arange(3.0)}, opset=26)
    with pytest.raises(UnsupportedOpError, match="reads the bits"):
        check.gradient("y = BitCast<to=11>(x)", {"x": np.arange(3.0)}, opset=26)
