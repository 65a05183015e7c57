"""Layers by the names that people know; the score; the errors that help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

import pycam
from pycam.errors import LayerError, ModelError
from pycam.graph.load import load
from pycam.graph.locate import locate_layers, locate_score, module_path
from pycam.graph.normalise import normalise

Net = Callable[..., onnx.ModelProto]
REFERENCE = Path(__file__).parents[1] / "reference"


def layers_of(source: Any, layer: Any, output: str | None = None) -> list[str | None]:
    graph = normalise(load(source)).graph
    return [value.name for value in locate_layers(graph, layer, locate_score(graph, output).value)]


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["features", "node_features", "auto"])
def test_by_tensor_by_node_and_by_itself(cnn: Net, name: str) -> None:
    assert layers_of(cnn(), name) == ["features"]


def test_several_layers_keep_their_order(cnn: Net) -> None:
    assert layers_of(cnn(), ["features", "early"]) == ["features", "early"]
    assert layers_of(cnn(), ("early", "auto")) == ["early", "features"]


@pytest.mark.parametrize(
    ("model", "name", "tensor"),
    [
        ("resnet.dynamo", "layer2", "relu_8"),
        ("resnet.dynamo", "layer2.1", "relu_8"),
        ("resnet.dynamo", "layer1.0.shortcut", "getitem_9"),
        ("resnet.dynamo", "stem.0.2", "relu"),
        ("resnet.legacy", "layer2", "/layer2/layer2.1/relu/Relu_output_0"),
        ("resnet.legacy", "layer1.0.body.0", "/layer1/layer1.0/body/body.0/body.0.2/Relu_output_0"),
        ("resnet.legacy", "layer1.0.body.0.0", "/layer1/layer1.0/body/body.0/body.0.0/Conv_output_0"),
        ("resnet.legacy", "/stem/stem.1/MaxPool", "/stem/stem.1/MaxPool_output_0"),
        ("vgg.legacy", "features.7", "/features/features.7/Relu_output_0"),
        ("vgg.legacy", "features", "/features/features.8/MaxPool_output_0"),
        ("mobilenet.dynamo", "features.3.body.3", "getitem_27"),
    ],
)
def test_module_paths_of_both_torch_exporters(model: str, name: str, tensor: str) -> None:
    assert layers_of(REFERENCE / f"{model}.onnx", name) == [tensor]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("", ""),
        ("Conv_12", ""),
        ("/Flatten", ""),
        ("/fc/Gemm", "fc"),
        ("/layer1/layer1.0/Add", "layer1.0"),
        ("/layer1/layer1.0/body/body.1/body.1.0/Conv", "layer1.0.body.1.0"),
        ("/features/features.1/features.1.0/Conv", "features.1.0"),
        ("/features/features.10/Relu", "features.10"),
        ("/a/a/Relu", "a.a"),  # a module within one of the same name repeats without a dot
        ("model/block5_conv3/Conv2D", "model/block5_conv3"),
        ("StatefulPartitionedCall/model/conv/BiasAdd;model/conv/Conv2D", "StatefulPartitionedCall/model/conv"),
    ],
)
def test_module_path_from_the_name_of_a_node(name: str, path: str) -> None:
    assert module_path(ir.Node("", "Relu", [], name=name)) == path


def test_module_path_from_the_exporters_metadata() -> None:
    node = ir.Node("", "Relu", [], name="n", metadata_props={"pkg.torch.onnx.name_scopes": "['', 'a', 'a.b', 'relu']"})
    assert module_path(node) == "a.b"
    node.metadata_props["pkg.torch.onnx.name_scopes"] = "['relu']"
    assert module_path(node) == ""


@pytest.mark.parametrize("name", ["block2_conv", "model/block2_conv", "model/block2_conv/Relu"])
def test_names_of_tf2onnx(cnn: Net, name: str) -> None:
    model = cnn()
    for node in model.graph.node:
        node.name = {
            "late": "model/block2_conv/Conv2D",
            "features": "model/block2_conv/Relu",
            "pooled": "model/pool/Mean",
        }.get(node.output[0], f"model/{node.output[0]}/op")
    assert layers_of(model, name) == ["features"]


def test_a_module_that_ends_off_the_path_is_found_by_what_lies_on_it(cnn: Net) -> None:
    """Exporters leave shapes and constants behind in the module that they came from."""
    model = cnn()
    shape = model.graph.node.add()
    shape.op_type, shape.name = "Shape", "/block/Shape"
    shape.input.append("early")
    shape.output.append("shape")
    model.graph.output.append(onnx.helper.make_tensor_value_info("shape", onnx.TensorProto.INT64, [4]))
    next(n for n in model.graph.node if n.output[0] == "early").name = "/block/Relu"
    assert layers_of(model, "block") == ["early"]


def test_names_of_what_normalising_drops(cnn: Net) -> None:
    """An Identity or Dropout is the layer that it copies."""
    model = cnn()
    relu = next(n for n in model.graph.node if n.output[0] == "features")
    relu.output[0] = "rectified"
    for i, (op, x, y) in enumerate([("Dropout", "rectified", "dropped"), ("Identity", "dropped", "features")]):
        node = onnx.helper.make_node(op, [x], [y], name=f"/block/{op}")
        model.graph.node.insert(list(model.graph.node).index(relu) + 1 + i, node)
    for name in ("rectified", "dropped", "features", "/block/Dropout", "/block/Identity"):
        assert layers_of(model, name) == ["rectified"], name


# ---- auto ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "last"),
    [("gap", "features"), ("mean", "features"), ("flatten", "features"), ("mlp", "features"), ("conv", "active")],
)
def test_auto_takes_the_last_spatial_features(cnn: Net, tail: str, last: str) -> None:
    assert layers_of(cnn(tail), "auto") == [last]
    assert layers_of(cnn(tail, height="H", width="W", end="Softmax"), "auto") == [last]


@pytest.mark.parametrize("pool", ["MaxPool", "AveragePool"])
def test_auto_steps_in_front_of_a_pool(text_model: Any, pool: str) -> None:
    model = text_model(
        f"""(float[N, 3, 8, 8] x) => (float[N, 3] y) {{
            a = Relu(x)
            p = {pool}<kernel_shape = [2, 2], strides = [2, 2]>(a)
            g = GlobalAveragePool(p)
            y = Flatten(g)
        }}"""
    )
    assert layers_of(model, "auto") == ["a"]


def test_auto_takes_what_every_path_leads_through(text_model: Any) -> None:
    """Queries and keys have four axes as well; the features that they are made of, and go into, do not branch."""
    body = """(float[N, 3, 8, 8] x) => (float[N, 3] y) {
        a = Relu(x)
        q = Sigmoid(a)
        k = Tanh(a)
        kt = Transpose<perm=[0, 1, 3, 2]>(k)
        p = MatMul(q, kt)
        s = Softmax(p)
        END
        g = GlobalAveragePool(b)
        y = Flatten(g)
    }"""
    assert layers_of(text_model(body.replace("END", "b = Add(s, a)")), "auto") == ["b"]
    branches = "one = GlobalAveragePool(s) two = GlobalAveragePool(a) b = Add(one, two)"
    assert layers_of(text_model(body.replace("END", branches)), "auto") == ["a"]


def test_channels_last_features_before_a_linear_layer(text_model: Any) -> None:
    """As a Swin transformer's: normalised along the last axis, averaged over the two in the middle."""
    model = text_model(
        """(float[N, 6, 6, 4] x) => (float[N, 4] y) <float[4] scale = {1.0, 1.0, 1.0, 1.0}> {
            r = Relu(x)
            n = LayerNormalization(r, scale)
            a = Tanh(n)
            axes = Constant<value_ints=[1, 2]>()
            y = ReduceMean<keepdims=0>(a, axes)
        }"""
    )
    graph = normalise(load(model)).graph
    (layer,) = locate_layers(graph, "auto", locate_score(graph).value)
    assert (layer.name, list(layer.shape or [])[1:]) == ("a/channels_first", [4, 6, 6])


def test_auto_does_not_take_the_input_itself(text_model: Any) -> None:
    model = text_model(
        """(float[N, 3, 8, 8] x) => (float[N, 3] y) {
            p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x)
            g = GlobalAveragePool(p)
            y = Flatten(g)
        }"""
    )
    assert layers_of(model, "auto") == ["p"]


def test_auto_without_any_features(text_model: Any) -> None:
    model = text_model("(float[N, 3, 8, 8] x) => (float[N, 192] y) { a = Flatten(x) y = Relu(a) }")
    with pytest.raises(LayerError, match=r"layer='auto' found no spatial features.*'y'.*name a layer"):
        layers_of(model, "auto")


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("featurs", r"no layer 'featurs'; nearest: .*features.*`pycam layers`"),
        ("", r"no layer ''"),
        ("x", r"no layer 'x'"),
        ([], "no layer was given"),
        (["features", "nothing"], "no layer 'nothing'"),
        ("logits", r"'logits'.*does not lead to the score 'logits'"),
        ("flat", r"'flat'.*shape \['N', 6\].*needs features \(N, C, h, w\)"),
    ],
)
def test_names_that_are_wrong(cnn: Net, layer: Any, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        layers_of(cnn(end="Softmax"), layer)


def test_the_nearest_names_are_those_of_modules(cnn: Net) -> None:
    with pytest.raises(LayerError, match=r"nearest: layer2\.1[^;]*layer2\.0"):
        layers_of(REFERENCE / "resnet.legacy.onnx", "layer2.2")


def test_a_layer_that_does_not_lead_to_the_score(text_model: Any) -> None:
    model = text_model(
        """(float[N, 3, 8, 8] x) => (float[N, 3] y, float[N, 3, 8, 8] side) {
            a = Relu(x)
            side = Tanh(a)
            g = GlobalAveragePool(a)
            y = Flatten(g)
        }"""
    )
    with pytest.raises(LayerError, match=r"'side'.*does not lead to the score 'y'.*`pycam layers`"):
        layers_of(model, "side")
    with pytest.raises(LayerError, match="does not lead"):
        pycam.Explainer(model, layer="side")


def test_a_layer_behind_which_no_gradient_flows(text_model: Any) -> None:
    model = text_model(
        """(float[N, 3, 8, 8] x) => (float[N, 3] y) {
            a = Relu(x)
            most = ArgMax<axis = 1>(a)
            b = Cast<to = 1>(most)
            wide = Concat<axis = 1>(b, b, b)
            g = GlobalAveragePool(wide)
            y = Flatten(g)
        }"""
    )
    with pytest.raises(LayerError, match=r"'a'.*(does not lead|no differentiable path)"):
        pycam.Explainer(model, layer="a")


# ---- the score -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "Softmax", "LogSoftmax", "Identity"])
def test_a_final_softmax_is_stepped_behind_and_this_is_said(cnn: Net, end: str) -> None:
    graph = normalise(load(cnn(end=end))).graph
    found = locate_score(graph)
    assert found.output.name == "y"
    assert found.value.name == "logits"
    assert found.probabilities == (end == "Softmax")
    if end in ("Softmax", "LogSoftmax"):
        assert found.notes == [f"the score is the logit 'logits': the final {end} is stepped behind"]
    else:
        assert found.notes == []


def test_the_score_of_another_output(cnn: Net) -> None:
    graph = normalise(load(cnn(extra_output="features"))).graph
    assert locate_score(graph).output.name == "y"
    assert locate_score(graph, "features").output.name == "features"
    with pytest.raises(ModelError, match=r"no output 'z'; it has y, features"):
        locate_score(graph, "z")


def test_an_output_of_integers(text_model: Any) -> None:
    model = text_model(
        "(float[N, 3, 8, 8] x) => (int64[N, 1, 8, 8] y, float[N, 3, 8, 8] z) { y = ArgMax<axis = 1>(x) z = Relu(x) }"
    )
    with pytest.raises(ModelError, match=r"'y' holds INT64 and cannot be differentiated; name another one of y, z"):
        locate_score(normalise(load(model)).graph)


# ---- pycam.layers ----------------------------------------------------------------------------------------------------


def test_layers_with_shape_and_share(cnn: Net) -> None:
    found = {layer.name: layer for layer in pycam.layers(cnn("conv"))}
    assert list(found) == ["before", "stem", "early", "late", "features", "more", "active"]
    costs = {"before": 8 * 64 * 27, "late": 6 * 64 * 72, "more": 6 * 64 * 54, "logits": 6 * 20}
    total = sum(costs.values())
    assert found["early"].share == pytest.approx(1 - costs["before"] / total)
    assert found["features"].share == pytest.approx((costs["more"] + costs["logits"]) / total)
    assert found["active"].share == pytest.approx(costs["logits"] / total)
    assert found["features"].shape == ("N", 6, 8, 8)
    assert found["features"].op == "Relu"


def test_layers_are_names_that_the_explainer_takes(shipped: Path) -> None:
    found = pycam.layers(shipped)
    assert len(found) > 30
    assert [layer.share for layer in found] == sorted((layer.share for layer in found), reverse=True)
    assert found[-1].shape[1:] == (1280, 7, 7)
    assert layers_of(shipped, "auto") == [found[-1].name]
    assert layers_of(shipped, [layer.name for layer in found]) == [layer.name for layer in found]


def test_layers_of_another_output(cnn: Net) -> None:
    names = [layer.name for layer in pycam.layers(cnn(extra_output="early"), output="early")]
    assert names == ["before", "stem"]
