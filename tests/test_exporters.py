"""Models as the exporters of every framework write them: they load, list their layers, have exact gradients and are
explained; and so is one model in all the odd forms that are valid ONNX.

``tests/reference/make_exporters.py`` made the models and what the frameworks themselves say about them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

import pycam

FOLDER = Path(__file__).parent / "reference" / "exporters"
MODELS = sorted(path.stem for path in FOLDER.glob("*.onnx"))
TOLERANCE = 1e-4  # relative, in the 2-norm

# Layers by the names that people know them by, where the exporter keeps such names, with the size of their maps.
LAYERS: dict[str, dict[str, tuple[int, int]]] = {
    "torch_dynamo_cnn": {
        "stem": (16, 16),
        "stem.1": (16, 16),
        "pool": (8, 8),
        "blocks.0.depthwise": (8, 8),
        "blocks.1": (8, 8),
        "blocks.2.project": (4, 4),
    },
    "torch_dynamo_vit": {"patch": (4, 4)},
    "keras_cnn": {
        "block3_add_1": (4, 4),
        "block1_dwconv_1": (8, 8),
        "stem_activation_1": (16, 16),
        "mobile_1/stem_pool_1": (8, 8),
        "block3_add": (4, 4),  # as in Keras, which numbers every layer once more when it exports
        "mobile/stem_pool": (8, 8),
        "mobile_1/top_activation_1/Relu6:0": (4, 4),
    },
    "tf2onnx_function": {"stem": (16, 16), "stem/Relu6:0": (16, 16), "block/AvgPool2D": (8, 8), "final": (8, 8)},
    "jax_flax_cnn": {
        "node_Conv_1": (16, 16),
        "MaxPool_0": (8, 8),
        "Conv_1__2": (4, 4),
        "Separable_1": (8, 8),  # the call of a block that is a function
        "Separable_2": (4, 4),
    },
    "jax_equinox_vit": {"eqx_conv_out_nchw_0": (4, 4)},
    "paddle_lcnet": {
        "p2o.pd_op.hardswish.4.0": (4, 4),
        "p2o.pd_op.batch_norm_.0.0": (16, 16),
        "p2o.pd_op.add.3.0": (4, 4),
        "MaxPool.0": (8, 8),
    },
}
LAYERS["torch_dynamo_newest_cnn"] = LAYERS["torch_dynamo_cnn"]
LAYERS["torch_legacy_cnn"] = LAYERS["torch_dynamo_cnn"] | {
    "stem.0": (16, 16)
}  # it merges batch norms into convolutions
del LAYERS["torch_legacy_cnn"]["stem.1"]
LAYERS["torch_dynamo_newest_vit"] = LAYERS["torch_legacy_vit"] = LAYERS["torch_dynamo_vit"]
LAYERS["tf2onnx_keras"] = LAYERS["tf2onnx_nchw"] = LAYERS["keras_cnn"]
LAYERS["paddle_lcnet_raw"] = LAYERS["paddle_lcnet"]


@functools.cache
def reference(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays = dict(np.load(FOLDER / f"{name}.npz"))
    return arrays, json.loads(str(arrays.pop("about")))


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    assert actual.shape == expected.shape
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def test_every_exporter_is_there() -> None:
    assert {name.split("_")[0] for name in MODELS} == {"torch", "keras", "tf2onnx", "jax", "paddle"}
    assert set(MODELS) == set(LAYERS) | {"keras_vit"}


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_listed(name: str) -> None:
    layers = pycam.layers(FOLDER / f"{name}.onnx")
    assert layers
    assert all(len(layer.shape) in (3, 4) for layer in layers)
    assert [layer.share for layer in layers] == sorted((layer.share for layer in layers), reverse=True)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_framework_s_own(name: str, forward: Callable[..., dict[str, np.ndarray]]) -> None:
    arrays, about = reference(name)
    model = pycam.vjp(FOLDER / f"{name}.onnx", wrt=[about["input"], about["inner"]], output=about["output"])
    cotangent = np.eye(arrays["y"].shape[1], dtype=np.float32)[arrays["targets"]]
    got = forward(model, {about["input"]: arrays["x"], f"{about['output']}.cotangent": cotangent})
    assert relative(got[about["output"]], arrays["y"]) <= TOLERANCE
    assert relative(got[f"{about['input']}.gradient"], arrays["dx"]) <= TOLERANCE
    assert relative(got[f"{about['inner']}.gradient"], arrays["g"]) <= TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_auto_explains(name: str) -> None:
    arrays, _ = reference(name)
    result = pycam.Explainer(FOLDER / f"{name}.onnx", threads=1)(arrays["x"], targets=arrays["targets"])
    assert relative(np.asarray(result.scores), arrays["y"]) <= TOLERANCE
    assert result.heatmaps.shape == (2, 1, 32, 32)
    assert np.isfinite(result.heatmaps).all()
    assert not result.flat.any()
    assert (result.heatmaps.max((2, 3)) > result.heatmaps.min((2, 3))).all()


VITS = [name for name in MODELS if name.endswith("_vit")]


@pytest.mark.parametrize("name", VITS)
def test_auto_takes_a_transformer_s_patches(name: str) -> None:
    """A map has the size of the grid of patches: not queries, keys or attention weights, which have four axes, too."""
    arrays, _ = reference(name)
    assert pycam.Explainer(FOLDER / f"{name}.onnx", threads=1)(arrays["x"]).raw.shape[2:] == (4, 4)


@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name, layers in LAYERS.items() for layer in layers])
def test_layers_by_the_names_people_know(name: str, layer: str) -> None:
    arrays, _ = reference(name)
    result = pycam.Explainer(FOLDER / f"{name}.onnx", layer=layer, threads=1)(arrays["x"])
    assert result.raw.shape[2:] == LAYERS[name][layer]


CNNS = [name for name in MODELS if reference(name)[0]["A"].ndim == 4]


@pytest.mark.parametrize("name", CNNS)
def test_a_map_is_what_the_framework_s_activations_and_gradients_make(name: str) -> None:
    """HiResCAM is their product, summed over the channels: independent of layout, and of a final softmax."""
    arrays, about = reference(name)
    explainer = pycam.Explainer(FOLDER / f"{name}.onnx", method="hirescam", layer=about["inner"], threads=1)
    result = explainer(arrays["x"], targets=arrays["targets"])
    channels = 3 if arrays["A"].shape[1] == arrays["A"].shape[2] else 1
    assert relative(result.raw[:, 0], (arrays["A"] * arrays["g_logit"]).sum(channels)) <= TOLERANCE


# --- one model in many forms

BASE = """<ir_version: 8, opset_import: ["" : 18]> base (float[N, 3, 12, 12] x) => (float[N, 5] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w1)
    b = BatchNormalization(a, scale, shift, mean, variance)
    c = Clip(b, low, high)
    d = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(c)
    e = Resize<mode = "nearest">(d, roi, factors)
    f = Conv<strides = [2, 2]>(e, w2)
    features = Add(f, d2)
    d2 = Conv<kernel_shape = [2, 2]>(d, w3)
    g = ReduceMean<keepdims = 0>(features, axes)
    h = Gemm<transB = 1>(g, w4)
    y = Tanh(h)
}"""


def base() -> onnx.ModelProto:
    """Convolutions, batch norm, clipping, pooling, resizing, a residual sum: every weight an initialiser."""
    rng = np.random.default_rng(5)
    arrays = {
        "w1": rng.normal(size=(6, 3, 3, 3)) / 4,
        "scale": rng.uniform(0.5, 1.5, 6),
        "shift": rng.normal(size=6),
        "mean": rng.normal(size=6),
        "variance": rng.uniform(0.5, 1.5, 6),
        "low": np.array(-1e30),
        "high": np.array(1.5),
        "roi": np.zeros(0),
        "factors": np.array([1, 1, 2, 2]),
        "w2": rng.normal(size=(4, 6, 4, 4)) / 8,
        "w3": rng.normal(size=(4, 6, 2, 2)) / 4,
        "w4": rng.normal(size=(5, 4)),
    }
    model = onnx.parser.parse_model(BASE)
    nodes = {node.output[0]: node for node in model.graph.node}
    order = ["a", "b", "c", "d", "e", "f", "d2", "features", "g", "h", "y"]
    del model.graph.node[:]
    model.graph.node.extend(nodes[y] for y in order)
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    model.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), k) for k, v in arrays.items())
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    return model


def no_names(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = ""


def one_name(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = "node"


def backwards(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def empty_inputs(model: onnx.ModelProto) -> None:
    """Optional inputs left out: by an empty name in the middle, and by one at the end."""
    for node in model.graph.node:
        if node.op_type in ("Clip", "Resize"):
            node.input[1] = ""
        if node.op_type in ("Conv", "Gemm"):
            node.input.append("")
        if node.op_type == "MaxPool":
            node.output.append("")


def inputs_for_initialisers(model: onnx.ModelProto) -> None:
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in model.graph.initializer
    )


def inputs_for_initialisers_first(model: onnx.ModelProto) -> None:
    image = list(model.graph.input)
    del model.graph.input[:]
    inputs_for_initialisers(model)
    model.graph.input.extend(image)


def value_info_twice(model: onnx.ModelProto) -> None:
    infos = list(onnx.shape_inference.infer_shapes(model).graph.value_info)
    assert infos
    model.graph.value_info.extend(infos + infos)


def value_info_of_everything(model: onnx.ModelProto) -> None:
    """Inputs, outputs and initialisers have no place among the values inside; some exporters list them nevertheless."""
    value_info_twice(model)
    model.graph.value_info.extend([*model.graph.input, *model.graph.output])
    model.graph.value_info.extend(
        helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in model.graph.initializer
    )


def constant_nodes(model: onnx.ModelProto) -> None:
    constants = [helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    nodes = list(model.graph.node)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(constants + nodes)


def computed_constants(model: onnx.ModelProto) -> None:
    """As paddle2onnx writes them: the weights behind Constant and Identity, one of them reshaped on the way."""
    constant_nodes(model)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        if node.op_type == "Constant":
            name, node.output[0] = node.output[0], f"{node.output[0]}.value"
            model.graph.node.append(node)
            node = helper.make_node("Identity", node.output, [name])
        model.graph.node.append(node)


def typed_data(model: onnx.ModelProto) -> None:
    """Weights as lists of numbers instead of bytes."""
    tensors = [
        helper.make_tensor(t.name, t.data_type, t.dims, numpy_helper.to_array(t).ravel().tolist())
        for t in model.graph.initializer
    ]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)


def long_domain(model: onnx.ModelProto) -> None:
    """The default domain has two spellings."""
    model.opset_import[0].domain = "ai.onnx"
    for i, node in enumerate(model.graph.node):
        node.domain = "ai.onnx" if i % 2 else ""


def function_per_node(model: onnx.ModelProto) -> None:
    """Every node a function of its own, whose domain has another version there than in the model (jax2onnx)."""
    for i, node in enumerate(model.graph.node):
        inputs = [f"in{k}" for k in range(len(node.input))]
        body = helper.make_node(node.op_type, inputs, ["out"])
        body.attribute.extend(node.attribute)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(f"layer.{i}", 18)]
        model.functions.append(helper.make_function(f"layer.{i}", "Layer", inputs, ["out"], [body], opsets))
        model.opset_import.append(helper.make_opsetid(f"layer.{i}", 1))
        node.domain, node.op_type = f"layer.{i}", "Layer"
        del node.attribute[:]


def everything(model: onnx.ModelProto) -> None:
    typed_data(model)
    empty_inputs(model)
    no_names(model)
    value_info_twice(model)
    inputs_for_initialisers(model)
    backwards(model)


FORMS: list[Callable[[onnx.ModelProto], None]] = [
    no_names,
    one_name,
    backwards,
    empty_inputs,
    inputs_for_initialisers,
    inputs_for_initialisers_first,
    value_info_twice,
    value_info_of_everything,
    constant_nodes,
    computed_constants,
    typed_data,
    long_domain,
    function_per_node,
    everything,
]


def gradients(model: onnx.ModelProto, run: Callable[..., dict[str, np.ndarray]], shape: tuple[int, ...]) -> np.ndarray:
    """Of a drawn cotangent, for a drawn input `x`."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=shape).astype(np.float32)
    differentiated = pycam.vjp(model, wrt=["x"])
    classes = differentiated.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    cotangent = rng.normal(size=(len(x), classes)).astype(np.float32)
    return run(differentiated, {"x": x, "y.cotangent": cotangent})["x.gradient"]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_the_form_does_not_matter(form: Callable[..., None], forward: Callable[..., dict[str, np.ndarray]]) -> None:
    model = base()
    form(model)
    assert model != base()
    want = gradients(base(), forward, (2, 3, 12, 12))
    assert np.abs(want).max() > 0.01
    np.testing.assert_allclose(gradients(model, forward, (2, 3, 12, 12)), want, rtol=0, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_the_form_does_not_matter_to_an_explanation(form: Callable[..., None]) -> None:
    model = base()
    form(model)
    x = np.random.default_rng(3).normal(size=(2, 3, 12, 12)).astype(np.float32)
    results = [pycam.Explainer(m, layer=layer, threads=1)(x) for m in (base(), model) for layer in ("auto", "c")]
    for want, got in zip(results[:2], results[2:], strict=True):
        assert got.layer == want.layer
        np.testing.assert_allclose(got.heatmaps, want.heatmaps, rtol=0, atol=1e-6)


def referenced(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The model's outputs by onnx.reference, which knows every opset."""
    evaluator = onnx.reference.ReferenceEvaluator(model)
    return dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))


@pytest.mark.parametrize("opset", [9, 11, 13, 17, onnx.defs.onnx_opset_version()])
@pytest.mark.parametrize("tail", ["conv", "flatten"])
def test_the_opset_does_not_matter(
    cnn: Callable[..., onnx.ModelProto], forward: Callable[..., dict[str, np.ndarray]], opset: int, tail: str
) -> None:
    """Opset 18 is what the others are compared with; where the runtime does not know the newest one, in
    onnx.reference."""
    run = forward if opset <= supported() else referenced
    want, got = (
        gradients(cnn(tail, opset=version, batchnorm=True, end="Softmax"), run, (2, 3, 16, 16))
        for version in (18, opset)
    )
    assert np.abs(want).max() > 1e-3
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())


@functools.cache
def supported() -> int:
    """The newest opset that this onnxruntime runs."""
    for opset in range(onnx.defs.onnx_opset_version(), 0, -1):
        model = onnx.parser.parse_model(
            f'<ir_version: 8, opset_import: ["" : {opset}]> one (float[1] x) => (float[1] y) {{ y = Relu(x) }}'
        )
        try:
            ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class
            if "till opset" not in str(error):
                raise
            continue
        return opset
    raise AssertionError("onnxruntime runs no opset at all")
