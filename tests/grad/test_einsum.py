"""Gradients of Einsum."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from pycam.errors import BatchAxisError, UnsupportedOpError
from pycam.grad import differentiate
from pycam.grad.einsum import parse
from pycam.gradient import vjp
from pycam.graph.builder import Builder

BATCHED = {"batched": True}


def einsum(*operands: np.ndarray, equation: str) -> np.ndarray:
    return np.asarray(np.einsum(equation, *operands))


# equation, shapes, options
_FORMS: list[tuple[str, list[tuple[int, ...]], dict[str, Any]]] = [
    ("ij,jk->ik", [(2, 3), (3, 4)], {}),
    ("ij,jk", [(2, 3), (3, 4)], {}),
    ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)], BATCHED),
    ("bhqd,bhkd->bhqk", [(2, 2, 3, 4), (2, 2, 5, 4)], BATCHED),
    ("bhwc,hkc->bhwk", [(2, 3, 4, 2), (3, 5, 2)], {}),
    ("i,j->ij", [(2,), (3,)], {}),
    ("i,i->", [(3,), (3,)], {}),
    ("i,i", [(3,), (3,)], {}),
    ("ij->ji", [(2, 3)], {}),
    ("ba", [(2, 3)], {}),
    ("ij->ij", [(2, 3)], {}),
    ("ij->i", [(2, 3)], BATCHED),
    ("ij->", [(2, 3)], {}),
    ("bijk->bk", [(2, 3, 4, 2)], BATCHED),
    ("ij,kl->ik", [(2, 3), (4, 5)], {}),
    ("ii->i", [(3, 3)], {}),
    ("ii->", [(3, 3)], {}),
    ("ii", [(3, 3)], {}),
    ("iij->j", [(3, 3, 2)], {}),
    ("ijij->ji", [(3, 2, 3, 2)], {}),
    ("iii->i", [(3, 3, 3)], {}),
    ("bii,bij->bj", [(2, 3, 3), (2, 3, 4)], BATCHED),
    ("ij,jj->i", [(2, 3), (3, 3)], {}),
    ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)], BATCHED),
    ("...ij,...jk->...ik", [(2, 1, 3, 4), (1, 5, 4, 2)], {}),
    ("...ij,jk->...ik", [(2, 3, 4), (4, 5)], {}),
    ("...,...->...", [(2, 3), (1, 3)], {}),
    ("...i->...", [(2, 3, 4)], BATCHED),
    ("...ii->...i", [(2, 3, 3)], BATCHED),
    ("a...b->b...a", [(2, 3, 4)], {}),
    ("i...,i...->...", [(3, 2), (3, 2)], {}),
    ("...ij", [(2, 3, 4)], {}),
    ("...j,jk", [(2, 3), (3, 4)], {}),
    ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 2)], {}),
    ("bi,bj,bk->b", [(2, 3), (2, 2), (2, 4)], BATCHED),
    ("ij,kj->ik", [(2, 3), (4, 1)], {}),
    ("ij,ij->ij", [(2, 3), (2, 1)], {}),
    (",ij->ij", [(), (2, 3)], {}),
    ("i j , j k -> i k", [(2, 3), (3, 4)], {}),
    ("aB,Bc->ca", [(2, 3), (3, 4)], {}),
    ("ij,jk->ik", [(1, 1), (1, 1)], {}),
    ("ij,jk->ik", [(2, 1), (1, 3)], {}),
]
CASES: dict[str, tuple[Any, ...]] = {
    f"{equation} {shapes}": (
        f'y = Einsum<equation="{equation}">({", ".join("abc"[: len(shapes)])})',
        dict(zip("abc", shapes, strict=False)),
        options,
    )
    for equation, shapes, options in _FORMS
}
CASES["weights"] = ('y = Einsum<equation="btc,cd->btd">(a, w)', {"a": (2, 3, 4)}, {"weights": {"w": (4, 5)}, **BATCHED})
CASES["weights on the left"] = (
    'y = Einsum<equation="hd,bthd->bth">(w, a)',
    {"a": (2, 3, 2, 4)},
    {"weights": {"w": (2, 4)}, **BATCHED},
)
CASES["shared weights with a batch of 1"] = (
    "y = Einsum<equation=\"btd,bsd->bts\">(a, w)", {"a": (2, 3, 4)},
    {"weights": {"w": (1, 5, 4)}, "forms": ("static",), **BATCHED},
)  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradient(check: Any, case: tuple[Any, ...]) -> None:
    body, inputs, options = case
    check(body, inputs, ops={"Einsum": einsum}, **options)


@pytest.mark.parametrize(
    ("equation", "ranks", "terms", "out"),
    [
        ("ij,jk", [2, 2], ["ij", "jk"], "ik"),
        ("bA", [2], ["bA"], "Ab"),
        ("i i", [2], ["ii"], ""),
        ("a->", [1], ["a"], ""),
    ],
)
def test_parse(equation: str, ranks: list[int], terms: list[str], out: str) -> None:
    assert parse(equation, ranks) == ([list(t) for t in terms], list(out))


def test_parse_aligns_ellipses_at_their_end() -> None:
    terms, out = parse("...a,b...->...ab", [3, 2])
    assert terms == [["…1", "…0", "a"], ["b", "…0"]]
    assert out == ["…1", "…0", "a", "b"]


def test_three_operands_are_multiplied_along_shared_indices(check: Any) -> None:
    """Of `dy[il]`, `B[jk]` and `C[kl]`, onnxruntime would multiply the first two to a tensor of four axes."""
    body = 'y = Einsum<equation="ij,jk,kl->il">(a, b, c)'
    model = vjp(check.model(body, {"a": (2, 3), "b": (3, 4), "c": (4, 5)}), ["a"])
    gradient = model.graph.node[-1]
    assert list(gradient.input) == ["y.cotangent", "c", "b"]


@pytest.mark.parametrize(
    ("equation", "inputs"),
    [
        ("bhqd,bhkd->bhqk", {"a": (1, 2, 3, 4), "b": (1, 2, 5, 4)}),
        ("ij,jk->ik", {"a": (2, 3), "b": (3, 4)}),
        ("bij,bjk->bki", {"a": (2, 3, 4), "b": (2, 4, 5)}),
        ("btc,cd->btd", {"a": (2, 3, 4), "b": (4, 5)}),
    ],
)
def test_products_of_matrices_are_matmuls(check: Any, equation: str, inputs: dict[str, Any]) -> None:
    model = vjp(check.model(f'y = Einsum<equation="{equation}">(a, b)', inputs), ["a"])
    assert [node.op_type for node in model.graph.node if node.op_type != "Transpose"] == ["Einsum", "MatMul"]


def test_transposition_needs_no_einsum(check: Any) -> None:
    model = vjp(check.model('y = Einsum<equation="ijk->kij">(a)', {"a": (2, 3, 4)}), ["a"])
    assert [node.op_type for node in model.graph.node] == ["Einsum", "Transpose"]


def test_empty_axis(check: Any) -> None:
    body, inputs = 'y = Einsum<equation="ij,jk->ik">(a, b)', {"a": (2, 0), "b": (0, 3)}
    da, db = check.gradient(body, inputs, np.ones((2, 3)))
    assert (da.shape, db.shape) == ((2, 0), (0, 3))


def test_a_size_that_onnx_infers_wrongly_is_refused(check: Any) -> None:
    model = check.model('y = Einsum<equation="ij,ij->ij">(a, b)', {"a": (2, 1), "b": (2, 3)})
    with pytest.raises(UnsupportedOpError, match="its index 'j' has size 1 in the first operand"):
        vjp(model, ["a"])


@pytest.mark.parametrize(
    ("equation", "inputs", "wrt"),
    [
        ("bi,ij->bj", {"x": (2, 3), "w": (3, 4)}, "w"),
        ("bi->ib", {"x": (2, 3)}, "x"),
        ("bi,bi->i", {"x": (2, 3), "w": (2, 3)}, "x"),
    ],
)
def test_a_batch_that_moves_refuses_several_scores(check: Any, equation: str, inputs: dict[str, Any], wrt: str) -> None:
    graph = check.graph(check.model(f'y = Einsum<equation="{equation}">({", ".join(inputs)})', inputs))
    y, x = graph.outputs[0], next(v for v in graph.inputs if v.name == wrt)
    count = ir.Value(name="count", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    seed = ir.Value(name="seed", shape=y.shape, type=y.type)
    with pytest.raises(BatchAxisError, match=r"Einsum \(node .*node0.*one target per image"):
        differentiate(Builder(graph), {y: seed}, [x], count=count)
