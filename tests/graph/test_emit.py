"""What is emitted: weights inside or left where they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import pycam
from pycam.compile import compile_model
from pycam.errors import ModelError
from pycam.runtime.session import make_session

Net = Callable[..., onnx.ModelProto]


def locations(model: onnx.ModelProto) -> set[str]:
    return {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}


def test_weights_stay_in_the_file_or_are_read_in(cnn: Net, images: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(cnn("flatten").SerializeToString())
    referring, whole = (compile_model(path, outputs=["raw"], stand_alone=alone) for alone in (False, True))
    assert locations(referring.model) == {"model.onnx"}  # relative, so that the folder may move
    assert locations(whole.model) == set()
    assert referring.model.ByteSize() < whole.model.ByteSize() - 30_000  # of 30,720 in the linear layer
    feeds = {"x": images, "targets": np.full((len(images), 1), -1)}
    runs = [
        make_session(graph.model.SerializeToString(), folder=graph.folder).run(["raw"], feeds)[0]
        for graph in (referring, whole)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])


def test_weights_beyond_the_limit_of_protobuf_are_refused(cnn: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a smaller limit: nobody wants a test with 2 GB of weights."""
    monkeypatch.setattr("pycam.graph.emit._PROTOBUF_LIMIT", 1000)
    with pytest.raises(
        ModelError, match=r"the weights take .* GB, and a protobuf file holds 2 GB: run the model with an Explainer"
    ):
        compile_model(cnn("gap"))
    compile_model(cnn("gap"), stand_alone=False)


def test_a_tensor_of_the_user_keeps_its_name() -> None:
    """Also where it is called like ours: only what the builder made is renamed to become an output."""
    head = '<ir_version: 10, opset_import: ["" : 21]>'
    text = head + " f (float[2] x) => (float[2] y) { pycamera = Neg(x) y = Mul(x, pycamera) }"
    model = pycam.vjp(onnx.parser.parse_model(text), ["pycamera"])
    assert "pycamera" in {name for node in model.graph.node for name in node.output}
    assert [o.name for o in model.graph.output] == ["y", "pycamera.gradient"]


def test_sizes_that_inference_names_itself_are_not_told() -> None:
    """Spelling out a Pad infers shapes anew; tract takes another name for a size for another size."""
    text = "(float[N, 3, 6] x) => (float[N, 4] y) { r = Reshape(x, shape) y = Slice(r, two, six, one) }"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> f {text}')
    values = {"shape": [-1, 18], "two": [2], "six": [6], "one": [1]}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.array(v), k) for k, v in values.items())
    differentiated = pycam.vjp(model, ["x"])
    assert "Pad" in {node.op_type for node in differentiated.graph.node}
    names = {d.dim_param for v in differentiated.graph.value_info for d in v.type.tensor_type.shape.dim}
    assert not [name for name in names if name.startswith("pads")]
