"""FullGrad: what the image and every bias give to the score."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from pycam.errors import MethodError
from pycam.grad.reverse import between
from pycam.graph.locate import dims

from .combine import shaped
from .pixel import by_image, image_of, image_positions
from .registry import POSITIONS, method
from .scene import Scene

_EPSILON = 1e-7  # as pytorch-grad-cam's
_HIDING = {"FusedConv", "QLinearConv", "ConvInteger"}


@method("fullgrad", "FullGrad", "1905.00780", cost="1 forward + backward", layers="none")
def fullgrad(s: Scene) -> ir.Value:
    """`Σ_c s(|x·dy/dx|) + Σ_l Σ_c resize(s(|b·dy/dz_l|))`: `z_l` the value that a bias `b` was added to, `s` the
    min–max of each channel.

    The biases are those of convolutions, and of batch normalisations, `β − μγ/√(σ² + ε)`, as in pytorch-grad-cam's.
    A batch normalisation that follows a convolution is one layer with it, and their bias is one: pytorch-grad-cam
    counts two where the convolution has its own (VGG with batch normalisation).

    Maps of equal size are added before they are resized, which changes nothing: resizing is linear.
    """
    if s.axes != 2:
        raise s.needs("the biases of convolutions over rows and columns")
    g, x = s.g, image_of(s)
    biases = list(_biases(s))
    dx, *grads = s.first.gradients([x, *(value for value, _ in biases)])
    image = by_image(s, s.channels_first(dx))
    shares = g.Abs(g.Mul(image, g.Unsqueeze(s.read(s.pixels), [1])))  # (N, K, C, H, W)
    own = g.ReduceSum(_min_max(s, shares), [2], keepdims=0)  # (N, K, H, W)
    sizes: dict[tuple[int | str, ...], list[ir.Value]] = {}
    for (value, bias), grad in zip(biases, grads, strict=True):
        positions = dims(value)[2:]
        if positions == (1, 1):  # min–max of a single number is 0
            continue
        known = positions if "?" not in positions else ("?", str(len(sizes)))
        sizes.setdefault(known, []).append(_of_bias(s, grad, bias))
    whole = image_positions(s)
    maps = [_resized(s, _sum(s, found), same=positions == whole) for positions, found in sizes.items()]
    rest = [g.Squeeze(by_image(s, m), [2]) for m in ([_sum(s, maps)] if maps else [])]
    return shaped(s, _sum(s, [own, *rest]), whole)


def _biases(s: Scene) -> Iterator[tuple[ir.Value, ir.Value]]:
    """(what the bias was added to, with it; the bias (C,)) of the layers between the image and the score.

    Raises:
        MethodError: a layer has its bias where no gradient is known for what it was added to.
    """
    g, rows = s.g, dims(s.x)[0]
    for node in between(list(g.graph), [s.x], [s.score]).nodes:
        value, inputs = node.outputs[0], list(node.inputs)
        if node.op_type in _HIDING:
            raise MethodError(
                f"FullGrad needs the biases, and the {node.op_type} node {node.name!r} has its own inside: "
                "give the model as it was before it was optimised or quantised"
            )
        if node.op_type == "Conv" and len(inputs) > 2 and inputs[2] is not None:
            bias = s.read(inputs[2])
        elif node.op_type == "BatchNormalization":
            gamma, beta, mean, variance = (s.read(x) for x in inputs[1:5] if x is not None)
            deviation = g.Sqrt(g.Add(variance, node.attributes.get_float("epsilon", 1e-5)))
            bias = g.Sub(beta, g.Div(g.Mul(mean, gamma), deviation))
        elif node.op_type == "Add" and (added := _of_channels(node)) is not None:
            bias = s.read(added)
        else:
            continue
        found = dims(value)
        if len(found) != 4:
            continue
        if isinstance(rows, int) and isinstance(found[0], int) and rows != found[0]:
            raise MethodError(
                f"FullGrad needs one row per image in every layer, and {value.name!r} has {found[0]} for {rows} images"
            )
        yield value, bias


def _of_channels(node: ir.Node) -> ir.Value | None:
    """The constant (C, 1, 1) or (1, C, 1, 1) that a node adds to what a convolution or norm made: a bias spelt out."""
    for x, constant in (node.inputs, list(node.inputs)[::-1]):
        maker = x.producer() if x is not None else None
        if constant is None or constant.const_value is None or maker is None or len(dims(node.outputs[0])) != 4:
            continue
        sizes = dims(constant)
        per_channel = sizes[-3:] == (dims(node.outputs[0])[1], 1, 1) and sizes[:-3] in ((), (1,))
        if per_channel and maker.op_type in ("Conv", "BatchNormalization", "Mul"):
            return constant
    return None


def _of_bias(s: Scene, grad: ir.Value, bias: ir.Value) -> ir.Value:
    """`Σ_c s(|b·g|)` (K·N, 1, h, w) of gradients (K·N, C, h, w): a row of weights times `|g| − min |g|`."""
    g = s.g
    size = g.Abs(grad)
    lifted = g.Sub(size, g.ReduceMin(size, POSITIONS, keepdims=1))
    b = g.Reshape(g.Abs(bias), [1, -1, 1, 1])
    w = g.Div(b, g.Add(g.Mul(b, g.ReduceMax(lifted, POSITIONS, keepdims=1)), _EPSILON))  # (K·N, C, 1, 1)
    flat = g.MatMul(g.Reshape(w, [0, 1, -1]), g.Reshape(lifted, [0, 0, -1]))  # (K·N, 1, h·w)
    return g.Reshape(flat, g.Concat([0, 1], g.Slice(g.Shape(grad), [2], [4], [0]), axis=0))


def _min_max(s: Scene, x: ir.Value) -> ir.Value:
    g = s.g
    lifted = g.Sub(x, g.ReduceMin(x, POSITIONS, keepdims=1))
    return g.Div(lifted, g.Add(g.ReduceMax(lifted, POSITIONS, keepdims=1), _EPSILON))


def _sum(s: Scene, maps: list[ir.Value]) -> ir.Value:
    return maps[0] if len(maps) == 1 else s.g.Sum(*maps)


def _resized(s: Scene, maps: ir.Value, *, same: bool) -> ir.Value:
    """(K·N, 1, h, w) at the size of the image, as OpenCV's INTER_LINEAR."""
    g = s.g
    if same:
        return maps
    size = g.Concat(g.Slice(g.Shape(maps), [0], [2], [0]), s.size, axis=0)
    return g.Resize(maps, None, None, size, mode="linear", coordinate_transformation_mode="half_pixel")
