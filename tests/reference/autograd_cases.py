"""The cases of ``make_autograd.py``: a few ONNX nodes each, and the same function written with torch.

A case differentiates ``y`` for all its floating inputs.  `weights` become initialisers and torch's side knows them
itself.  Numbers lie on a grid of 1/1024, so that float32 holds them and a tie stays a tie; attributes of ONNX are
float32, so torch's side rounds them alike (`f32`).  Arrays are drawn from the case's name: a new case moves no other.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.ops as vision
from torch import Tensor

GRID = 1024


@dataclass(frozen=True)
class Case:
    """`y` by ONNX (`body`, `opset`) and by torch (`function` of `inputs`, in order)."""

    body: str
    inputs: dict[str, np.ndarray]
    function: Callable[..., Tensor]
    weights: dict[str, np.ndarray]
    opset: int


CASES: dict[str, Case] = {}


def normal(*shape: int, salt: str = "") -> np.ndarray:
    """Seeded standard normal numbers on the grid, none of them 0."""
    drawn = np.random.default_rng(zlib.crc32(salt.encode())).normal(size=shape)
    return np.where(np.abs(drawn) < 1 / GRID, 1 / GRID, np.round(drawn * GRID) / GRID)


def uniform(low: float, high: float, *shape: int, salt: str = "") -> np.ndarray:
    return np.round(np.random.default_rng(zlib.crc32(f"u{salt}".encode())).uniform(low, high, shape) * GRID) / GRID


def steps(*shape: int, salt: str = "") -> np.ndarray:
    """Numbers from {-1, -½, 0, ½, 1}: full of ties and zeros."""
    return np.random.default_rng(zlib.crc32(f"s{salt}".encode())).integers(-2, 3, shape) / 2


def case(
    name: str,
    body: str,
    inputs: dict[str, Any],
    function: Callable[..., Tensor],
    weights: dict[str, Any] | None = None,
    opset: int = 21,
) -> None:
    """Add a case.  An input given as a tuple is a shape to be drawn from a normal distribution."""
    assert name not in CASES, name
    arrays = {}
    for key, value in inputs.items():
        drawn = isinstance(value, tuple) and all(type(v) is int for v in value)
        arrays[key] = normal(*value, salt=f"{name} {key}") if drawn else np.asarray(value)
    CASES[name] = Case(body, arrays, function, {k: np.asarray(v) for k, v in (weights or {}).items()}, opset)


def f32(value: float) -> float:
    """A float attribute as ONNX keeps it."""
    return float(np.float32(value))


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def bools(*values: int) -> np.ndarray:
    return np.array(values, bool)


def flat(*parts: Tensor) -> Tensor:
    """Several outputs in one: see `FLAT`."""
    return torch.cat([p.reshape(-1) for p in parts])


def flattened(call: str, *outputs: str) -> str:
    """Nodes that make the one output `y` out of several."""
    nodes = [f"flat{i} = Reshape({name}, flat)" for i, name in enumerate(outputs)]
    names = ", ".join(f"flat{i}" for i in range(len(outputs)))
    return f"{', '.join(outputs)} = {call} {' '.join(nodes)} y = Concat<axis=0>({names})"


FLAT = {"flat": ints(-1)}


def take(x: Tensor, axis: int, at: np.ndarray) -> Tensor:
    return x.index_select(axis, torch.from_numpy(np.asarray(at).copy()))


# ── functions of one variable ───────────────────────────────────────────────────────────────────────────────────────

for _op, _f in {
    "Exp": torch.exp,
    "Neg": torch.neg,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Asinh": torch.asinh,
    "Erf": torch.erf,
    "Reciprocal": torch.reciprocal,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
}.items():
    case(_op, f"y = {_op}(x)", {"x": (3, 4)}, _f)
for _op, _f in {"Asin": torch.asin, "Acos": torch.acos, "Atanh": torch.atanh}.items():
    case(_op, f"y = {_op}(x)", {"x": uniform(-0.95, 0.95, 3, 4, salt=_op)}, _f)
for _op, _f in {"Asin": torch.asin, "Acos": torch.acos, "Acosh": torch.acosh, "Sqrt": torch.sqrt}.items():
    _edge = [0.0, 4.0] if _op == "Sqrt" else [1.0, 2.0] if _op == "Acosh" else [-1.0, 1.0, 0.5]
    case(f"{_op} at its bounds", f"y = {_op}(x)", {"x": np.array(_edge)}, _f)
for _op, _f in {"Sqrt": torch.sqrt, "Log": torch.log}.items():
    case(_op, f"y = {_op}(x)", {"x": uniform(0.1, 5, 3, 4, salt=_op)}, _f)
case("Acosh", "y = Acosh(x)", {"x": uniform(1.1, 5, 3, 4)}, torch.acosh)
case("Abs", "y = Abs(x)", {"x": steps(3, 4)}, torch.abs)
case("Identity", "y = Identity(x)", {"x": (2, 3)}, lambda x: x.clone())
case("scalar", "y = Sigmoid(x)", {"x": np.array(0.25)}, torch.sigmoid)
case("Sigmoid far out", "y = Sigmoid(x)", {"x": np.array([-40.0, -20, 20, 40])}, torch.sigmoid)
case("Tanh far out", "y = Tanh(x)", {"x": np.array([-12.0, -6, 0.5, 6, 12])}, torch.tanh)
case("Log of Sigmoid", "s = Sigmoid(x) y = Log(s)", {"x": (3, 4)}, F.logsigmoid)
case("Floor beside a path", "s = Floor(x) y = Sub(x, s)", {"x": (3, 4)}, lambda x: x - x.floor())
case("Sign times", "s = Sign(x) y = Mul(x, s)", {"x": steps(3, 4)}, lambda x: x * x.sign())
case("Round and Ceil beside a path", "r = Round(x) c = Ceil(x) s = Add(r, c) y = Mul(x, s)", {"x": (3, 4)},
     lambda x: x * (x.round() + x.ceil()))  # fmt: skip
case("Cast to float", "s = Cast<to=1>(x) y = Cast<to=11>(s)", {"x": (2, 3)}, lambda x: x.float().double())
case("CastLike", "s = CastLike(x, w) y = CastLike(s, x)", {"x": (2, 3)}, lambda x: x.float().double(),
     {"w": np.zeros(1, np.float32)})  # fmt: skip
case("Dropout in evaluation", "y = Dropout(x, r)", {"x": (2, 3)}, lambda x: x.clone(),
     {"r": np.array(0.5)})  # fmt: skip
case("used twice", "a = Exp(x) b = Mul(a, x) c = Sin(a) y = Add(b, c)", {"x": (2, 3)},
     lambda x: x.exp() * x + x.exp().sin())  # fmt: skip

# ── activations, at their kinks ─────────────────────────────────────────────────────────────────────────────────────

_AROUND = {"x": np.concatenate([normal(5, salt="around"), [0.0, -0.0, 1.0, -1.0, 0.5, -0.5]])}
case("Relu", "y = Relu(x)", _AROUND, F.relu)
case("LeakyRelu", "y = LeakyRelu<alpha=0.25>(x)", _AROUND, lambda x: F.leaky_relu(x, 0.25))
case("LeakyRelu of default slope", "y = LeakyRelu(x)", _AROUND, lambda x: F.leaky_relu(x, f32(0.01)))
case("LeakyRelu of negative slope", "y = LeakyRelu<alpha=-0.5>(x)", _AROUND,
     lambda x: F.leaky_relu(x, -0.5))  # fmt: skip
case("Elu", "y = Elu<alpha=1.5>(x)", _AROUND, lambda x: F.elu(x, 1.5))
case("Elu of default", "y = Elu(x)", _AROUND, F.elu)
case("Selu", "y = Selu(x)", _AROUND, lambda x: f32(1.0507009873554805) * F.elu(x, f32(1.6732632423543772)))
case("Selu, torch's constants", "y = Selu<alpha=1.5, gamma=1.25>(x)", _AROUND,
     lambda x: 1.25 * F.elu(x, 1.5))  # fmt: skip
case("Celu", "y = Celu<alpha=0.5>(x)", _AROUND, lambda x: F.celu(x, 0.5))
case("Celu of default", "y = Celu(x)", _AROUND, F.celu)
case("ThresholdedRelu", "y = ThresholdedRelu<alpha=0.5>(x)", _AROUND, lambda x: F.threshold(x, 0.5, 0.0))
case("ThresholdedRelu of default", "y = ThresholdedRelu(x)", _AROUND, lambda x: F.threshold(x, 1.0, 0.0))
case("ThresholdedRelu below 0", "y = ThresholdedRelu<alpha=-0.5>(x)", _AROUND,
     lambda x: F.threshold(x, -0.5, 0.0))  # fmt: skip
case("Shrink hard", "y = Shrink<lambd=0.5>(x)", _AROUND, lambda x: F.hardshrink(x, 0.5))
case("Shrink soft", "y = Shrink<lambd=0.5, bias=0.5>(x)", _AROUND, lambda x: F.softshrink(x, 0.5))
case("Swish", "y = Swish(x)", _AROUND, F.silu, opset=24)
case("Swish scaled", "y = Swish<alpha=1.5>(x)", _AROUND, lambda x: x * torch.sigmoid(1.5 * x), opset=24)
case("Mish", "y = Mish(x)", _AROUND, F.mish)
case("Gelu", "y = Gelu(x)", _AROUND, F.gelu)
case("Gelu tanh", 'y = Gelu<approximate="tanh">(x)', _AROUND, lambda x: F.gelu(x, approximate="tanh"))
_THREE = {"x": np.array([-4.0, -3, -2.5, -1, 0, 0.5, 2, 2.5, 3, 4])}
case("HardSwish", "y = HardSwish(x)", _THREE, F.hardswish)
case("HardSigmoid", "y = HardSigmoid<alpha=0.25>(x)", {"x": np.array([-3.0, -2, -1, 0, 1, 2, 3])},
     lambda x: F.hardtanh(0.25 * x + 0.5, 0, 1))  # fmt: skip
case("HardSigmoid of default", "y = HardSigmoid(x)", {"x": (8,)},
     lambda x: F.hardtanh(f32(0.2) * x + 0.5, 0, 1))  # fmt: skip
case("PRelu", "y = PRelu(x, s)", {"x": steps(2, 3, 4, salt="PRelu"), "s": uniform(0.1, 0.5, 3, 1)},
     lambda x, s: F.prelu(x, s.reshape(-1)))  # fmt: skip
case("PRelu of one slope", "y = PRelu(x, s)", {"x": (2, 3), "s": np.array([-0.25])}, F.prelu)
case("SwiGLU", "y = SwiGLU(a, b)", {"a": (2, 4), "b": (2, 4)}, lambda a, b: F.silu(a) * b, opset=28)
case("SwiGLU scaled", "y = SwiGLU<alpha=1.75>(a, b)", {"a": (2, 4), "b": (2, 4)},
     lambda a, b: a * torch.sigmoid(1.75 * a) * b, opset=28)  # fmt: skip

for _axis in (-1, 0, 1):
    case(f"Softmax {_axis}", f"y = Softmax<axis={_axis}>(x)", {"x": (2, 3, 4)},
         lambda x, d=_axis: x.softmax(d))  # fmt: skip
    case(f"LogSoftmax {_axis}", f"y = LogSoftmax<axis={_axis}>(x)", {"x": (2, 3, 4)},
         lambda x, d=_axis: x.log_softmax(d))  # fmt: skip
case("Softmax far out", "y = Softmax(x)", {"x": 64 * normal(2, 4)}, lambda x: x.softmax(-1))
case("LogSoftmax far out", "y = LogSoftmax(x)", {"x": 64 * normal(2, 4)}, lambda x: x.log_softmax(-1))
case("Softmax of opset 11", "y = Softmax<axis=1>(x)", {"x": (2, 3, 4)},
     lambda x: x.flatten(1).softmax(1).reshape(2, 3, 4), opset=11)  # fmt: skip
case("LogSoftmax of opset 11", "y = LogSoftmax<axis=1>(x)", {"x": (2, 3, 4)},
     lambda x: x.flatten(1).log_softmax(1).reshape(2, 3, 4), opset=11)  # fmt: skip

# ── two and more operands ───────────────────────────────────────────────────────────────────────────────────────────

_SHAPES = (((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 1, 3), (4, 1)), ((), (2, 3)))
for _op, _f in {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
    "Pow": torch.pow,
}.items():
    for _a, _b in _SHAPES:
        _salt = f"{_op} {_a} {_b}"
        case(_salt, f"y = {_op}(a, b)",
             {"a": uniform(0.5, 2, *_a, salt=_salt), "b": uniform(0.5, 2, *_b, salt=_salt + "b")}, _f)  # fmt: skip
case("Div of negative numbers", "y = Div(a, b)", {"a": (3, 4), "b": (4,)}, torch.div)
case("Pow at 0", "y = Pow(x, e)", {"x": np.array([0.0, 0, 0, 2, 3]), "e": np.array([0.0, 1, 2, 0, 1])},
     torch.pow)  # fmt: skip
case("Pow below 0", "y = Pow(x, e)", {"x": np.array([-2.0, -1.5, -0.5])}, lambda x: x ** torch.tensor([2.0, 3, -1]),
     {"e": np.array([2.0, 3, -1])})  # fmt: skip
for _e in (-1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 2.5):
    case(f"Pow {_e}", "y = Pow(x, e)", {"x": uniform(0.5, 2, 2, 3, salt=f"{_e}")}, lambda x, e=_e: x**e,
         {"e": np.array(_e)})  # fmt: skip
case("Pow to integers", "y = Pow(x, e)", {"x": (2, 3)}, lambda x: x ** torch.tensor([2, 3, 0]),
     {"e": ints(2, 3, 0)})  # fmt: skip
for _op, _f in {"Max": torch.maximum, "Min": torch.minimum}.items():
    _many = torch.amax if _op == "Max" else torch.amin
    case(f"{_op} with ties", f"y = {_op}(a, b)", {"a": steps(4, 5, salt="a"), "b": steps(4, 5, salt="b")},
         _f)  # fmt: skip
    case(f"{_op} broadcast", f"y = {_op}(a, b)", {"a": (2, 1, 3), "b": (4, 1)}, _f)
    case(f"{_op} of three with ties", f"y = {_op}(a, b, c)",
         {"a": steps(4, 5, salt="a"), "b": steps(4, 5, salt="b"), "c": steps(5, salt="c")},
         lambda a, b, c, f=_many: f(torch.stack(torch.broadcast_tensors(a, b, c)), 0))  # fmt: skip
    case(f"{_op} of one", f"y = {_op}(a)", {"a": (2, 3)}, lambda a: a.clone())
case("Sum", "y = Sum(a, b, c)", {"a": (2, 1, 3), "b": (4, 1), "c": ()}, lambda a, b, c: a + b + c)
case("Mean", "y = Mean(a, b, c)", {"a": (2, 1, 3), "b": (4, 1), "c": (3,)},
     lambda a, b, c: (a + b + c) / 3)  # fmt: skip
case("Mod", "y = Mod<fmod=1>(a, b)", {"a": 4 * normal(3, 4, salt="Mod"), "b": uniform(0.5, 2, 4)},
     torch.fmod)  # fmt: skip
case("Mod, signs", "y = Mod<fmod=1>(a, b)",
     {"a": np.array([5.25, -5.25, 5.25, -5.25]), "b": np.array([2.0, 2, -2, -2])}, torch.fmod)  # fmt: skip
case("Mod floored", "y = Mod(a, b)", {"a": np.array([5.25, -5.25, 5.25, -5.25]), "b": np.array([2.0, 2, -2, -2])},
     torch.remainder, opset=28)  # fmt: skip
_ROWS = np.array([[True, False, True], [False, False, True]])
case("Where", "y = Where(c, a, b)", {"c": _ROWS, "a": (2, 3), "b": (2, 3)}, torch.where)
case("Where broadcast", "y = Where(c, a, b)", {"c": _ROWS, "a": (3,), "b": (2, 1)}, torch.where)
case("Where wider", "y = Where(c, a, b)", {"c": _ROWS[:, :1], "a": (3,), "b": ()}, torch.where)
case("Clip as hardtanh", "y = Clip(x, lo, hi)", {"x": steps(4, 5)}, lambda x: F.hardtanh(x, -0.5, 0.5),
     {"lo": -0.5, "hi": 0.5})  # fmt: skip
case("Clip as relu6", "y = Clip(x, lo, hi)", {"x": np.array([-1.0, 0, 3, 6, 7])}, F.relu6,
     {"lo": 0.0, "hi": 6.0})  # fmt: skip
case("Clip as clamp, off the bounds", "y = Clip(x, lo, hi)", {"x": (4, 5)}, lambda x: x.clamp(-0.7, 0.9),
     {"lo": -0.7, "hi": 0.9})  # fmt: skip
case("Clip below", "y = Clip(x, lo)", {"x": (4, 5)}, lambda x: x.clamp(min=-0.7), {"lo": -0.7})
case("Clip above", "y = Clip(x, , hi)", {"x": (4, 5)}, lambda x: x.clamp(max=0.7), {"hi": 0.7})
# Where values saturate, pycam goes another way than torch: see `pycam/grad/quantised.py`.
case("fake quantisation", "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
     {"x": np.array([-20.0, -0.75, 0.25, 0.75, 1.25, 30.0])},
     lambda x: torch.fake_quantize_per_tensor_affine(x.float(), 0.5, 3, -128, 127).double(),
     {"s": np.array(0.5), "z": np.array(3, np.int8)})  # fmt: skip
case("IsNaN replaced", "n = IsNaN(x) y = Where(n, z, x)", {"x": np.array([1.0, np.nan, 2.0])},
     lambda x: x.nan_to_num(0.0), {"z": np.array(0.0)})  # fmt: skip

# ── reductions ──────────────────────────────────────────────────────────────────────────────────────────────────────


def over(f: Callable[..., Tensor]) -> Callable[[Tensor, Sequence[int], bool], Tensor]:
    return lambda x, dims, keep: f(x, dim=tuple(dims), keepdim=keep)


def product(x: Tensor, dims: Sequence[int], keep: bool) -> Tensor:
    for d in sorted((d % x.ndim for d in dims), reverse=True):
        x = x.prod(d, keepdim=keep)
    return x


_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceSum": over(torch.sum),
    "ReduceMean": over(torch.mean),
    "ReduceMax": over(torch.amax),
    "ReduceMin": over(torch.amin),
    "ReduceProd": product,
    "ReduceLogSumExp": over(torch.logsumexp),
    "ReduceL1": lambda x, d, k: torch.linalg.vector_norm(x, 1, tuple(d), k),
    "ReduceL2": lambda x, d, k: torch.linalg.vector_norm(x, 2, tuple(d), k),
    "ReduceLogSum": lambda x, d, k: x.sum(tuple(d), k).log(),
    "ReduceSumSquare": lambda x, d, k: (x * x).sum(tuple(d), k),
}
for _op, _f in _REDUCTIONS.items():
    _x = uniform(0.5, 2, 2, 3, 4, salt=_op) if _op == "ReduceLogSum" else normal(2, 3, 4, salt=_op)
    case(f"{_op} of one axis", f"y = {_op}(x, axes)", {"x": _x}, lambda x, f=_f: f(x, [1], True),
         {"axes": ints(1)})  # fmt: skip
    case(f"{_op} of two axes", f"y = {_op}<keepdims=0>(x, axes)", {"x": _x}, lambda x, f=_f: f(x, [0, 2], False),
         {"axes": ints(-1, 0)})  # fmt: skip
    case(f"{_op} of all", f"y = {_op}<keepdims=0>(x)", {"x": _x}, lambda x, f=_f: f(x, [0, 1, 2], False))
    case(f"{_op} of none", f"y = {_op}<noop_with_empty_axes=1>(x)", {"x": _x[0]},
         lambda x, f=_f: f(x.unsqueeze(-1), [-1], False))  # fmt: skip
_TIES = {"x": steps(3, 4, 5)}
for _op in ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceLogSumExp"):
    for _axes in ((2,), (0, 1)):
        case(f"{_op} with ties {_axes}", f"y = {_op}<keepdims=0>(x, axes)", _TIES,
             lambda x, f=_REDUCTIONS[_op], d=_axes: f(x, d, False), {"axes": ints(*_axes)})  # fmt: skip
case("ReduceProd of zeros", "y = ReduceProd(x, axes)", {"x": np.array([[1.0, 2, 3], [0, 2, 3], [0, 0, 3], [0, 0, 0]])},
     lambda x: x.prod(1, keepdim=True), {"axes": ints(1)})  # fmt: skip
case("ReduceL2 of zeros", "y = ReduceL2(x, axes)", {"x": np.array([[1.0, 2, 3], [0, 0, 0]])},
     lambda x: torch.linalg.vector_norm(x, 2, 1, True), {"axes": ints(1)})  # fmt: skip
case("ReduceLogSumExp far out", "y = ReduceLogSumExp(x, axes)", {"x": 500 * steps(3, 4)},
     lambda x: torch.logsumexp(x, 1, True), {"axes": ints(1)})  # fmt: skip
case("ReduceMean of opset 13", "y = ReduceMean<axes=[1, -1], keepdims=0>(x)", {"x": (2, 3, 4)},
     lambda x: x.mean((1, 2)), opset=13)  # fmt: skip


def cumulative(
    f: Callable[..., Tensor], identity: float, exclusive: bool, reverse: bool, axis: int = 1
) -> Callable[..., Tensor]:
    def run(x: Tensor) -> Tensor:
        x = x.flip(axis) if reverse else x
        y = f(x, axis)
        if exclusive:
            y = torch.cat([torch.full_like(y.narrow(axis, 0, 1), identity), y.narrow(axis, 0, y.shape[axis] - 1)], axis)
        return y.flip(axis) if reverse else y

    return run


for _e, _r in itertools.product((0, 1), (0, 1)):
    _flags = f"exclusive={_e}, reverse={_r}"
    case(f"CumSum {_flags}", f"y = CumSum<{_flags}>(x, axis)", {"x": (2, 4)},
         cumulative(torch.cumsum, 0, bool(_e), bool(_r)), {"axis": np.array(-1)})  # fmt: skip
    case(f"CumProd {_flags}", f"y = CumProd<{_flags}>(x, axis)", {"x": (2, 4)},
         cumulative(torch.cumprod, 1, bool(_e), bool(_r)), {"axis": np.array(1)}, opset=26)  # fmt: skip
case("CumSum of axis 0", "y = CumSum(x, axis)", {"x": (3, 2)}, lambda x: x.cumsum(0),
     {"axis": np.array(0)})  # fmt: skip
case("CumProd of zeros", "y = CumProd(x, axis)", {"x": np.array([[1.0, 0, 3, 2], [2, 0, 0, 2]])},
     lambda x: x.cumprod(1), {"axis": np.array(1)}, opset=26)  # fmt: skip


def largest(x: Tensor, k: int, axis: int, descending: bool = True) -> Tensor:
    """The first of equal values first, which ONNX asks for and torch.topk leaves open."""
    return torch.sort(x, dim=axis, descending=descending, stable=True)[0].narrow(axis, 0, k)


case("TopK", "y, i = TopK(x, k)", {"x": (3, 5)}, lambda x: x.topk(2)[0], {"k": ints(2)})
case("TopK with ties", "y, i = TopK(x, k)", _TIES, lambda x: largest(x, 3, 2), {"k": ints(3)})
case("TopK of the smallest, axis 1", "y, i = TopK<axis=1, largest=0>(x, k)", _TIES, lambda x: largest(x, 2, 1, False),
     {"k": ints(2)})  # fmt: skip
case("TopK, all sorted", "y, i = TopK<axis=0>(x, k)", {"x": (4, 2)}, lambda x: largest(x, 4, 0),
     {"k": ints(4)})  # fmt: skip

# ── losses and norms ────────────────────────────────────────────────────────────────────────────────────────────────

_LABELS, _GRID_LABELS = ints(2, 0, 1), np.array([[2, 0], [1, 1], [0, 2]])
_CLASS_WEIGHTS = np.array([0.5, 1.0, 2.0, 0.25])
for _reduction in ("none", "mean", "sum"):
    for _op, _f in {"SoftmaxCrossEntropyLoss": F.cross_entropy, "NegativeLogLikelihoodLoss": F.nll_loss}.items():
        _r = f'reduction="{_reduction}"'
        case(f"{_op} {_reduction}", f"y = {_op}<{_r}>(x, t)", {"x": (3, 4), "t": _LABELS},
             lambda x, t, f=_f, r=_reduction: f(x, t, reduction=r))  # fmt: skip
        case(f"{_op} {_reduction} weighted, ignoring", f"y = {_op}<{_r}, ignore_index=1>(x, t, w)",
             {"x": (3, 4, 2), "t": _GRID_LABELS},
             lambda x, t, f=_f, r=_reduction: f(x, t, torch.from_numpy(_CLASS_WEIGHTS), ignore_index=1, reduction=r),
             {"w": _CLASS_WEIGHTS})  # fmt: skip
case("SoftmaxCrossEntropyLoss, log probabilities", "l, y = SoftmaxCrossEntropyLoss(x, t)", {"x": (3, 4), "t": _LABELS},
     lambda x, t: x.log_softmax(1))  # fmt: skip
case("SoftmaxCrossEntropyLoss, both outputs", flattened("SoftmaxCrossEntropyLoss(x, t)", "l", "p"),
     {"x": (3, 4), "t": _LABELS}, lambda x, t: flat(F.cross_entropy(x, t), x.log_softmax(1)), FLAT)  # fmt: skip
case(
    "MeanVarianceNormalization",
    "y = MeanVarianceNormalization(x)",
    {"x": (2, 3, 2, 2)},
    lambda x: (x - x.mean((0, 2, 3), True)) / (x.var((0, 2, 3), correction=0, keepdim=True).sqrt() + f32(1e-9)),
)
case("MeanVarianceNormalization of axes", "y = MeanVarianceNormalization<axes=[1, 2]>(x)", {"x": (2, 3, 4)},
     lambda x: (x - x.mean((1, 2), True)) / (x.var((1, 2), correction=0, keepdim=True).sqrt() + f32(1e-9)))  # fmt: skip
for _p, _axis in itertools.product((1, 2), (-1, 1)):
    case(f"LpNormalization p={_p} axis={_axis}", f"y = LpNormalization<p={_p}, axis={_axis}>(x)", {"x": (2, 3, 4)},
         lambda x, p=_p, d=_axis: F.normalize(x, p, d, eps=0))  # fmt: skip
_EPS = 1 / 1024
case(
    "BatchNormalization",
    "y = BatchNormalization<epsilon=0.0009765625>(x, s, b, m, v)",
    {"x": (2, 3, 2, 2), "s": (3,), "b": (3,), "m": (3,), "v": uniform(0.5, 2, 3)},
    lambda x, s, b, m, v: (
        ((x - m[:, None, None]) / (v + _EPS)[:, None, None].sqrt()) * s[:, None, None] + b[:, None, None]
    ),
)
case(
    "BatchNormalization of rank 2",
    "y = BatchNormalization(x, s, b, m, v)",
    {"x": (4, 3), "s": (3,), "b": (3,)},
    lambda x, s, b: F.batch_norm(
        x, torch.tensor([0.5, 0, -1.0]).double(), torch.tensor([1.0, 2, 0.5]).double(), s, b, eps=f32(1e-5)
    ),
    {"m": np.array([0.5, 0, -1]), "v": np.array([1.0, 2, 0.5])},
)
case("InstanceNormalization", "y = InstanceNormalization<epsilon=0.0009765625>(x, s, b)",
     {"x": (2, 3, 2, 3), "s": (3,), "b": (3,)},
     lambda x, s, b: F.instance_norm(x, weight=s, bias=b, eps=_EPS))  # fmt: skip
case("InstanceNormalization 1d", "y = InstanceNormalization(x, s, b)", {"x": (2, 2, 5), "s": (2,), "b": (2,)},
     lambda x, s, b: F.instance_norm(x, weight=s, bias=b, eps=f32(1e-5)))  # fmt: skip
for _groups in (1, 2, 4):
    case(f"GroupNormalization {_groups}",
         f"y = GroupNormalization<num_groups={_groups}, epsilon=0.0009765625>(x, s, b)",
         {"x": (2, 4, 2, 2), "s": (4,), "b": (4,)},
         lambda x, s, b, g=_groups: F.group_norm(x, g, s, b, _EPS))  # fmt: skip
for _axis in (-1, 1):
    _shape = (4,) if _axis == -1 else (3, 4)
    case(f"LayerNormalization {_axis}", f"y = LayerNormalization<axis={_axis}, epsilon=0.0009765625>(x, s, b)",
         {"x": (2, 3, 4), "s": _shape, "b": _shape}, lambda x, s, b: F.layer_norm(x, s.shape, s, b, _EPS))  # fmt: skip
    case(f"RMSNormalization {_axis}", f"y = RMSNormalization<axis={_axis}, epsilon=0.0009765625>(x, s)",
         {"x": (2, 3, 4), "s": _shape}, lambda x, s: F.rms_norm(x, s.shape, s, _EPS), opset=23)  # fmt: skip
case("LayerNormalization without bias", "y = LayerNormalization(x, s)", {"x": (2, 3, 4), "s": (4,)},
     lambda x, s: F.layer_norm(x, (4,), s, None, f32(1e-5)))  # fmt: skip
case("LayerNormalization, all outputs", flattened("LayerNormalization<epsilon=0.0009765625>(x, s, b)", "a", "m", "i"),
     {"x": (3, 4), "s": (4,), "b": (4,)},
     lambda x, s, b: flat(F.layer_norm(x, (4,), s, b, _EPS), x.mean(-1), (x.var(-1, correction=0) + _EPS).rsqrt()),
     FLAT)  # fmt: skip
case("LRN", "y = LRN<size=3, alpha=0.5, beta=0.75, bias=2.0>(x)", {"x": (2, 5, 2, 2)},
     lambda x: F.local_response_norm(x, 3, 0.5, 0.75, 2.0))  # fmt: skip
case("LRN of default", "y = LRN<size=5>(x)", {"x": (1, 6, 2, 2)},
     lambda x: F.local_response_norm(x, 5, f32(1e-4), 0.75, 1.0))  # fmt: skip

# ── products ────────────────────────────────────────────────────────────────────────────────────────────────────────

for _a, _b in itertools.product((0, 1), (0, 1)):
    case(f"Gemm transA={_a} transB={_b}", f"y = Gemm<transA={_a}, transB={_b}, alpha=0.5, beta=0.25>(a, b, c)",
         {"a": (3, 2) if _a else (2, 3), "b": (4, 3) if _b else (3, 4), "c": (4,)},
         lambda a, b, c, s=_a, t=_b: 0.5 * ((a.T if s else a) @ (b.T if t else b)) + 0.25 * c)  # fmt: skip
for _c in ((), (1,), (2, 1), (2, 4), (1, 4)):
    case(f"Gemm with C {_c}", "y = Gemm(a, b, c)", {"a": (2, 3), "b": (3, 4), "c": _c},
         lambda a, b, c: a @ b + c)  # fmt: skip
case("Gemm without C", "y = Gemm<transB=1>(a, b)", {"a": (2, 3), "b": (4, 3)}, lambda a, b: a @ b.T)
for _a, _b in (
    ((3,), (3,)), ((3,), (3, 2)), ((2, 3), (3,)), ((2, 3), (3, 4)), ((2, 2, 3), (3, 4)), ((2, 3), (2, 3, 2)),
    ((2, 2, 3), (2, 3, 2)), ((2, 1, 2, 3), (3, 3, 2)), ((3,), (2, 3, 2)), ((2, 2, 3), (3,)), ((1, 2, 3), (4, 3, 1)),
    ((3,), (2, 2, 3, 2)), ((2, 2, 2, 3), (3,)),
):  # fmt: skip
    case(f"MatMul {_a} {_b}", "y = MatMul(a, b)", {"a": _a, "b": _b}, torch.matmul)

for _equation, *_operands in (
    ("ij,jk->ik", (2, 3), (3, 4)), ("ij,jk", (2, 3), (3, 4)), ("ij->ji", (2, 3)), ("ba", (2, 3)), ("ij->", (2, 3)),
    ("ij->j", (2, 3)), ("ii->i", (3, 3)), ("ii", (3, 3)), ("iij->j", (2, 2, 3)), ("iji->ij", (2, 3, 2)),
    ("i,j->ij", (2,), (3,)), ("i,i->i", (3,), (3,)), ("i,i", (3,), (3,)), ("ij,ij->i", (2, 3), (2, 3)),
    ("ij,k->i", (2, 3), (2,)), ("ij,kj->ik", (2, 3), (4, 3)), ("bhqd,bhkd->bhqk", (1, 2, 2, 3), (1, 2, 3, 3)),
    ("bij,bjk->bik", (2, 2, 3), (2, 3, 2)), ("bij,jk->bki", (2, 2, 3), (3, 2)),
    ("ijk,jl,kl->il", (2, 2, 3), (2, 2), (3, 2)), ("i,i,i->", (3,), (3,), (3,)),
    ("ij,jk,kl->il", (2, 3), (3, 2), (2, 2)), ("...ij,...jk->...ik", (2, 2, 3), (2, 3, 2)),
    ("...ij,jk->...ik", (2, 2, 3), (3, 2)), ("...ij->...ji", (2, 2, 3)), ("...i->...", (2, 3)), ("i...->i", (2, 3)),
    ("...,...->...", (2, 3), (2, 3)), ("...i,i...->...", (2, 3), (3, 2)),
    ("...ij,...jk->...ik", (2, 1, 2, 2), (1, 3, 2, 2)), ("ii,i->i", (3, 3), (3,)), ("ii,jj->ij", (2, 2), (3, 3)),
    ("a...a->...", (2, 3, 2)), ("ij,ij->ij", (2, 3), (2, 1)), ("bi,bj->bij", (2, 2), (2, 3)),
    ("Ab,bC->AC", (2, 3), (3, 2)), ("nchw,oc->nohw", (1, 2, 2, 2), (3, 2)), (" i j , j k -> i k ", (2, 3), (3, 2)),
    (",ij->ij", (), (2, 3)),
):  # fmt: skip
    _names = "abc"[: len(_operands)]
    case(f"Einsum {_equation} {_operands[0]}", f'y = Einsum<equation="{_equation}">({", ".join(_names)})',
         dict(zip(_names, _operands, strict=True)), lambda *xs, e=_equation: torch.einsum(e, *xs))  # fmt: skip

# ── convolutions ────────────────────────────────────────────────────────────────────────────────────────────────────


def padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the spatial axes as ONNX says it: all begins, all ends."""
    n = len(pads) // 2
    return F.pad(x, [p for i in reversed(range(n)) for p in (pads[i], pads[i + n])], value=value)


def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    pads: Sequence[int] = (),
    strides: Any = 1,
    dilations: Any = 1,
    group: int = 1,
) -> Tensor:
    f = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
    return f(padded(x, pads), w, b, strides, 0, dilations, group)


def attributes(**given: Any) -> str:
    """<a=1, b=[1, 2]>; strings quoted."""
    parts = [
        f'{k}="{v}"' if isinstance(v, str) else f"{k}={list(v) if isinstance(v, tuple) else v}"
        for k, v in given.items()
    ]
    return f"<{', '.join(parts)}>" if parts else ""


for _name, _x, _w, _o in (
    ("", (2, 2, 4, 4), (2, 2, 3, 3), {}),
    ("1x1", (2, 3, 2, 3), (2, 3, 1, 1), {}),
    ("pads", (1, 2, 3, 4), (2, 2, 3, 3), {"pads": (1, 1, 1, 1)}),
    ("asymmetric pads", (1, 1, 4, 4), (2, 1, 3, 2), {"pads": (2, 0, 1, 3)}),
    ("strides", (1, 2, 6, 5), (2, 2, 3, 3), {"strides": (2, 2)}),
    ("strides with a remainder, pads", (1, 1, 6, 7), (2, 1, 3, 2), {"strides": (2, 3), "pads": (1, 0, 0, 1)}),
    ("strides beyond the kernel", (1, 1, 6, 7), (1, 1, 1, 2), {"strides": (3, 4)}),
    ("dilations", (1, 1, 5, 6), (2, 1, 2, 3), {"dilations": (2, 2), "pads": (1, 0, 1, 1)}),
    (
        "strides and dilations",
        (1, 1, 7, 8),
        (1, 1, 2, 3),
        {"strides": (2, 2), "dilations": (3, 2), "pads": (1, 1, 1, 1)},
    ),
    ("groups", (2, 4, 3, 3), (4, 2, 2, 2), {"group": 2}),
    ("depthwise", (1, 3, 4, 4), (3, 1, 3, 3), {"group": 3, "pads": (1, 1, 1, 1)}),
    (
        "depthwise with multiplier and strides",
        (1, 2, 5, 5),
        (4, 1, 3, 3),
        {"group": 2, "strides": (2, 2), "pads": (1, 1, 1, 1)},
    ),
    ("groups, strides, dilations", (1, 4, 7, 6), (2, 2, 2, 2), {"group": 2, "strides": (2, 1), "dilations": (2, 3)}),
    ("1d", (2, 2, 6), (3, 2, 3), {"pads": (1, 2), "strides": (2,)}),
    ("1d causal", (1, 2, 5), (2, 2, 2), {"pads": (2, 0), "dilations": (2,)}),
    ("3d", (1, 2, 3, 3, 4), (2, 2, 2, 2, 2), {"pads": (0, 1, 0, 1, 0, 1), "strides": (1, 2, 2)}),
    ("3d groups, dilations", (1, 2, 3, 4, 4), (2, 1, 2, 2, 2), {"group": 2, "dilations": (1, 2, 1)}),
):
    case(f"Conv {_name}", f"y = Conv{attributes(**_o)}(x, w, b)", {"x": _x, "w": _w, "b": _w[:1]},
         lambda x, w, b, o=_o: conv(x, w, b, **o))  # fmt: skip
case(
    "Conv, only its input",
    "y = Conv<pads=[1, 1, 1, 1], strides=[2, 2]>(x, w, b)",
    {"x": (1, 1, 4, 5)},
    lambda x: conv(x, torch.tensor([[[[1.0, -2, 0.5]]]]).double(), torch.tensor([0.25]).double(), (1, 1, 1, 1), (2, 2)),
    {"w": np.array([[[[1.0, -2, 0.5]]]]), "b": np.array([0.25])},
)
case("Conv without bias", "y = Conv(x, w)", {"x": (1, 2, 3, 3), "w": (2, 2, 2, 2)}, conv)
case("Conv SAME_UPPER", 'y = Conv<auto_pad="SAME_UPPER", strides=[2, 2]>(x, w)', {"x": (1, 1, 5, 6), "w": (1, 1, 3, 3)},
     lambda x, w: conv(x, w, None, (1, 0, 1, 1), (2, 2)))  # fmt: skip
case("Conv SAME_LOWER", 'y = Conv<auto_pad="SAME_LOWER">(x, w)', {"x": (1, 1, 4, 4), "w": (1, 1, 2, 2)},
     lambda x, w: conv(x, w, None, (1, 1, 0, 0)))  # fmt: skip


def conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    pads: Sequence[int] = (),
    strides: Any = 1,
    dilations: Any = 1,
    group: int = 1,
    output_padding: Any = 0,
) -> Tensor:
    f = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[x.ndim - 3]
    return padded(f(x, w, b, strides, 0, output_padding, group, dilations), [-p for p in pads])


for _name, _x, _w, _o in (
    ("", (1, 2, 3, 3), (2, 2, 2, 2), {}),
    ("strides", (1, 2, 3, 2), (2, 2, 3, 3), {"strides": (2, 2), "pads": (1, 1, 1, 1)}),
    ("output padding", (1, 2, 2, 3), (2, 1, 3, 3), {"strides": (2, 3), "pads": (1, 1, 1, 1), "output_padding": (1, 2)}),
    ("asymmetric pads", (1, 1, 3, 3), (1, 2, 3, 3), {"strides": (2, 1), "pads": (0, 1, 2, 0)}),
    ("groups", (1, 4, 2, 2), (4, 2, 2, 2), {"group": 2, "strides": (2, 2)}),
    (
        "depthwise",
        (1, 3, 2, 2),
        (3, 1, 3, 3),
        {"group": 3, "strides": (2, 2), "pads": (1, 1, 1, 1), "output_padding": (1, 1)},
    ),
    ("dilations", (1, 2, 3, 3), (2, 1, 2, 2), {"dilations": (2, 3)}),
    (
        "groups, strides, dilations",
        (1, 2, 3, 2),
        (2, 2, 2, 2),
        {"group": 2, "strides": (2, 3), "dilations": (3, 2), "pads": (1, 0, 0, 1)},
    ),
    ("strides beyond the kernel", (1, 1, 3, 2), (1, 1, 1, 2), {"strides": (3, 3)}),
    ("1d", (2, 2, 4), (2, 3, 3), {"strides": (2,), "pads": (1, 1), "output_padding": (1,)}),
    ("3d", (1, 2, 2, 2, 2), (2, 1, 2, 2, 2), {"strides": (1, 2, 2), "pads": (0, 0, 1, 1, 0, 0)}),
):
    case(f"ConvTranspose {_name}", f"y = ConvTranspose{attributes(**_o)}(x, w, b)",
         {"x": _x, "w": _w, "b": (_w[1] * _o.get("group", 1),)},
         lambda x, w, b, o=_o: conv_transpose(x, w, b, **o))  # fmt: skip
case("ConvTranspose to a shape", "y = ConvTranspose<strides=[2, 2], output_shape=[6, 5]>(x, w)",
     {"x": (1, 1, 3, 3), "w": (1, 1, 3, 3)}, lambda x, w: conv_transpose(x, w, None, (1, 1, 0, 1), 2))  # fmt: skip
case("ConvTranspose SAME_UPPER", 'y = ConvTranspose<strides=[2, 2], auto_pad="SAME_UPPER">(x, w)',
     {"x": (1, 1, 2, 3), "w": (1, 1, 3, 3)}, lambda x, w: conv_transpose(x, w, None, (0, 0, 1, 1), 2))  # fmt: skip

for _name, _o, _p in (
    ("", {}, (0, 0, 0, 0)), ("strides, pads", {"strides": (2, 1), "pads": (1, 0, 0, 1)}, (1, 0, 0, 1)),
    ("groups of offsets", {"offset_group": 2}, (0, 0, 0, 0)),
    ("groups, dilations", {"group": 2, "dilations": (2, 1)}, (0, 0, 0, 0)),
):  # fmt: skip
    _x, _k = (1, 2, 4, 4), (2, 2)
    _s, _d = _o.get("strides", (1, 1)), _o.get("dilations", (1, 1))
    _out = [(4 + _p[i] + _p[i + 2] - _d[i] * (_k[i] - 1) - 1) // _s[i] + 1 for i in (0, 1)]
    _og = _o.get("offset_group", 1)
    case(
        f"DeformConv {_name}",
        f"y = DeformConv{attributes(kernel_shape=_k, **_o)}(x, w, o, b, m)",
        {
            "x": _x,
            "w": (2, 2 // _o.get("group", 1), *_k),
            "o": (1, 8 * _og, *_out),
            "b": (2,),
            "m": (1, 4 * _og, *_out),
        },
        lambda x, w, o, b, m, s=_s, d=_d, p=_p: vision.deform_conv2d(padded(x, p), o, w, b, s, 0, d, m),
    )
case("DeformConv without mask and bias", "y = DeformConv<pads=[1, 1, 1, 1]>(x, w, o)",
     {"x": (1, 1, 3, 3), "w": (1, 1, 2, 2), "o": (1, 8, 4, 4)},
     lambda x, w, o: vision.deform_conv2d(x, o, w, padding=1))  # fmt: skip

# ── pools ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def max_pool(
    x: Tensor, kernel_shape: Any, strides: Any = 1, pads: Any = (), dilations: Any = 1, ceil_mode: int = 0
) -> Tensor:
    f = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.ndim - 3]
    symmetric = tuple(pads[: len(pads) // 2]) == tuple(pads[len(pads) // 2 :])
    if symmetric:
        return f(x, kernel_shape, strides, pads[: len(pads) // 2] or 0, dilations, bool(ceil_mode))
    return f(padded(x, pads, -np.inf), kernel_shape, strides, 0, dilations, bool(ceil_mode))


for _name, _x, _o in (
    ("", (2, 2, 4, 4), {"kernel_shape": (2, 2), "strides": (2, 2)}),
    ("overlapping", (1, 2, 5, 5), {"kernel_shape": (3, 3), "strides": (2, 2)}),
    ("at stride 1", (1, 1, 4, 5), {"kernel_shape": (2, 3)}),
    ("pads", (1, 2, 4, 4), {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}),
    ("asymmetric pads", (1, 1, 4, 4), {"kernel_shape": (3, 2), "strides": (2, 2), "pads": (0, 0, 2, 1)}),
    ("dilations", (1, 1, 6, 6), {"kernel_shape": (2, 3), "dilations": (2, 2)}),
    ("ceil", (1, 2, 5, 6), {"kernel_shape": (2, 3), "strides": (2, 2), "ceil_mode": 1}),
    ("ceil, pads", (1, 1, 6, 6), {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "ceil_mode": 1}),
    (
        "ceil, no window in the end pad",
        (1, 1, 6, 5),
        {"kernel_shape": (3, 3), "strides": (2, 3), "pads": (1, 1, 1, 1), "ceil_mode": 1},
    ),
    ("strides beyond the kernel", (1, 1, 5, 7), {"kernel_shape": (1, 2), "strides": (2, 3)}),
    ("1d", (2, 2, 6), {"kernel_shape": (3,), "strides": (2,), "pads": (1, 1)}),
    ("3d", (1, 1, 3, 4, 4), {"kernel_shape": (2, 2, 2), "strides": (1, 2, 2)}),
):
    for _kind, _draw in (
        ("", normal), (" with ties", steps), (" of zeros", lambda *s, salt: np.maximum(steps(*s, salt=salt), 0)),
    ):  # fmt: skip
        if _kind != " of zeros" or _name in ("", "overlapping", "pads", "ceil, pads"):
            case(f"MaxPool {_name}{_kind}", f"y = MaxPool{attributes(**_o)}(x)", {"x": _draw(*_x, salt=_name)},
                 lambda x, o=_o: max_pool(x, **o))  # fmt: skip
case("MaxPool SAME_UPPER", 'y = MaxPool<kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER">(x)',
     {"x": (1, 1, 4, 5)}, lambda x: max_pool(x, (3, 3), 2, (0, 1, 1, 1)))  # fmt: skip
case("MaxPool and its indices", "y, i = MaxPool<kernel_shape=[2, 2]>(x)", {"x": steps(1, 2, 3, 3)},
     lambda x: max_pool(x, (2, 2)))  # fmt: skip


def average(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int], count: bool
) -> Tensor:
    """A 2-D average pool with what torch's has not: asymmetric pads, dilations."""
    ones = torch.ones_like(x)
    weight = torch.ones(x.shape[1], 1, *kernel, dtype=x.dtype)
    total = F.conv2d(padded(x, pads), weight, None, strides, 0, dilations, x.shape[1])
    counted = F.conv2d(padded(ones, pads, float(count)), weight, None, strides, 0, dilations, x.shape[1])
    return total / counted


for _include in (0, 1):
    for _name, _x, _o in (
        ("", (2, 2, 4, 4), {"kernel_shape": (2, 2), "strides": (2, 2)}),
        ("overlapping, pads", (1, 2, 5, 5), {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}),
        ("at stride 1", (1, 1, 4, 4), {"kernel_shape": (2, 3), "pads": (0, 1, 0, 1)}),
        ("ceil", (1, 2, 5, 6), {"kernel_shape": (2, 3), "strides": (2, 2), "ceil_mode": 1}),
        ("ceil, pads", (1, 1, 6, 6), {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "ceil_mode": 1}),
        (
            "ceil, no window in the end pad",
            (1, 1, 6, 5),
            {"kernel_shape": (3, 3), "strides": (2, 3), "pads": (1, 1, 1, 1), "ceil_mode": 1},
        ),
        ("strides beyond the kernel", (1, 1, 5, 7), {"kernel_shape": (1, 2), "strides": (2, 3)}),
        ("1d", (2, 2, 6), {"kernel_shape": (3,), "strides": (2,), "pads": (1, 1)}),
        ("3d", (1, 1, 3, 4, 4), {"kernel_shape": (2, 3, 2), "strides": (1, 2, 2), "pads": (1, 1, 0, 1, 1, 0)}),
    ):
        case(
            f"AveragePool {_name} include={_include}",
            f"y = AveragePool{attributes(count_include_pad=_include, **_o)}(x)",
            {"x": _x},
            lambda x, o=_o, c=_include: (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3](
                x,
                o["kernel_shape"],
                o.get("strides", 1),
                o.get("pads", (0,) * (x.ndim - 2))[: x.ndim - 2],
                bool(o.get("ceil_mode")),
                bool(c),
            ),
        )
    case(f"AveragePool asymmetric pads include={_include}",
         f"y = AveragePool<kernel_shape=[3, 2], strides=[2, 1], pads=[0, 1, 2, 0], count_include_pad={_include}>(x)",
         {"x": (1, 1, 4, 4)},
         lambda x, c=_include: average(x, (3, 2), (2, 1), (1, 1), (0, 1, 2, 0), bool(c)))  # fmt: skip
    case(f"AveragePool dilations include={_include}",
         f"y = AveragePool<kernel_shape=[2, 2], dilations=[2, 3], pads=[1, 1, 1, 1], count_include_pad={_include}>(x)",
         {"x": (1, 1, 4, 4)},
         lambda x, c=_include: average(x, (2, 2), (1, 1), (2, 3), (1, 1, 1, 1), bool(c)))  # fmt: skip


def lp_pool(
    x: Tensor, p: int, kernel: Sequence[int], strides: Any = 1, dilations: Any = 1, pads: Sequence[int] = ()
) -> Tensor:
    weight = torch.ones(x.shape[1], 1, *kernel, dtype=x.dtype)
    f = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
    return f(padded(x.abs() ** p, pads), weight, None, strides, 0, dilations, x.shape[1]) ** (1 / p)


case("LpPool", "y = LpPool<kernel_shape=[2, 2], strides=[2, 2]>(x)", {"x": (1, 2, 4, 5)},
     lambda x: F.lp_pool2d(x, 2, 2))  # fmt: skip
case("LpPool p=1", "y = LpPool<kernel_shape=[2, 3], p=1>(x)", {"x": (1, 1, 3, 4)},
     lambda x: lp_pool(x, 1, (2, 3)))  # fmt: skip
case("LpPool p=3, pads", "y = LpPool<kernel_shape=[3, 2], p=3, strides=[2, 1], pads=[1, 0, 1, 1]>(x)",
     {"x": (1, 1, 4, 4)}, lambda x: lp_pool(x, 3, (3, 2), (2, 1), 1, (1, 0, 1, 1)))  # fmt: skip
case("LpPool p=4, dilations", "y = LpPool<kernel_shape=[2, 2], p=4, dilations=[2, 1]>(x)", {"x": (1, 1, 4, 4)},
     lambda x: lp_pool(x, 4, (2, 2), 1, (2, 1)))  # fmt: skip
case("LpPool 1d", "y = LpPool<kernel_shape=[3], strides=[2]>(x)", {"x": (1, 2, 5)},
     lambda x: F.lp_pool1d(x, 2, 3, 2))  # fmt: skip
case("LpPool ceil", "y = LpPool<kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1>(x)", {"x": (1, 1, 3, 5)},
     lambda x: lp_pool(x, 2, (2, 2), (2, 2), 1, (0, 0, 1, 1)))  # fmt: skip
for _op, _f in (("MaxPool", max_pool), ("AveragePool", F.avg_pool2d)):  # opset 22 mended the size that is inferred
    case(
        f"{_op} ceil, no window in the end pad, opset 22",
        f"y = {_op}<kernel_shape=[2, 2], strides=[2, 3], pads=[1, 1, 1, 1], ceil_mode=1>(x)",
        {"x": (1, 1, 4, 4)},
        lambda x, f=_f: f(
            x,
            (2, 2),
            (2, 3),
            (1, 1, 1, 1) if f is max_pool else 1,
            ceil_mode=True,
            **({} if f is max_pool else {"count_include_pad": False}),
        ),
        opset=22,
    )
case("GlobalAveragePool", "y = GlobalAveragePool(x)", {"x": (2, 3, 3, 2)},
     lambda x: F.adaptive_avg_pool2d(x, 1))  # fmt: skip
case("GlobalMaxPool", "y = GlobalMaxPool(x)", {"x": (2, 3, 3, 2)}, lambda x: F.adaptive_max_pool2d(x, 1))
case("GlobalMaxPool with ties", "y = GlobalMaxPool(x)", {"x": steps(2, 2, 3, 3)},
     lambda x: F.adaptive_max_pool2d(x, 1))  # fmt: skip
case("GlobalLpPool", "y = GlobalLpPool(x)", {"x": (2, 3, 3, 2)},
     lambda x: torch.linalg.vector_norm(x, 2, (2, 3), True))  # fmt: skip
case("GlobalLpPool p=3", "y = GlobalLpPool<p=3>(x)", {"x": (2, 2, 2, 2)},
     lambda x: torch.linalg.vector_norm(x, 3, (2, 3), True))  # fmt: skip
case("adaptive average pool by AveragePool", "y = AveragePool<kernel_shape=[2, 3], strides=[2, 3]>(x)",
     {"x": (1, 2, 4, 6)}, lambda x: F.adaptive_avg_pool2d(x, 2))  # fmt: skip

_POOLED, _AT = (
    t.numpy() for t in F.max_pool2d(torch.from_numpy(normal(2, 2, 4, 4, salt="unpool")), 2, return_indices=True)
)
_OFFSET = 16 * np.arange(4).reshape(2, 2, 1, 1)  # ONNX counts through the whole tensor, torch through an image
case("MaxUnpool", "y = MaxUnpool<kernel_shape=[2, 2], strides=[2, 2]>(x, i)", {"x": (2, 2, 2, 2), "i": _AT + _OFFSET},
     lambda x, i: F.max_unpool2d(x, i - torch.from_numpy(_OFFSET), 2))  # fmt: skip
_FIVE = np.array([0, 3, 10, 18]).reshape(1, 1, 2, 2)
case("MaxUnpool to a shape", "y = MaxUnpool<kernel_shape=[2, 2], strides=[2, 2]>(x, i, s)",
     {"x": (1, 1, 2, 2), "i": _FIVE}, lambda x, i: F.max_unpool2d(x, i, 2, output_size=(5, 5)),
     {"s": ints(1, 1, 5, 5)})  # fmt: skip
case("MaxPool and MaxUnpool",
     "p, i = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(x) y = MaxUnpool<kernel_shape=[2, 2], strides=[2, 2]>(p, i)",
     {"x": (2, 2, 4, 4)}, lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2))  # fmt: skip

_ROIS = np.array([[0.0, 0, 3, 3], [1.25, 0.5, 4.5, 3.75], [0.5, 1, 1, 1.25], [2, 2, 7, 9]])
_IMAGE_OF = ints(0, 1, 0, 1)
for _name, _o, _f in (
    ("", {"output_height": 2, "output_width": 2, "sampling_ratio": 2, "spatial_scale": 0.5}, (0.5, 2, True)),
    ("adaptive", {"output_height": 2, "output_width": 1}, (1.0, 0, True)),
    (
        "not aligned",
        {
            "output_height": 2,
            "output_width": 2,
            "sampling_ratio": 1,
            "coordinate_transformation_mode": "output_half_pixel",
        },
        (1.0, 1, False),
    ),
):
    case(
        f"RoiAlign {_name}",
        f"y = RoiAlign{attributes(**_o)}(x, r, b)",
        {"x": (2, 1, 5, 5)},
        lambda x, o=_o, f=_f: vision.roi_align(
            x,
            torch.from_numpy(np.concatenate([_IMAGE_OF[:, None], _ROIS], 1)),
            (o["output_height"], o["output_width"]),
            *f,
        ),
        {"r": _ROIS, "b": _IMAGE_OF},
    )
_ROIS5 = np.array([[0.0, 0, 0, 3, 3], [1, 1, 1, 4, 3]])
case("MaxRoiPool", "y = MaxRoiPool<pooled_shape=[2, 2]>(x, r)", {"x": (2, 1, 5, 5)},
     lambda x: vision.roi_pool(x, torch.from_numpy(_ROIS5), 2), {"r": _ROIS5})  # fmt: skip
case("MaxRoiPool scaled", "y = MaxRoiPool<pooled_shape=[1, 2], spatial_scale=0.5>(x, r)", {"x": (2, 2, 4, 4)},
     lambda x: vision.roi_pool(x, torch.from_numpy(2 * _ROIS5 * [0.5, 1, 1, 1, 1]), (1, 2), 0.5),
     {"r": 2 * _ROIS5 * [0.5, 1, 1, 1, 1]})  # fmt: skip

for _name, _blocks, _o, _f in (
    ("", 9, {}, {}), ("strides, pads", 9, {"strides": (2, 2), "pads": (1, 1, 1, 1)}, {"stride": 2, "padding": 1}),
    ("dilations", 4, {"dilations": (2, 2)}, {"dilation": 2}),
):  # fmt: skip
    case(f"Col2Im {_name}", f"y = Col2Im{attributes(**_o)}(x, s, k)", {"x": (1, 8, _blocks)},
         lambda x, f=_f: F.fold(x, (4, 4), 2, **f), {"s": ints(4, 4), "k": ints(2, 2)})  # fmt: skip

# ── positions ───────────────────────────────────────────────────────────────────────────────────────────────────────

for _name, _shape, _axis, _at in (
    ("", (4, 3), 0, [2, 0]), ("duplicates, negative", (3, 2), 0, [0, -1, 0, 2, 0, 0, 0]),
    ("axis 1", (2, 4, 2), 1, [3, -4, 3]), ("last axis", (2, 4), -1, [1, 2]), ("one index", (3, 4), 1, -1),
    ("a matrix of indices", (2, 4, 2), 1, [[0, 1, 1], [-1, 0, 2]]), ("no index", (3, 2), 0, []),
):  # fmt: skip
    _at = np.asarray(_at, np.int64)

    def _gather(x: Tensor, *_: Tensor, d: int = _axis % len(_shape), at: np.ndarray = _at) -> Tensor:
        return take(x, d, at.reshape(-1) % x.shape[d]).reshape(*x.shape[:d], *at.shape, *x.shape[d + 1 :])

    case(f"Gather {_name}", f"y = Gather<axis={_axis}>(x, i)", {"x": _shape}, _gather, {"i": _at})
    if _name:
        case(f"Gather {_name}, given at run time", f"y = Gather<axis={_axis}>(x, i)", {"x": _shape, "i": _at},
             _gather)  # fmt: skip

_ELEMENTS = np.array([[0, 2, 2], [1, 0, -1]])
case("GatherElements", "y = GatherElements<axis=1>(x, i)", {"x": (2, 3), "i": _ELEMENTS},
     lambda x, i: x.gather(1, i % 3))  # fmt: skip
case("GatherElements constant", "y = GatherElements<axis=1>(x, i)", {"x": (2, 3)},
     lambda x: x.gather(1, torch.from_numpy(_ELEMENTS) % 3), {"i": _ELEMENTS})  # fmt: skip
case("GatherElements, axis 0, longer", "y = GatherElements<axis=0>(x, i)",
     {"x": (2, 3), "i": np.array([[0, 1, 1], [1, 1, -2], [0, 0, 0]])}, lambda x, i: x.gather(0, i % 2))  # fmt: skip
case("GatherElements, narrower", "y = GatherElements<axis=0>(x, i)", {"x": (3, 3), "i": np.array([[0, 1], [2, 1]])},
     lambda x, i: x.gather(0, i))  # fmt: skip
for _name, _shape, _batch, _at in (
    ("rows", (3, 2, 2), 0, [[2], [0], [2]]), ("points", (3, 4), 0, [[0, 1], [2, -1], [0, 1]]),
    ("a grid of points", (2, 3, 2), 0, [[[0, 1], [1, 2]], [[-1, 0], [0, 0]]]), ("batch 1", (2, 3, 2), 1, [[1], [-1]]),
    ("batch 1, many", (2, 3, 2), 1, [[[1], [1], [0]], [[2], [0], [2]]]),
    ("batch 2", (2, 2, 3), 2, [[[1], [0]], [[2], [-1]]]), ("whole depth", (2, 2, 2), 0, [[0, 1, 1], [1, 0, 0]]),
):  # fmt: skip
    _at = np.asarray(_at, np.int64)

    def _gather_nd(x: Tensor, *_: Tensor, k: int = _batch, at: np.ndarray = _at) -> Tensor:
        lead = np.meshgrid(*(np.arange(n) for n in at.shape[:k]), indexing="ij")
        lead = [m.reshape(*m.shape, *[1] * (at.ndim - 1 - k)) for m in lead]
        index = np.broadcast_arrays(*lead, *(at[..., j] for j in range(at.shape[-1])))
        return x[tuple(torch.from_numpy(np.ascontiguousarray(i)) for i in index)]

    _options = f"<batch_dims={_batch}>" if _batch else ""
    case(f"GatherND {_name}", f"y = GatherND{_options}(x, i)", {"x": _shape}, _gather_nd, {"i": _at})
    case(f"GatherND {_name}, given at run time", f"y = GatherND{_options}(x, i)", {"x": _shape, "i": _at},
         _gather_nd)  # fmt: skip

_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
_SPOTS = np.array([[0, 2, 1, -1], [3, 0, 0, 0]])
case("ScatterElements none", "y = ScatterElements<axis=1>(x, i, u)",
     {"x": (2, 4), "i": np.array([[0, 2], [3, -4]]), "u": (2, 2)}, lambda x, i, u: x.scatter(1, i % 4, u))  # fmt: skip
case("ScatterElements none, axis 0", "y = ScatterElements(x, i, u)",
     {"x": (3, 3), "i": np.array([[0, 2, 1], [2, 1, 0]]), "u": (2, 3)}, lambda x, i, u: x.scatter(0, i, u))  # fmt: skip
case("ScatterElements none, constant, narrower", "y = ScatterElements(x, i, u)", {"x": (3, 3), "u": (2, 2)},
     lambda x, u: x.scatter(0, torch.tensor([[0, 2], [1, 0]]), u), {"i": np.array([[0, 2], [1, 0]])})  # fmt: skip
for _op, _how in _REDUCE.items():
    for _kind, _draw in (("", normal), (" with ties", steps)):
        case(f"ScatterElements {_op}{_kind}", f'y = ScatterElements<axis=1, reduction="{_op}">(x, i, u)',
             {"x": _draw(2, 4, salt="x"), "i": _SPOTS, "u": _draw(2, 4, salt="u")},
             lambda x, i, u, r=_how: x.scatter_reduce(1, i % 4, u, r))  # fmt: skip


def scatter_nd(x: Tensor, index: np.ndarray, u: Tensor, how: str = "") -> Tensor:
    """`how`: torch's reduction; "" overwrites."""
    depth = index.shape[-1]
    sizes = np.array(x.shape[:depth])
    strides = np.concatenate([np.cumprod(sizes[:0:-1])[::-1], [1]])
    at = torch.from_numpy(((index % sizes) * strides).sum(-1).reshape(-1))
    rows, updates = x.reshape(int(sizes.prod()), -1), u.reshape(len(at), -1)
    at = at[:, None].expand_as(updates)
    return (rows.scatter_reduce(0, at, updates, how) if how else rows.scatter(0, at, updates)).reshape(x.shape)


_POINTS, _LINES = np.array([[0, 1], [2, -1], [1, 0]]), np.array([[2], [0]])
_AGAIN = np.array([[0, 1], [2, 2], [0, 1], [0, 1]])
case("ScatterND none", "y = ScatterND(x, i, u)", {"x": (3, 3), "i": _POINTS, "u": (3,)},
     lambda x, i, u: scatter_nd(x, _POINTS, u))  # fmt: skip
case("ScatterND none, rows", "y = ScatterND(x, i, u)", {"x": (3, 2), "u": (2, 2)},
     lambda x, u: scatter_nd(x, _LINES, u), {"i": _LINES})  # fmt: skip
for _op, _how in _REDUCE.items():
    for _kind, _draw in (("", normal), (" with ties", steps)):
        case(f"ScatterND {_op}{_kind}", f'y = ScatterND<reduction="{_op}">(x, i, u)',
             {"x": _draw(3, 3, salt="x"), "i": _AGAIN, "u": _draw(4, salt="u")},
             lambda x, i, u, r=_how: scatter_nd(x, _AGAIN, u, r))  # fmt: skip
    case(f"ScatterND {_op}, rows", f'y = ScatterND<reduction="{_op}">(x, i, u)', {"x": (3, 2), "u": (3, 2)},
         lambda x, u, r=_how: scatter_nd(x, np.array([[1], [1], [-1]]), u, r),
         {"i": np.array([[1], [1], [-1]])})  # fmt: skip
case("Scatter of opset 10", "y = Scatter<axis=1>(x, i, u)", {"x": (2, 3), "i": np.array([[0, 2], [1, 0]]), "u": (2, 2)},
     lambda x, i, u: x.scatter(1, i, u), opset=10)  # fmt: skip


def tensor_scatter(x: Tensor, u: Tensor, begins: Sequence[int], axis: int = -2) -> Tensor:
    parts = []
    for row, update, begin in zip(x, u, begins, strict=True):
        at = torch.tensor([(begin + j) % row.shape[axis] for j in range(update.shape[axis])])
        parts.append(row.index_copy(axis, at, update))
    return torch.stack(parts)


case("TensorScatter", "y = TensorScatter(x, u, i)", {"x": (2, 1, 4, 2), "u": (2, 1, 2, 2), "i": ints(0, 2)},
     lambda x, u, i: tensor_scatter(x, u, i.tolist()), opset=24)  # fmt: skip
case("TensorScatter circular", 'y = TensorScatter<mode="circular", axis=1>(x, u, i)',
     {"x": (2, 4, 2), "u": (2, 3, 2), "i": ints(3, 1)}, lambda x, u, i: tensor_scatter(x, u, i.tolist(), 0),
     opset=24)  # fmt: skip

for _name, _shape, _s, _e, _a, _t, _cut in (
    ("", (4, 5), [1, 2], [3, 4], [0, 1], [1, 1], np.s_[1:3, 2:4]),
    ("negative", (4, 5), [-3, -2], [-1, 9], [-2, -1], [1, 1], np.s_[-3:-1, -2:9]),
    ("steps", (4, 7), [1], [7], [1], [3], np.s_[:, 1:7:3]),
    ("backward", (4, 5), [-1, 3], [-9, 0], [0, 1], [-1, -2], None),
    ("of nothing", (3, 2), [2], [1], [0], [1], np.s_[2:1]), ("all", (3, 2), [0], [2**62], [0], [1], np.s_[:]),
):  # fmt: skip
    _weights = {"s": ints(*_s), "e": ints(*_e), "a": ints(*_a), "t": ints(*_t)}
    _f = (lambda x, c=_cut: x[c]) if _cut is not None else (lambda x: x.flip(0)[:, [3, 1]])
    case(f"Slice {_name}", "y = Slice(x, s, e, a, t)", {"x": _shape}, _f, _weights)
    case(f"Slice {_name}, given at run time", "y = Slice(x, s, e, a, t)",
         {"x": _shape, "s": _weights["s"], "e": _weights["e"]}, lambda x, s, e, f=_f: f(x),
         {"a": _weights["a"], "t": _weights["t"]})  # fmt: skip


def pad(x: Tensor, pads: Sequence[int], mode: str) -> Tensor:
    n = x.ndim
    for d in range(n):
        x = take(x, d, np.pad(np.arange(x.shape[d]), (pads[d], pads[d + n]), mode=mode))  # type: ignore[call-overload]
    return x


for _mode in ("reflect", "edge", "wrap"):
    case(f"Pad {_mode}", f'y = Pad<mode="{_mode}">(x, p)', {"x": (1, 3, 4)},
         lambda x, m=_mode: pad(x, (0, 1, 2, 0, 2, 1), m), {"p": ints(0, 1, 2, 0, 2, 1)})  # fmt: skip
    case(f"Pad {_mode}, given at run time", f'y = Pad<mode="{_mode}">(x, p)', {"x": (3, 4), "p": ints(1, 2, 2, 1)},
         lambda x, p, m=_mode: pad(x, (1, 2, 2, 1), m))  # fmt: skip
case("Pad edge, long", 'y = Pad<mode="edge">(x, p)', {"x": (2, 2)}, lambda x: pad(x, (3, 0, 1, 4), "edge"),
     {"p": ints(3, 0, 1, 4)})  # fmt: skip
case("Pad wrap, long", 'y = Pad<mode="wrap">(x, p)', {"x": (2, 3)}, lambda x: pad(x, (2, 4, 3, 7), "wrap"),
     {"p": ints(2, 4, 3, 7)})  # fmt: skip
case("Pad reflect of one axis", 'y = Pad<mode="reflect">(x, p, , a)', {"x": (2, 3)},
     lambda x: pad(x, (0, 2, 0, 1), "reflect"), {"p": ints(2, 1), "a": ints(-1)})  # fmt: skip
case("Pad constant", "y = Pad(x, p)", {"x": (2, 3)}, lambda x: F.pad(x, (2, 1, 1, 0)),
     {"p": ints(1, 2, 0, 1)})  # fmt: skip
case("Pad constant, given at run time", "y = Pad(x, p)", {"x": (2, 3), "p": ints(1, 2, 0, 1)},
     lambda x, p: F.pad(x, (2, 1, 1, 0)))  # fmt: skip
case("Pad by less than 0", "y = Pad(x, p)", {"x": (3, 4)}, lambda x: F.pad(x, (-1, 2, 1, -1)),
     {"p": ints(1, -1, -1, 2)})  # fmt: skip
case("Pad, its value", "y = Pad(x, p, v)", {"x": (2, 3), "v": np.array(0.5)},
     lambda x, v: torch.cat([torch.cat([v.expand(2, 2), x], 1), v.expand(1, 5)], 0),
     {"p": ints(0, 2, 1, 0)})  # fmt: skip
case("Pad of some axes", "y = Pad(x, p, v, a)", {"x": (1, 2, 3)}, lambda x: F.pad(x, (1, 2), value=0.5),
     {"p": ints(1, 2), "v": np.array(0.5), "a": ints(2)})  # fmt: skip

for _k in (-1, 0, 1):
    case(f"Trilu upper {_k}", "y = Trilu(x, k)", {"x": (2, 3, 4)}, lambda x, k=_k: x.triu(k),
         {"k": np.array(_k)})  # fmt: skip
    case(f"Trilu lower {_k}", "y = Trilu<upper=0>(x, k)", {"x": (3, 4)}, lambda x, k=_k: x.tril(k),
         {"k": np.array(_k)})  # fmt: skip
case("Trilu of default", "y = Trilu(x)", {"x": (3, 3)}, torch.triu)
case("Compress", "y = Compress<axis=1>(x, c)", {"x": (2, 4)}, lambda x: x[:, [0, 2, 3]],
     {"c": bools(1, 0, 1, 1)})  # fmt: skip
case("Compress, given at run time", "y = Compress<axis=0>(x, c)", {"x": (3, 2), "c": bools(0, 1, 1)},
     lambda x, c: x[c])  # fmt: skip
case("Compress short", "y = Compress<axis=1>(x, c)", {"x": (2, 4)}, lambda x: x[:, [1]],
     {"c": bools(0, 1)})  # fmt: skip
case("Compress flat", "y = Compress(x, c)", {"x": (2, 3)}, lambda x: x.reshape(-1)[[1, 4]],
     {"c": bools(0, 1, 0, 0, 1)})  # fmt: skip
case(
    "ReverseSequence",
    "y = ReverseSequence<time_axis=0, batch_axis=1>(x, n)",
    {"x": (4, 3, 2), "n": ints(1, 3, 4)},
    lambda x, n: torch.stack([torch.cat([x[:k, i].flip(0), x[k:, i]]) for i, k in enumerate(n.tolist())], 1),
)
case("ReverseSequence, batch first", "y = ReverseSequence<time_axis=1, batch_axis=0>(x, n)", {"x": (2, 4)},
     lambda x: torch.stack([torch.cat([x[0, :3].flip(0), x[0, 3:]]), x[1].flip(0)]), {"n": ints(3, 4)})  # fmt: skip
case("OneHot", "y = OneHot(i, d, v)", {"v": (2,), "i": np.array([[0, 2], [-1, 1]])},
     lambda v, i: v[F.one_hot(i % 4, 4)], {"d": np.array(4)})  # fmt: skip
case("OneHot, axis 0, out of range", "y = OneHot<axis=0>(i, d, v)", {"v": (2,)},
     lambda v: v[F.one_hot(torch.tensor([0, 2, 3]), 4)[:, :3].T], {"i": ints(0, 2, 5), "d": ints(3)})  # fmt: skip
case("Range", "y = Range(s, l, d)", {"s": np.array(0.5), "d": np.array(0.25)}, lambda s, d: s + d * torch.arange(6),
     {"l": np.array(1.9)})  # fmt: skip

# ── shapes ──────────────────────────────────────────────────────────────────────────────────────────────────────────

case("Transpose", "y = Transpose<perm=[2, 0, 1]>(x)", {"x": (2, 3, 4)}, lambda x: x.permute(2, 0, 1))
case("Transpose of default", "y = Transpose(x)", {"x": (2, 3, 4)}, lambda x: x.permute(2, 1, 0))
case("Reshape", "y = Reshape(x, s)", {"x": (2, 3, 4)}, lambda x: x.reshape(2, 4, 3), {"s": ints(0, -1, 3)})
case("Flatten", "y = Flatten<axis=2>(x)", {"x": (2, 3, 4)}, lambda x: x.reshape(6, 4))
case("Squeeze", "y = Squeeze(x, a)", {"x": (2, 1, 3, 1)}, lambda x: x.squeeze(-1), {"a": ints(-1)})
case("Squeeze all", "y = Squeeze(x)", {"x": (2, 1, 3, 1)}, torch.squeeze)
case("Unsqueeze", "y = Unsqueeze(x, a)", {"x": (2, 3)}, lambda x: x[:, None, :, None], {"a": ints(1, -1)})
case("Expand", "y = Expand(x, s)", {"x": (2, 1, 3)}, lambda x: x.expand(2, 2, 4, 3),
     {"s": ints(2, 1, 4, 3)})  # fmt: skip
case("Expand, given at run time", "y = Expand(x, s)", {"x": (1, 3), "s": ints(4, 1)},
     lambda x, s: x.expand(4, 3))  # fmt: skip
case("Tile", "y = Tile(x, r)", {"x": (2, 1, 3)}, lambda x: x.tile(1, 3, 2), {"r": ints(1, 3, 2)})
case("Tile, given at run time", "y = Tile(x, r)", {"x": (2, 3), "r": ints(2, 2)},
     lambda x, r: x.tile(2, 2))  # fmt: skip
case("Concat", "y = Concat<axis=1>(a, b, a)", {"a": (2, 2), "b": (2, 3)},
     lambda a, b: torch.cat([a, b, a], 1))  # fmt: skip
case("Split", "a, b, c = Split<axis=1>(x, n) y = Mul(a, c)", {"x": (2, 5)}, lambda x: x[:, :2] * x[:, 3:],
     {"n": ints(2, 1, 2)})  # fmt: skip
case("Split unevenly", flattened("Split<axis=-1, num_outputs=3>(x)", "a", "b", "c"), {"x": (2, 5)},
     lambda x: flat(*x.tensor_split((2, 4), -1)), FLAT)  # fmt: skip
case("Split of opset 11", "a, b = Split<split=[1, 2]>(x) y = MatMul(a, b)", {"x": (3, 2, 2)}, lambda x: x[:1] @ x[1:],
     opset=11)  # fmt: skip
for _mode in ("DCR", "CRD"):
    case(
        f"DepthToSpace {_mode}",
        f'y = DepthToSpace<blocksize=2, mode="{_mode}">(x)',
        {"x": (1, 8, 2, 3)},
        (lambda x: F.pixel_shuffle(x, 2))
        if _mode == "CRD"
        else (lambda x: F.pixel_shuffle(x.reshape(1, 4, 2, 2, 3).transpose(1, 2).reshape(1, 8, 2, 3), 2)),
    )
case("SpaceToDepth", "y = SpaceToDepth<blocksize=2>(x)", {"x": (1, 2, 4, 6)},
     lambda x: F.pixel_unshuffle(x, 2).reshape(1, 2, 4, 2, 3).transpose(1, 2).reshape(1, 8, 2, 3))  # fmt: skip
for _i, _size in ((2, 2), (3, 5), (5, 4)):
    _b, _n = max((_i - _size) // 2, 0), min(_i, _size)
    case(
        f"CenterCropPad {_i} to {_size}",
        "y = CenterCropPad<axes=[1]>(x, s)",
        {"x": (2, _i)},
        lambda x, i=_i, s=_size: (
            x[:, (i - s) // 2 : (i - s) // 2 + s] if s <= i else F.pad(x, ((s - i) // 2, s - i - (s - i) // 2))
        ),
        {"s": ints(_size)},
    )
case("CenterCropPad of all axes", "y = CenterCropPad(x, s)", {"x": (5, 2)}, lambda x: F.pad(x[1:4], (1, 2)),
     {"s": ints(3, 5)})  # fmt: skip

# ── resizing and sampling ───────────────────────────────────────────────────────────────────────────────────────────


def scales(*values: float) -> dict[str, np.ndarray]:
    return {"s": np.array(values, np.float32)}


_FLOOR = 'coordinate_transformation_mode="asymmetric", nearest_mode="floor"'
_CORNERS = 'coordinate_transformation_mode="align_corners"'
for _name, _x, _o, _to, _f in (
    ("nearest up", (1, 2, 2, 3), _FLOOR, (4, 6), {"mode": "nearest"}),
    ("nearest up unevenly", (1, 1, 3, 2), _FLOOR, (5, 5), {"mode": "nearest"}),
    ("nearest down", (1, 1, 5, 6), _FLOOR, (2, 4), {"mode": "nearest"}),
    ("nearest exact", (1, 1, 3, 4), 'nearest_mode="round_prefer_ceil"', (5, 3), {"mode": "nearest-exact"}),
    ("nearest 1d", (1, 2, 3), _FLOOR, (7,), {"mode": "nearest"}),
    ("nearest 3d", (1, 1, 2, 2, 2), _FLOOR, (4, 2, 3), {"mode": "nearest"}),
    ("linear up", (1, 2, 2, 3), 'mode="linear"', (4, 5), {"mode": "bilinear"}),
    ("linear down", (1, 1, 5, 6), 'mode="linear"', (2, 4), {"mode": "bilinear"}),
    (
        "linear align_corners",
        (1, 1, 3, 3),
        f'mode="linear", {_CORNERS}',
        (5, 2),
        {"mode": "bilinear", "align_corners": True},
    ),
    (
        "linear pytorch_half_pixel to 1",
        (1, 1, 3, 4),
        'mode="linear", coordinate_transformation_mode="pytorch_half_pixel"',
        (6, 2),
        {"mode": "bilinear"},
    ),
    (
        "linear antialias",
        (1, 1, 6, 5),
        'mode="linear", antialias=1, exclude_outside=1',
        (3, 2),
        {"mode": "bilinear", "antialias": True},
    ),
    (
        "linear antialias up",
        (1, 1, 2, 5),
        'mode="linear", antialias=1, exclude_outside=1',
        (4, 3),
        {"mode": "bilinear", "antialias": True},
    ),
    ("linear 1d", (1, 2, 4), 'mode="linear"', (7,), {"mode": "linear"}),
    ("linear 3d", (1, 1, 2, 3, 2), 'mode="linear"', (4, 2, 3), {"mode": "trilinear"}),
    (
        "linear 3d align_corners",
        (1, 1, 2, 3, 2),
        f'mode="linear", {_CORNERS}',
        (3, 2, 4),
        {"mode": "trilinear", "align_corners": True},
    ),
    ("cubic up", (1, 1, 3, 3), 'mode="cubic"', (5, 6), {"mode": "bicubic"}),
    ("cubic down", (1, 1, 6, 5), 'mode="cubic"', (3, 4), {"mode": "bicubic"}),
    (
        "cubic align_corners",
        (1, 1, 3, 4),
        f'mode="cubic", {_CORNERS}',
        (5, 3),
        {"mode": "bicubic", "align_corners": True},
    ),
    (
        "cubic antialias",
        (1, 1, 6, 5),
        'mode="cubic", antialias=1, cubic_coeff_a=-0.5, exclude_outside=1',
        (3, 3),
        {"mode": "bicubic", "antialias": True},
    ),
):
    case(f"Resize {_name}", f"y = Resize<{_o}>(x, , , s)", {"x": _x}, lambda x, to=_to, f=_f: F.interpolate(x, to, **f),
         {"s": ints(*_x[:2], *_to)})  # fmt: skip
case("Resize by scales, nearest", f"y = Resize<{_FLOOR}>(x, , s)", {"x": (1, 1, 3, 4)},
     lambda x: F.interpolate(x, scale_factor=(2, 1.5), mode="nearest"), scales(1, 1, 2, 1.5))  # fmt: skip
case("Resize by scales, linear", 'y = Resize<mode="linear">(x, , s)', {"x": (1, 1, 3, 4)},
     lambda x: F.interpolate(x, scale_factor=(1.5, 0.625), mode="bilinear"), scales(1, 1, 1.5, 0.625))  # fmt: skip
case("Resize by scales, cubic", 'y = Resize<mode="cubic">(x, , s)', {"x": (1, 1, 4, 4)},
     lambda x: F.interpolate(x, scale_factor=(0.625, 1.75), mode="bicubic"), scales(1, 1, 0.625, 1.75))  # fmt: skip
case("Resize of listed axes", 'y = Resize<mode="linear", axes=[3, 2]>(x, , , s)', {"x": (1, 1, 2, 3)},
     lambda x: F.interpolate(x, (4, 5), mode="bilinear"), {"s": ints(5, 4)})  # fmt: skip
case("Resize to sizes given at run time", 'y = Resize<mode="linear">(x, , , s)',
     {"x": (1, 1, 2, 3), "s": ints(1, 1, 4, 5)}, lambda x, s: F.interpolate(x, (4, 5), mode="bilinear"))  # fmt: skip
case("Resize of opset 10", "y = Resize(x, s)", {"x": (1, 1, 2, 3)},
     lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"), scales(1, 1, 2, 2), opset=10)  # fmt: skip
case("Upsample of opset 9", 'y = Upsample<mode="nearest">(x, s)', {"x": (1, 2, 2, 2)},
     lambda x: F.interpolate(x, scale_factor=(2, 3), mode="nearest"), scales(1, 1, 2, 3), opset=9)  # fmt: skip

for _mode, _padding, _corners in itertools.product(
    ("linear", "nearest", "cubic"), ("zeros", "border", "reflection"), (0, 1)
):
    _o = f'<mode="{_mode}", padding_mode="{_padding}", align_corners={_corners}>'
    _f = {
        "mode": {"linear": "bilinear", "cubic": "bicubic"}.get(_mode, _mode),
        "padding_mode": _padding,
        "align_corners": bool(_corners),
    }
    _where = uniform(-1.4, 1.4, 1, 2, 3, 2, salt=_o)
    _fixed = {"g": _where} if _mode == "nearest" else {}  # there torch's gradient for the grid is 0
    case(f"GridSample {_mode} {_padding} align_corners={_corners}", f"y = GridSample{_o}(x, g)",
         {"x": (1, 2, 3, 4)} if _fixed else {"x": (1, 2, 3, 4), "g": _where},
         lambda x, g=_where, f=_f: F.grid_sample(x, torch.as_tensor(g), **f), _fixed, opset=20)  # fmt: skip
    if _mode != "cubic":
        _where = uniform(-1.4, 1.4, 1, 1, 2, 2, 3, salt=_o)
        _fixed = {"g": _where} if _mode == "nearest" else {}
        case(f"GridSample 3d {_mode} {_padding} align_corners={_corners}", f"y = GridSample{_o}(x, g)",
             {"x": (1, 1, 2, 3, 3)} if _fixed else {"x": (1, 1, 2, 3, 3), "g": _where},
             lambda x, g=_where, f=_f: F.grid_sample(x, torch.as_tensor(g), **f), _fixed, opset=20)  # fmt: skip
case("GridSample of two images", "y = GridSample(x, g)", {"x": (2, 1, 3, 3), "g": uniform(-1.2, 1.2, 2, 2, 2, 2)},
     lambda x, g: F.grid_sample(x, g, align_corners=False), opset=20)  # fmt: skip
case("GridSample on pixels", "y = GridSample<align_corners=1>(x, g)",
     {"x": (1, 1, 3, 3), "g": np.array([[[[-1.0, -1], [0, 0], [1, 1], [0, 1], [0.5, 0]]]])},
     lambda x, g: F.grid_sample(x, g, align_corners=True), opset=20)  # fmt: skip
case("GridSample of opset 16", 'y = GridSample<mode="bilinear">(x, g)',
     {"x": (1, 1, 3, 3), "g": uniform(-1.2, 1.2, 1, 2, 2, 2)}, lambda x, g: F.grid_sample(x, g, align_corners=False),
     opset=16)  # fmt: skip
for _corners in (0, 1):
    case(f"AffineGrid 2d align_corners={_corners}", f"y = AffineGrid<align_corners={_corners}>(t, s)", {"t": (2, 2, 3)},
         lambda t, c=_corners: F.affine_grid(t, [2, 1, 2, 3], bool(c)), {"s": ints(2, 1, 2, 3)}, opset=20)  # fmt: skip
    case(f"AffineGrid 3d align_corners={_corners}", f"y = AffineGrid<align_corners={_corners}>(t, s)", {"t": (1, 3, 4)},
         lambda t, c=_corners: F.affine_grid(t, [1, 1, 2, 2, 3], bool(c)), {"s": ints(1, 1, 2, 2, 3)},
         opset=20)  # fmt: skip
case("spatial transformer", "h = AffineGrid(t, s) y = GridSample(x, h)",
     {"x": (1, 1, 3, 3), "t": np.array([[[0.75, 0.25, 0.125], [-0.25, 0.5, 0]]])},
     lambda x, t: F.grid_sample(x, F.affine_grid(t, [1, 1, 2, 3], False), align_corners=False), {"s": ints(1, 1, 2, 3)},
     opset=20)  # fmt: skip

# ── recurrent networks ──────────────────────────────────────────────────────────────────────────────────────────────

_GATES = {"RNN": [0], "GRU": [1, 0, 2], "LSTM": [0, 2, 3, 1]}
"""torch's gates (h; r, z, n; i, f, g, o) among those of ONNX (h; z, r, h; i, o, f, c)."""


def recurrent(
    op: str,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    h: Tensor | None = None,
    c: Tensor | None = None,
    lengths: Sequence[int] = (),
    flip: bool = False,
    cell: str = "",
) -> tuple[Tensor, ...]:
    """Y, Y_h and Y_c by torch's own kernels. `flip`: in the reverse direction only."""
    directions, hidden, gates = w.shape[0], r.shape[-1], _GATES[op]

    def reordered(v: Tensor) -> Tensor:
        return v.reshape(len(gates), hidden, -1)[gates].reshape(-1, *v.shape[1:])

    parts: list[Tensor] = []
    for d in range(directions):
        parts += [reordered(w[d]), reordered(r[d])]
        parts += [reordered(v) for v in b[d].chunk(2)] if b is not None else []
    zeros = x.new_zeros(directions, x.shape[1], hidden)
    states = [h if h is not None else zeros, *([c if c is not None else zeros] if op == "LSTM" else [])]
    run = getattr(torch._VF, cell or {"RNN": "rnn_tanh"}.get(op, op.lower()))
    options = (parts, b is not None, 1, 0.0, False, directions == 2)
    if lengths:
        order = np.argsort([-n for n in lengths], kind="stable")
        back = torch.from_numpy(np.argsort(order))
        packed = torch.nn.utils.rnn.pack_padded_sequence(x[:, order], torch.tensor(lengths)[order])
        sorted_states = [s[:, order] for s in states]
        start = sorted_states if op == "LSTM" else sorted_states[0]
        y, *ends = run(packed.data, packed.batch_sizes, start, *options)
        y = torch.nn.utils.rnn.pad_packed_sequence(packed._replace(data=y), total_length=len(x))[0][:, back]
        ends = [e[:, back] for e in ends]
    else:
        y, *ends = run(x.flip(0) if flip else x, states if op == "LSTM" else states[0], *options, False)
        y = y.flip(0) if flip else y
    return y.reshape(*y.shape[:2], directions, hidden).permute(0, 2, 1, 3), *ends


_STEPS, _BATCH, _IN, _HIDDEN = 3, 2, 2, 2
_LENGTHS = [2, 3]
for _op, _gates in _GATES.items():
    _g, _flag = len(_gates) * _HIDDEN, ", linear_before_reset=1" if _op == "GRU" else ""
    _states = "h, c" if _op == "LSTM" else "h"
    _ends = ("Y", "H", "C") if _op == "LSTM" else ("Y", "H")
    for _name, _direction, _d in (
        ("", "forward", 1), (" reverse", "reverse", 1), (" bidirectional", "bidirectional", 2),
    ):  # fmt: skip
        _o = f'<hidden_size={_HIDDEN}, direction="{_direction}"{_flag}>'
        _all = {
            "x": (_STEPS, _BATCH, _IN),
            "w": (_d, _g, _IN),
            "r": (_d, _g, _HIDDEN),
            "b": (_d, 2 * _g),
            "h": (_d, _BATCH, _HIDDEN),
            **({"c": (_d, _BATCH, _HIDDEN)} if _op == "LSTM" else {}),
        }
        case(f"{_op}{_name}", f"y = {_op}{_o}(x, w, r)", {k: _all[k] for k in "xwr"},
             lambda x, w, r, op=_op, f=_direction == "reverse": recurrent(op, x, w, r, flip=f)[0])  # fmt: skip
        case(f"{_op}{_name}, all inputs and outputs", flattened(f"{_op}{_o}(x, w, r, b, , {_states})", *_ends), _all,
             lambda *a, op=_op, f=_direction == "reverse": flat(*recurrent(op, *a, flip=f)), FLAT)  # fmt: skip
        if _direction != "reverse":
            case(f"{_op}{_name}, lengths", flattened(f"{_op}{_o}(x, w, r, b, n, {_states})", *_ends), _all,
                 lambda *a, op=_op: flat(*recurrent(op, *a, lengths=_LENGTHS)),
                 {**FLAT, "n": np.array(_LENGTHS, np.int32)})  # fmt: skip
    case(f"{_op}, last state", f", y = {_op}<hidden_size={_HIDDEN}{_flag}>(x, w, r, b)",
         {"x": (_STEPS, _BATCH, _IN), "w": (1, _g, _IN), "r": (1, _g, _HIDDEN), "b": (1, 2 * _g)},
         lambda *a, op=_op: recurrent(op, *a)[1])  # fmt: skip
    case(
        f"{_op}, batch first",
        flattened(f"{_op}<hidden_size={_HIDDEN}, layout=1{_flag}>(x, w, r)", "Y", "H"),
        {"x": (_BATCH, _STEPS, _IN), "w": (1, _g, _IN), "r": (1, _g, _HIDDEN)},
        lambda x, w, r, op=_op: flat(
            *(
                t.permute(*p)
                for t, p in zip(recurrent(op, x.transpose(0, 1), w, r)[:2], ((2, 0, 1, 3), (1, 0, 2)), strict=True)
            )
        ),
        FLAT,
    )
case("RNN relu", 'y = RNN<hidden_size=2, activations=["Relu"]>(x, w, r, b)',
     {"x": (3, 2, 2), "w": (1, 2, 2), "r": (1, 2, 2), "b": (1, 4)},
     lambda *a: recurrent("RNN", *a, cell="rnn_relu")[0])  # fmt: skip


def gru_reset_first(x: Tensor, w: Tensor, r: Tensor, b: Tensor) -> Tensor:
    """ONNX's default, linear_before_reset=0, which torch has not."""
    wz, wr, wh = w[0].chunk(3)
    rz, rr, rh = r[0].chunk(3)
    bz, br, bh = sum(b[0].reshape(2, -1)).chunk(3)  # type: ignore[attr-defined]
    h, ys = x.new_zeros(x.shape[1], r.shape[-1]), []
    for step in x:
        z, reset = torch.sigmoid(step @ wz.T + h @ rz.T + bz), torch.sigmoid(step @ wr.T + h @ rr.T + br)
        h = (1 - z) * torch.tanh(step @ wh.T + (reset * h) @ rh.T + bh) + z * h
        ys.append(h)
    return torch.stack(ys)[:, None]


case("GRU, reset first", "y = GRU<hidden_size=2>(x, w, r, b)",
     {"x": (3, 2, 2), "w": (1, 6, 2), "r": (1, 6, 2), "b": (1, 12)}, gru_reset_first)  # fmt: skip


def lstm_by_hand(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor,
    p: Tensor | None = None,
    clip: float = np.inf,
    coupled: bool = False,
    act: Callable[[Tensor], Tensor] = torch.tanh,
) -> Tensor:
    """What torch's has not: peepholes, clipping, coupled gates, other activations."""
    h = c = x.new_zeros(x.shape[1], r.shape[-1])
    pi, po, pf = p[0].chunk(3) if p is not None else (x.new_zeros(()),) * 3
    ys = []
    for step in x:
        i, o, f, g = (step @ w[0].T + h @ r[0].T + sum(b[0].chunk(2))).chunk(4, 1)
        i = torch.sigmoid((i + pi * c).clamp(-clip, clip))
        f = 1 - i if coupled else torch.sigmoid((f + pf * c).clamp(-clip, clip))
        c = f * c + i * act(g.clamp(-clip, clip))
        h = torch.sigmoid((o + po * c).clamp(-clip, clip)) * act(c)
        ys.append(h)
    return torch.stack(ys)[:, None]


_LSTM = {"x": (3, 2, 2), "w": (1, 8, 2), "r": (1, 8, 2), "b": (1, 16)}
case("LSTM, peepholes", "y = LSTM<hidden_size=2>(x, w, r, b, , , , p)", {**_LSTM, "p": (1, 6)},
     lstm_by_hand)  # fmt: skip
case("LSTM, clipped", "y = LSTM<hidden_size=2, clip=0.5>(x, w, r, b)", _LSTM,
     lambda *a: lstm_by_hand(*a, clip=0.5))  # fmt: skip
case("LSTM, coupled gates", "y = LSTM<hidden_size=2, input_forget=1>(x, w, r, b)", _LSTM,
     lambda *a: lstm_by_hand(*a, coupled=True))  # fmt: skip
case("LSTM, softsign", 'y = LSTM<hidden_size=2, activations=["Sigmoid", "Softsign", "Softsign"]>(x, w, r, b)', _LSTM,
     lambda *a: lstm_by_hand(*a, act=F.softsign))  # fmt: skip

# ── attention ───────────────────────────────────────────────────────────────────────────────────────────────────────

sdpa = F.scaled_dot_product_attention
_QKV = {"q": (1, 2, 3, 2), "k": (1, 2, 4, 2), "v": (1, 2, 4, 3)}
_ALLOWED = np.array([[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1]], bool)


def weights_of(
    q: Tensor, k: Tensor, softcap: float = 0, bias: Tensor | float = 0, scale: float | None = None
) -> Tensor:
    s = q @ k.transpose(-1, -2) * (scale if scale is not None else q.shape[-1] ** -0.5)
    return (softcap * torch.tanh(s / softcap) if softcap else s) + bias


def heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(2, (count, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


case("Attention", "y = Attention(q, k, v)", _QKV, sdpa, opset=23)
case("Attention scaled", "y = Attention<scale=0.25>(q, k, v)", _QKV, lambda q, k, v: sdpa(q, k, v, scale=0.25),
     opset=23)  # fmt: skip
case("Attention causal", "y = Attention<is_causal=1>(q, k, v)",
     {"q": (1, 2, 3, 2), "k": (1, 2, 3, 2), "v": (1, 2, 3, 2)}, lambda q, k, v: sdpa(q, k, v, is_causal=True),
     opset=23)  # fmt: skip
case("Attention causal, longer keys", "y = Attention<is_causal=1>(q, k, v)", _QKV,
     lambda q, k, v: sdpa(q, k, v, is_causal=True), opset=23)  # fmt: skip
case("Attention with a bias", "y = Attention(q, k, v, m)", {**_QKV, "m": (3, 4)}, lambda q, k, v, m: sdpa(q, k, v, m),
     opset=23)  # fmt: skip
case("Attention with a bias per head", "y = Attention(q, k, v, m)", {**_QKV, "m": (1, 2, 3, 4)},
     lambda q, k, v, m: sdpa(q, k, v, m), opset=23)  # fmt: skip
case("Attention with a mask", "y = Attention(q, k, v, m)", {**_QKV, "m": _ALLOWED}, lambda q, k, v, m: sdpa(q, k, v, m),
     opset=23)  # fmt: skip
case("Attention causal with a mask", "y = Attention<is_causal=1>(q, k, v, m)",
     {**_QKV, "m": np.array([[1, 0, 1, 1], [0, 1, 1, 1], [1, 0, 1, 1]], bool)},
     lambda q, k, v, m: sdpa(q, k, v, m & torch.ones(3, 4).tril().bool()), opset=23)  # fmt: skip
case("Attention causal with a bias", "y = Attention<is_causal=1>(q, k, v, m)", {**_QKV, "m": (3, 4)},
     lambda q, k, v, m: sdpa(q, k, v, m.masked_fill(~torch.ones(3, 4).tril().bool(), -np.inf)), opset=23)  # fmt: skip
case("Attention softcap", "y = Attention<softcap=1.5>(q, k, v)", _QKV,
     lambda q, k, v: weights_of(q, k, 1.5).softmax(-1) @ v, opset=23)  # fmt: skip
case("Attention softcap with a bias", "y = Attention<softcap=1.5>(q, k, v, m)", {**_QKV, "m": (3, 4)},
     lambda q, k, v, m: weights_of(q, k, 1.5, m).softmax(-1) @ v, opset=24)  # fmt: skip
case("Attention of grouped queries", "y = Attention(q, k, v)",
     {"q": (1, 4, 2, 2), "k": (1, 2, 3, 2), "v": (1, 2, 3, 2)}, lambda q, k, v: sdpa(q, k, v, enable_gqa=True),
     opset=23)  # fmt: skip
case("Attention of one key head", "y = Attention(q, k, v)", {"q": (1, 3, 2, 2), "k": (1, 1, 3, 2), "v": (1, 1, 3, 2)},
     lambda q, k, v: sdpa(q, k, v, enable_gqa=True), opset=23)  # fmt: skip
case("Attention of rank 3", "y = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v)",
     {"q": (1, 3, 4), "k": (1, 2, 4), "v": (1, 2, 6)},
     lambda q, k, v: joined(sdpa(heads(q, 2), heads(k, 2), heads(v, 2))), opset=23)  # fmt: skip
case("Attention of rank 3, grouped queries, causal",
     "y = Attention<q_num_heads=4, kv_num_heads=2, is_causal=1>(q, k, v)",
     {"q": (1, 3, 8), "k": (1, 3, 4), "v": (1, 3, 4)},
     lambda q, k, v: joined(sdpa(heads(q, 4), heads(k, 2), heads(v, 2), is_causal=True, enable_gqa=True)),
     opset=23)  # fmt: skip
_PAST = {"q": (1, 2, 2, 2), "k": (1, 2, 2, 2), "v": (1, 2, 2, 2), "pk": (1, 2, 3, 2), "pv": (1, 2, 3, 2)}
case(
    "Attention with a past",
    flattened("Attention(q, k, v, , pk, pv)", "Y", "K", "V"),
    _PAST,
    lambda q, k, v, a, b: flat(
        sdpa(q, torch.cat([a, k], 2), torch.cat([b, v], 2)), torch.cat([a, k], 2), torch.cat([b, v], 2)
    ),
    FLAT,
    opset=23,
)
case("Attention with a past, causal", "y, K, V = Attention<is_causal=1>(q, k, v, , pk, pv)", _PAST,
     lambda q, k, v, a, b: sdpa(q, torch.cat([a, k], 2), torch.cat([b, v], 2), torch.ones(2, 5).tril(3).bool()),
     opset=24)  # fmt: skip
for _mode, _f in enumerate(
    (
        lambda q, k, v, m: weights_of(q, k),
        lambda q, k, v, m: weights_of(q, k, 2.0),
        lambda q, k, v, m: weights_of(q, k, 2.0, m),
        lambda q, k, v, m: weights_of(q, k, 2.0, m).softmax(-1),
    )
):
    _cap = 2.0 if _mode else 0
    case(
        f"Attention, its products, mode {_mode}",
        f"Y, , , S = Attention<qk_matmul_output_mode={_mode}, softcap={float(_cap)}>(q, k, v, m) "
        "a = Reshape(Y, flat) b = Reshape(S, flat) y = Concat<axis=0>(a, b)",
        {**_QKV, "m": (3, 4)},
        lambda q, k, v, m, f=_f, c=_cap: flat(weights_of(q, k, c, m).softmax(-1) @ v, f(q, k, v, m)),
        FLAT,
        opset=25,
    )
case("Attention over cached keys", "y = Attention(q, k, v, , , , n)",
     {"q": (2, 1, 1, 2), "k": (2, 1, 4, 2), "v": (2, 1, 4, 2), "n": ints(2, 4)},
     lambda q, k, v, n: sdpa(q, k, v, (torch.arange(4) < n[:, None])[:, None, None]), opset=24)  # fmt: skip
case("Attention, a window", "y = Attention<left_window_size=1, right_window_size=0>(q, k, v)", _QKV,
     lambda q, k, v: sdpa(q, k, v, (torch.ones(3, 4).tril() * torch.ones(3, 4).triu(-1)).bool()), opset=25)  # fmt: skip
case("Attention, a row that sees nothing", "y = Attention(q, k, v, m)", {**_QKV, "m": _ALLOWED & bools(1, 0, 1, 1)},
     lambda q, k, v, m: sdpa(q, k, v, m), opset=25)  # fmt: skip


def rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, width: int = 0) -> Tensor:
    """x (N, H, T, D); cos and sin (N, T, width/2)."""
    width = width or x.shape[-1]
    a, b = (x[..., 0:width:2], x[..., 1:width:2]) if interleaved else x[..., :width].chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    turned = (cos * a - sin * b, sin * a + cos * b)
    return torch.cat(
        [torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1), x[..., width:]], -1
    )


_ANGLES = {"c": (5, 2), "s": (5, 2)}
_TURNS = {"p": np.array([[0, 1, 2], [4, 4, 1]])}
case("RotaryEmbedding", "y = RotaryEmbedding(x, c, s, p)", {"x": (2, 2, 3, 4), **_ANGLES, **_TURNS},
     lambda x, c, s, p: rotated(x, c[p], s[p]), opset=23)  # fmt: skip
case("RotaryEmbedding interleaved", "y = RotaryEmbedding<interleaved=1>(x, c, s, p)",
     {"x": (2, 1, 3, 4), **_ANGLES, **_TURNS}, lambda x, c, s, p: rotated(x, c[p], s[p], True), opset=23)  # fmt: skip
case("RotaryEmbedding of a part", "y = RotaryEmbedding<rotary_embedding_dim=4, num_heads=2>(x, c, s, p)",
     {"x": (2, 2, 3, 6), **_ANGLES, **_TURNS}, lambda x, c, s, p: rotated(x, c[p], s[p], width=4),
     opset=23)  # fmt: skip
case("RotaryEmbedding of rank 3", "y = RotaryEmbedding<num_heads=2>(x, c, s)",
     {"x": (2, 3, 8), "c": (2, 3, 2), "s": (2, 3, 2)}, lambda x, c, s: joined(rotated(heads(x, 2), c, s)),
     opset=23)  # fmt: skip


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    count: int = 2,
) -> Tensor:
    q, k, v = heads(q, count), heads(k, count), heads(v, count)
    outputs = []
    for t in range(q.shape[2]):
        qt, kt, vt = q[:, :, t], k[:, :, t], v[:, :, t]
        if decay is not None:
            state = state * decay[:, t, :, None, None].exp()
        if beta is not None:
            vt = beta[:, t, :, None] * (vt - torch.einsum("bhdm,bhd->bhm", state, kt))
        state = state + kt[..., :, None] * vt[..., None, :]
        outputs.append(torch.einsum("bhd,bhdm->bhm", qt, state) * q.shape[-1] ** -0.5)
    return flat(joined(torch.stack(outputs, 2)), state)


_TOKENS = {"q": (1, 3, 4), "k": (1, 3, 4), "v": (1, 3, 4), "h": (1, 2, 2, 2)}
for _rule, _operands, _more in (
    ("linear", "", {}), ("gated", ", d", {"d": "decay"}), ("delta", ", , b", {"b": "beta"}),
    ("gated_delta", ", d, b", {"d": "decay", "b": "beta"}),
):  # fmt: skip
    _o = attributes(q_num_heads=2, kv_num_heads=2, update_rule=_rule)
    case(f"LinearAttention {_rule}", flattened(f"LinearAttention{_o}(q, k, v, h{_operands})", "Y", "H"),
         {**_TOKENS, **dict.fromkeys(_more, (1, 3, 2))},
         lambda *a, more=_more: linear_attention(*a[:4], **dict(zip(more.values(), a[4:], strict=True))),
         FLAT, opset=27)  # fmt: skip
case("CausalConvWithState", flattened("CausalConvWithState(x, w, b, h)", "Y", "H"),
     {"x": (1, 2, 4), "w": (2, 1, 3), "b": (2,), "h": (1, 2, 2)},
     lambda x, w, b, h: flat(F.conv1d(torch.cat([h, x], 2), w, b, groups=2), x[:, :, -2:]), FLAT, opset=27)  # fmt: skip
case("CausalConvWithState silu", 'y, H = CausalConvWithState<activation="silu">(x, w)',
     {"x": (1, 2, 4), "w": (2, 1, 3)}, lambda x, w: F.silu(F.conv1d(F.pad(x, (2, 0)), w, groups=2)),
     opset=27)  # fmt: skip

# ── Fourier transforms ──────────────────────────────────────────────────────────────────────────────────────────────


def dft(x: Tensor, n: int | None = None, axis: int = 1, inverse: bool = False, onesided: bool = False) -> Tensor:
    """Over a real signal (…, 1) or a complex one (…, 2)."""
    z = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.squeeze(-1)
    if inverse and onesided:
        return torch.fft.irfft(z, n, axis).unsqueeze(-1)
    return torch.view_as_real(
        (torch.fft.ifft if inverse else torch.fft.rfft if onesided else torch.fft.fft)(z, n, axis).resolve_conj()
    )


for _name, _x, _o, _n, _axis, _f in (
    ("", (2, 4, 1), "", None, None, {}), ("complex", (2, 5, 2), "", None, None, {}),
    ("inverse", (2, 5, 2), "<inverse=1>", None, None, {"inverse": True}),
    ("inverse of real", (1, 4, 1), "<inverse=1>", None, None, {"inverse": True}),
    ("onesided", (2, 5, 1), "<onesided=1>", None, None, {"onesided": True}),
    ("onesided, even", (2, 4, 1), "<onesided=1>", None, None, {"onesided": True}),
    ("padded", (1, 3, 1), "", 5, None, {"n": 5}), ("cut", (1, 6, 2), "", 4, None, {"n": 4}),
    ("axis 0", (4, 2, 2), "", None, 0, {"axis": 0}),
    ("inverse, onesided", (1, 3, 2), "<inverse=1, onesided=1>", None, None, {"inverse": True, "onesided": True}),
):  # fmt: skip
    _weights = {**({"n": np.array(_n)} if _n else {}), **({"a": np.array(_axis)} if _axis is not None else {})}
    _operands = f"x{', n' if _n else ', ' if _axis is not None else ''}{', a' if _axis is not None else ''}"
    case(f"DFT {_name}", f"y = DFT{_o}({_operands})", {"x": _x}, lambda x, f=_f: dft(x, **f), _weights,
         opset=20)  # fmt: skip
case("DFT of opset 17", "y = DFT<axis=1, onesided=1>(x)", {"x": (1, 2, 1)}, lambda x: dft(x, onesided=True),
     opset=17)  # fmt: skip


def stft(x: Tensor, window: Tensor, step: int, onesided: bool = True) -> Tensor:
    frames = x.squeeze(-1).unfold(1, len(window), step) * window
    return torch.view_as_real((torch.fft.rfft if onesided else torch.fft.fft)(frames))


case("STFT", "y = STFT<onesided=1>(x, t, w)", {"x": (2, 8, 1), "w": (4,)}, lambda x, w: stft(x, w, 2),
     {"t": np.array(2)})  # fmt: skip
case("STFT twosided", "y = STFT<onesided=0>(x, t, w)", {"x": (1, 7, 1), "w": (3,)}, lambda x, w: stft(x, w, 3, False),
     {"t": np.array(3)})  # fmt: skip
case(
    "STFT of default", "y = STFT(x, t, w)", {"x": (1, 6, 1), "w": (4,)}, lambda x, w: stft(x, w, 1), {"t": np.array(1)}
)
case("STFT without window", "y = STFT<onesided=1>(x, t, , n)", {"x": (1, 8, 1)}, lambda x: stft(x, torch.ones(4), 3),
     {"t": np.array(3), "n": np.array(4)})  # fmt: skip

# ── control flow and sequences ──────────────────────────────────────────────────────────────────────────────────────

_IF = (
    "y = If(c) <then_branch = a () => (double[2] u) { u = Exp(x) }, else_branch = b () => (double[2] w) { w = Sin(x) }>"
)
case("If, then", _IF, {"x": (2,), "c": np.array(True)}, lambda x, c: x.exp())
case("If, else", _IF, {"x": (2,), "c": np.array(False)}, lambda x, c: x.sin())
case("If beside a path", f"{_IF.replace('y =', 'a =')} y = Add(a, x)", {"x": (2,), "c": np.array(True)},
     lambda x, c: x.exp() + x)  # fmt: skip
case("If, known", _IF, {"x": (2,)}, lambda x: x.exp(), {"c": np.array(True)})
_BODY = "body = b (int64 i, bool c, double[2] h) => (bool d, double[2] k) { d = Identity(c)"
_TIMES = {"n": np.array(3), "go": np.array(True)}
case("Loop", f"y = Loop(n, go, x) <{_BODY} s = Sin(h) k = Mul(s, a) }}>", {"x": (2,), "a": (2,)},
     lambda x, a: ((x.sin() * a).sin() * a).sin() * a, _TIMES)  # fmt: skip
case("Loop, a value from outside", f"y = Loop(n, go, s) <{_BODY} k = Mul(h, x) }}>", {"x": (2,), "s": (2,)},
     lambda x, s: s * x**3, _TIMES)  # fmt: skip
_BODY = "body = b (double[2] s, double[2] t) => (double[2] u, double[2] o) { p = Mul(s, t) u = Tanh(p) o = Exp(u) }"
case("Scan", f"h, y = Scan<num_scan_inputs=1, {_BODY}>(s0, x)", {"s0": (2,), "x": (3, 2)},
     lambda s, x: torch.stack([(s := torch.tanh(s * t)).exp() for t in x]))  # fmt: skip
case("Scan, all outputs", flattened(f"Scan<num_scan_inputs=1, {_BODY}>(s0, x)", "H", "Y"), {"s0": (2,), "x": (3, 2)},
     lambda s, x: flat(*(parts := [(s := torch.tanh(s * t)) for t in x])[-1:], torch.stack(parts).exp()),
     FLAT)  # fmt: skip
case("sequence", "s = SplitToSequence<axis=1>(x, n) y = ConcatFromSequence<axis=0>(s)", {"x": (2, 6)},
     lambda x: torch.cat(x.split(2, 1)), {"n": np.array(2)})  # fmt: skip
case("sequence, one of it", "s = SequenceConstruct(a, b) t = SequenceAt(s, i) y = Mul(t, a)", {"a": (2,), "b": (2,)},
     lambda a, b: a * b, {"i": np.array(1)})  # fmt: skip
case("optional", "o = Optional(x) y = OptionalGetElement(o)", {"x": (2,)}, lambda x: x.clone())
