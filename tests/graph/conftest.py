"""What tests of tokens and attention share: a small seeded transformer whose parts are spelt in many ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

HEIGHT, WIDTH, CHANNELS, HEADS, CLASSES = 4, 3, 8, 2, 5
SIZE = CHANNELS // HEADS

# From the normalised tokens `n` to the attention's result `a`, both (N, T, C); `@` stands for the block's number.
QKV = "q@ = MatMul(n@, wq@) k@ = MatMul(n@, wk@) v@ = MatMul(n@, wv@)"
CUT = """qh@ = Reshape(q@, cut) kh@ = Reshape(k@, cut) vh@ = Reshape(v@, cut)
    qt@ = Transpose<perm = [0, 2, 1, 3]>(qh@) kt@ = Transpose<perm = [0, 2, 3, 1]>(kh@)
    vt@ = Transpose<perm = [0, 2, 1, 3]>(vh@)"""
SCORES = "s@ = MatMul(qt@, kt@) ss@ = Mul(s@, scale)"
JOIN = "at@ = Transpose<perm = [0, 2, 1, 3]>(ah@) a@ = Reshape(at@, joined)"
ATTENTION = {
    "plain": f"{QKV} {CUT} {SCORES} p@ = Softmax<axis = -1>(ss@) ah@ = MatMul(p@, vt@) {JOIN}",
    "masked": f"""{QKV} {CUT} {SCORES} soft@ = Softmax<axis = 3>(ss@) nan@ = IsNaN(soft@) p@ = Where(nan@, zero, soft@)
        ah@ = MatMul(p@, vt@) {JOIN}""",
    "mixed": f"""{QKV} {CUT} {SCORES} soft@ = Softmax<axis = -1>(ss@) st@ = Transpose<perm = [0, 2, 3, 1]>(soft@)
        sm@ = MatMul(st@, mix) p@ = Transpose<perm = [0, 3, 1, 2]>(sm@) ah@ = MatMul(p@, vt@) {JOIN}""",
    "turned": f"""{QKV} {CUT} {SCORES} p@ = Softmax<axis = -1>(ss@) pt@ = Transpose<perm = [0, 1, 3, 2]>(p@)
        vl@ = Transpose<perm = [0, 1, 3, 2]>(vt@) al@ = MatMul(vl@, pt@)
        at@ = Transpose<perm = [0, 3, 1, 2]>(al@) a@ = Reshape(at@, joined)""",
    "beside": f"""{QKV} qn@ = Transpose<perm = [1, 0, 2]>(q@) kn@ = Transpose<perm = [1, 0, 2]>(k@)
        vn@ = Transpose<perm = [1, 0, 2]>(v@)
        qh@ = Reshape(qn@, flat) kh@ = Reshape(kn@, flat) vh@ = Reshape(vn@, flat)
        qt@ = Transpose<perm = [1, 0, 2]>(qh@) kt@ = Transpose<perm = [1, 2, 0]>(kh@)
        vt@ = Transpose<perm = [1, 0, 2]>(vh@)
        {SCORES} p@ = Softmax<axis = -1>(ss@) ah@ = MatMul(p@, vt@)
        an@ = Transpose<perm = [1, 0, 2]>(ah@) ac@ = Reshape(an@, unflat) a@ = Transpose<perm = [1, 0, 2]>(ac@)""",
    "einsum": f"""{QKV} qh@ = Reshape(q@, cut) kh@ = Reshape(k@, cut) vh@ = Reshape(v@, cut)
        s@ = Einsum<equation = "bqhd,bkhd->bhqk">(qh@, kh@) ss@ = Mul(s@, scale) p@ = Softmax<axis = -1>(ss@)
        ah@ = Einsum<equation = "bhqk,bkhd->bqhd">(p@, vh@) a@ = Reshape(ah@, joined)""",
    "fused": f"{QKV} a@ = Attention<q_num_heads = {HEADS}, kv_num_heads = {HEADS}>(q@, k@, v@)",
    "fused, 4-D": f"""{QKV} {CUT} kf@ = Transpose<perm = [0, 1, 3, 2]>(kt@)
        ah@ = Attention(qt@, kf@, vt@) {JOIN}""",
    "microsoft": f"{QKV} a@ = com.microsoft.MultiHeadAttention<num_heads = {HEADS}>(q@, k@, v@)",
    "microsoft, packed": f"a@ = com.microsoft.Attention<num_heads = {HEADS}>(n@, wqkv@, bqkv@)",
    "windows": f"""nw@ = Reshape(n@, windows) q@ = MatMul(nw@, wq@) k@ = MatMul(nw@, wk@) v@ = MatMul(nw@, wv@) {CUT}
        {SCORES} p@ = Softmax<axis = -1>(ss@) ah@ = MatMul(p@, vt@)
        at@ = Transpose<perm = [0, 2, 1, 3]>(ah@) a@ = Reshape(at@, whole)""",
    "channels": f"""{QKV} qc@ = Transpose<perm = [0, 2, 1]>(q@) s@ = MatMul(qc@, k@) p@ = Softmax<axis = -1>(s@)
        vc@ = Transpose<perm = [0, 2, 1]>(v@) ac@ = MatMul(p@, vc@) a@ = Transpose<perm = [0, 2, 1]>(ac@)""",
    "none": """nt@ = Transpose<perm = [0, 2, 1]>(n@) u@ = MatMul(nt@, along@) at@ = Tanh(u@)
        a@ = Transpose<perm = [0, 2, 1]>(at@)""",
}
ENDS = {
    "class": """last = LayerNormalization(x2, gain, bias) pooled = Gather<axis = 1>(last, first)
        y = MatMul(pooled, head)""",
    "mean": """last = LayerNormalization(x2, gain, bias) pooled = ReduceMean<keepdims = 0>(last, one)
        y = MatMul(pooled, head)""",
    "two": """last = LayerNormalization(x2, gain, bias) c0 = Gather<axis = 1>(last, first)
        c1 = Gather<axis = 1>(last, second) both = Add(c0, c1) y = MatMul(both, head)""",
}


def transformer(
    attention: str | Sequence[str] = "plain",
    end: str = "class",
    *,
    before: int = 1,
    after: int = 0,
    opset: int = 18,
    batch: int | str = "N",
    seed: int = 0,
    height: int | str = 2 * HEIGHT,
) -> onnx.ModelProto:
    """Patches of 2 × 2 as 12 tokens, special ones before and after, two blocks `x0 → x1 → x2`, a head.

    Args:
        attention: A key of `ATTENTION`, or one for each block.
        end: A key of `ENDS`.
        before, after: How many special tokens.
        opset: Of the model.
        batch, height: Of the input `x` (batch, 3, height, 6).
        seed: Of the weights.
    """
    forms = [attention] * 2 if isinstance(attention, str) else list(attention)
    blocks = "".join(
        f"""
        n@ = LayerNormalization(x@, gain, bias)
        {ATTENTION[form]}
        o@ = MatMul(a@, wo@)
        r@ = Add(x@, o@)
        m@ = LayerNormalization(r@, gain, bias)
        h@ = MatMul(m@, wup@)
        t@ = Tanh(h@)
        z@ = MatMul(t@, wdown@)
        x# = Add(r@, z@)""".replace("@", str(i)).replace("#", str(i + 1))
        for i, form in enumerate(forms)
    )
    special = ", ".join([*(["start"] if before else []), "grid", *(["stop"] if after else [])])
    text = f"""<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>
        transformer (float[{batch}, 3, {height}, {2 * WIDTH}] x) => (float[{batch}, {CLASSES}] y) {{
        patches = Conv<kernel_shape = [2, 2], strides = [2, 2]>(x, w_patch)
        rows = Reshape(patches, flattened)
        grid = Transpose<perm = [0, 2, 1]>(rows)
        mean = ReduceMean(grid, one)
        zeros = Mul(mean, zero)
        start = Add(w_start, zeros)
        stop = Add(w_stop, zeros)
        tokens = Concat<axis = 1>({special})
        x0 = Add(tokens, position)
        {blocks}
        {ENDS[end]}
    }}"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) * 1.5 / np.sqrt(shape[-2] if len(shape) > 1 else 1)).astype(np.float32)

    count = before + HEIGHT * WIDTH + after
    arrays: dict[str, np.ndarray] = {
        "w_patch": draw(CHANNELS, 3, 2, 2),
        "w_start": draw(1, before, CHANNELS),
        "w_stop": draw(1, after, CHANNELS),
        "position": draw(1, count, CHANNELS),
        "gain": rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32),
        "bias": draw(CHANNELS),
        "head": draw(CHANNELS, CLASSES),
        "mix": draw(HEADS, HEADS),
        "zero": np.zeros((), np.float32),
        "scale": np.array(SIZE**-0.5, np.float32),
    }
    for i in range(2):
        arrays |= {f"w{name}{i}": draw(CHANNELS, CHANNELS) for name in ("q", "k", "v", "o")}
        arrays |= {f"wqkv{i}": draw(CHANNELS, 3 * CHANNELS), f"bqkv{i}": draw(3 * CHANNELS)}
        arrays |= {f"wup{i}": draw(CHANNELS, 16), f"wdown{i}": draw(16, CHANNELS), f"along{i}": draw(count, count)}
    arrays |= {
        name: np.array(v, np.int64)
        for name, v in {
            "flattened": [0, CHANNELS, -1],
            "cut": [0, -1, HEADS, SIZE],
            "joined": [0, -1, CHANNELS],
            "flat": [count, -1, SIZE],
            "unflat": [count, -1, CHANNELS],
            "windows": [-1, HEIGHT * WIDTH // 2, CHANNELS],
            "whole": [-1, HEIGHT * WIDTH, CHANNELS],
            "first": 0,
            "second": 1,
            "one": [1],
        }.items()
    }
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in arrays.items() if k in used)
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    return model


@pytest.fixture(scope="session")
def vit() -> Callable[..., onnx.ModelProto]:
    """See `transformer`."""
    return transformer
