"""Methods that average gradients for the image over variants of it: points of a path, or noise."""

from __future__ import annotations

import onnx_ir as ir

from pycam.errors import MethodError

from .checks import check_seed
from .pixel import contribution, image_of, sensitivity
from .registry import method
from .scene import Scene


def check_count(name: str, value: int) -> None:
    """Raises MethodError if `value` is no number of variants."""
    if value < 1:
        raise MethodError(f"{name}={value}: at least 1 is needed")


def check_noise(samples: int, noise: float, seed: int) -> None:
    """Raises MethodError if one is out of range."""
    check_count("samples", samples)
    if not 0 <= noise < float("inf"):
        raise MethodError(f"noise={noise}: it is a share of the image's range, 0 or more (0.1 to 0.2 is usual)")
    check_seed(seed)


def noisy_image(s: Scene, samples: int, noise: float, seed: int) -> ir.Value:
    """`x + noise·(max x − min x)·n` (M, …) as the model takes it, `n` normal: one for each of `samples` variants.

    The noise is drawn channels first: the same for models that differ in their layout.

    Raises:
        MethodError: an option is out of range.
    """
    g, x = s.g, image_of(s)
    check_noise(samples, noise, seed)
    s.vary(samples)
    span = g.Sub(g.ReduceMax(x, [1, 2, 3], keepdims=1), g.ReduceMin(x, [1, 2, 3], keepdims=1))
    drawn = s.as_image(s.noise("normal", s.pixels, seed))
    return g.Add(x, g.Mul(g.Mul(span, float(noise)), drawn))


def over_variants(s: Scene, rows: ir.Value) -> ir.Value:
    """(K·M, C, h, w), K outermost → its sum over all variants, (K, C, h, w)."""
    g = s.g
    sizes = g.Concat(s.chosen.count or [1], [-1], g.Slice(g.Shape(rows), [1], [4], [0]), axis=0)
    return s.total(g.ReduceSum(g.Reshape(rows, sizes), [1], keepdims=0))


@method(
    "integrated_gradients",
    "Integrated Gradients",
    "1703.01365",
    plan="perturb",
    cost="1 forward + backward per step + 2 forwards",
    layers="none",
)
def integrated_gradients(s: Scene, *, steps: int = 32, baseline: float = 0.0) -> ir.Value:
    """Attributions `(x − b)·mean_i dy/dx(b + (i + ½)/steps·(x − b))`; raw map `Σ_c`, signed.

    Reports "completeness" (N, K): `Σ attributions − (y(x) − y(b))`, the error of the sum over `steps`.

    Options:
        steps: Of the path, a forward and a backward pass each; 20 to 300: raise it until "completeness" is small beside
            `y(x) − y(b)`.
        baseline: The value of every pixel of the image `b`, as the model takes it (normalised: 0 is the mean colour);
            a pixel that has it gets nothing.
    """
    g, x = s.g, image_of(s)
    check_count("steps", steps)
    if baseline != baseline or abs(baseline) == float("inf"):
        raise MethodError(f"baseline={baseline}: give the value of a pixel, a finite number")
    variant = s.vary(steps)
    way = g.Sub(s.read(x), float(baseline))  # x − b
    share = g.Mul(g.Add(g.Cast(variant, to=way.dtype), 0.5), 1.0 / steps)
    point = g.Add(g.Mul(g.Unsqueeze(share, [1, 2, 3]), way), float(baseline))
    point = g.Cast(point, to=x.dtype) if x.dtype != way.dtype else point
    total = over_variants(s, s.channels_first(s.run({x: point}).gradient(x)))
    mean = g.Unsqueeze(g.Mul(total, 1.0 / steps), [0])
    found = g.Mul(mean, g.Unsqueeze(s.channels_first(way), [1]))  # (1, K, C, H, W)
    start = g.Expand(g.constant(float(baseline), x.dtype), g.Shape(x))
    gain = g.Sub(s.first.y, s.run({x: start}).y)
    s.report("completeness", g.Sub(g.ReduceSum(found, [2, 3, 4], keepdims=0), gain))
    return contribution(s, found)


@method(
    "smoothgrad",
    "SmoothGrad",
    "1706.03825",
    plan="perturb",
    cost="1 forward + backward per sample + 1 forward",
    layers="none",
)
def smoothgrad(s: Scene, *, samples: int = 50, noise: float = 0.15, seed: int = 0) -> ir.Value:
    """Attributions `mean_i dy/dx(x + n_i)`, `n_i` normal of deviation `noise·(max x − min x)`; raw map `max_c |·|`.

    Options:
        samples: Noisy images, a forward and a backward pass each; 20 to 50 are usual, more change little.
        noise: Its deviation as a share of the image's range; 0.1 to 0.2 is usual, 0 is the plain gradient.
        seed: Of the noise, 0 … 2⁶⁴ − 1.
    """
    g, x = s.g, image_of(s)
    da = s.run({x: noisy_image(s, samples, noise, seed)}).gradient(x)
    total = over_variants(s, s.channels_first(da))
    return sensitivity(s, g.Unsqueeze(g.Mul(total, 1.0 / samples), [0]))


@method(
    "vargrad",
    "VarGrad",
    "1810.03292",
    plan="perturb",
    cost="1 forward + backward per sample + 1 forward",
    layers="none",
)
def vargrad(s: Scene, *, samples: int = 50, noise: float = 0.15, seed: int = 0) -> ir.Value:
    """Attributions `var_i dy/dx(x + n_i)`, `n_i` as SmoothGrad's: `E[g²] − E[g]²`, as captum's; raw map `max_c`.

    Options:
        samples: Noisy images, a forward and a backward pass each; 20 to 50 are usual, and of 1 the variance is 0.
        noise: Its deviation as a share of the image's range, above 0; 0.1 to 0.2 is usual.
        seed: Of the noise, 0 … 2⁶⁴ − 1.
    """
    g, x = s.g, image_of(s)
    da = s.channels_first(s.run({x: noisy_image(s, samples, noise, seed)}).gradient(x))
    mean = g.Mul(over_variants(s, da), 1.0 / samples)
    square = g.Mul(over_variants(s, g.Mul(da, da)), 1.0 / samples)
    variance = g.Relu(g.Sub(square, g.Mul(mean, mean)))  # rounding can leave a little below 0
    return sensitivity(s, g.Unsqueeze(variance, [0]))
