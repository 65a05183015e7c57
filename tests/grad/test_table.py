"""Every op of the newest ai.onnx stands in the table, and says what becomes of each of its floating inputs."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from pycam.grad import registry
from pycam.grad.coverage import status

FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)")


def _newest():
    found = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        newest = found.get(schema.name)
        if schema.domain == "" and (newest is None or schema.since_version > newest.since_version):
            found[schema.name] = schema
    return {name: schema for name, schema in found.items() if not schema.deprecated}


SCHEMAS = _newest()
OF_THE_RUNTIME = {"SimplifiedLayerNormalization"}
"""Ops that onnxruntime puts into ai.onnx, of which onnx knows nothing."""


def _floating(schema, i):
    """Whether input `i` may be floating: it, or what a sequence or an optional of them holds."""
    kind = schema.inputs[i].type_str
    constraint = next((c for c in schema.type_constraints if c.type_param_str == kind), None)
    allowed = constraint.allowed_type_strs if constraint is not None else [kind]
    return any(word in t for t in allowed for word in FLOATS)


@pytest.mark.parametrize("op", SCHEMAS)
def test_every_op_is_declared(op):
    assert ("", op) in set(registry.declared())


def _says(op, i):
    tables = (registry.RULES, registry.STOPPED, registry.REFUSED)
    whole = ("", op) in registry.EXPANSIONS or ("", op) in registry.REGIONS
    return whole or any(("", op, at) in table for table in tables for at in (i, registry.ALL))


@pytest.mark.parametrize(
    ("op", "i"), [(op, i) for op, s in SCHEMAS.items() for i in range(len(s.inputs)) if _floating(s, i)]
)
def test_every_floating_input_is_declared(op, i):
    assert _says(op, i), f"nothing is said of input {i} ({SCHEMAS[op].inputs[i].name}) of {op}"


def test_no_input_is_declared_that_does_not_exist():
    for table in (registry.RULES, registry.STOPPED, registry.REFUSED):
        for domain, op, i in table:
            if domain == "" and op not in OF_THE_RUNTIME:
                assert op in SCHEMAS, f"{op} is no op of ai.onnx"
                assert i == registry.ALL or i < len(SCHEMAS[op].inputs), f"{op} has no input {i}"
    for domain, op in (*registry.EXPANSIONS, *registry.REGIONS):
        assert domain or op in {*SCHEMAS, *OF_THE_RUNTIME}, f"{op} is no op of ai.onnx"


def test_the_page_of_operators_is_of_this_table():
    """docs/ops.md is generated (scripts/make_ops.py): it lists every op with what the table says of it."""
    page = (Path(__file__).parents[2] / "docs" / "ops.md").read_text()
    for domain, op in registry.declared():
        name = f"{domain}::{op}" if domain and not registry.differentiates(op, domain) else op
        says = status(op, domain)
        word = says.split(": ", 1)[-1] if ": " in says else says.removeprefix("rule (").removesuffix(")")
        assert any(line.startswith(f"| `{name}` | ") and word in line for line in page.splitlines()), (name, says)
