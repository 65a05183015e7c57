"""What some runtimes get wrong in a whole graph: `lower="portable"` spells it otherwise, with the same values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

import pycam

Forward = Callable[..., dict[str, np.ndarray]]

SQUARE = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)


def model(nodes: str, inputs: str, weights: dict[str, np.ndarray], output: str) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> m (float[{inputs}] x) => (float[{output}] y) {{ {nodes} }}'
    )
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in weights.items())
    return proto


def readers(proto: onnx.ModelProto, array: np.ndarray) -> list[set[str]]:
    """The op types that read each of the initialisers with this content."""
    names = [t.name for t in proto.graph.initializer if np.array_equal(onnx.numpy_helper.to_array(t), array)]
    return [{n.op_type for n in proto.graph.node if name in n.input} for name in names]


def same_in_both(proto: onnx.ModelProto, forward: Forward) -> onnx.ModelProto:
    """The portable gradient, which gives the numbers of the fast one."""
    fast, portable = (pycam.vjp(proto, ["x"], lower=lower) for lower in ("fast", "portable"))
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in fast.graph.input}
    rng = np.random.default_rng(1)
    feed = {name: rng.normal(size=shape).astype(np.float32) for name, shape in sizes.items()}
    want, got = forward(fast, feed), forward(portable, feed)
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-6, err_msg=name)
    return portable


def test_square_weights_read_both_ways_become_two(forward: Forward) -> None:
    """OpenVINO takes the packed weights of the one for those of the other."""
    proto = model("y = Gemm<transB=1>(x, w)", "3, 4", {"w": SQUARE}, "3, 4")
    assert sorted(map(len, readers(pycam.vjp(proto, ["x"]), SQUARE))) == [2]
    assert readers(same_in_both(proto, forward), SQUARE) == [{"Gemm"}, {"MatMul"}]


def test_square_kernels_read_both_ways_become_two(forward: Forward) -> None:
    kernel = np.random.default_rng(2).normal(size=(4, 4, 2, 2)).astype(np.float32)
    proto = model("y = Conv<strides=[2, 2]>(x, w)", "1, 4, 6, 6", {"w": kernel}, "1, 4, 3, 3")
    assert readers(same_in_both(proto, forward), kernel) == [{"Conv"}, {"ConvTranspose"}]


def test_weights_that_are_not_square_stay_one(forward: Forward) -> None:
    weights = np.ascontiguousarray(SQUARE[:3])
    proto = model("y = Gemm<transB=1>(x, w)", "2, 4", {"w": weights}, "2, 3")
    assert readers(same_in_both(proto, forward), weights) == [{"Gemm", "MatMul"}]


def test_weights_read_one_way_twice_stay_one() -> None:
    proto = model("a = MatMul(x, w) b = Relu(a) y = MatMul(b, w)", "3, 4", {"w": SQUARE}, "3, 4")
    assert readers(pycam.vjp(proto, ["x"], lower="portable"), SQUARE) == [{"MatMul"}]


@pytest.mark.parametrize("attributes", ["", "<alpha=0.3, beta=0.4>"])
def test_a_hard_sigmoid_is_clipped(forward: Forward, attributes: str) -> None:
    """OpenCV makes a HardSwish of its product with anything."""
    portable = same_in_both(model(f"s = HardSigmoid{attributes}(x) y = Mul(s, x)", "5, 8", {}, "5, 8"), forward)
    assert "HardSigmoid" not in {n.op_type for n in portable.graph.node}
    (clip,) = (n for n in portable.graph.node if n.op_type == "Clip")
    assert list(clip.output) == ["s"]
