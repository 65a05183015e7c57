"""Which CUDA kernel does what, with which grid, shared memory and parameters: the parts of a plan (`launch.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pycam.head.jobs import (
    FINISH_MANY,
    FINISH_ONE,
    MAX_LAYERS,
    TYPES,
    WEIGH,
    WEIGHTINGS,
    Launch,
    Layer,
    Output,
    Packed,
    Tensor,
    Weighing,
    pack,
    pack_source,
    pack_tensor,
    scaled,
)

THREADS = 256
SHARED_LIMIT = 48 * 1024  # bytes that every architecture gives a block without asking
LARGEST_SIDE = 32767  # so that taps fit 32-bit integers
LARGEST_GRID = 2**31 - 1
STAGED_AREA = 8192  # positions: larger maps are summed by one split, and are read where they are
ROWS_PER_TILE = 4  # at least, unless there are fewer

MODES = ("channel", "mean", "plusplus", "element")

# In bytes; by declared layers: cam::STATISTICS_BYTES; then SCRATCH_BYTES, LUT_BYTES, and the sizes of
# cam::Statistics<MAX_LAYERS> and cam::Column
STATISTICS = {1: 48, MAX_LAYERS: 416}
SCRATCH, LUT, RECORD, COLUMN = 512, 1024, 408, 8


MAPS_KERNELS = ("cam_finish", "cam_extremes", "cam_paint", "cam_overlay")


def kernel_names() -> tuple[str, ...]:
    """Every kernel that a plan can name; those of `MAPS_KERNELS` need no weighing."""
    vectors = [f"cam_weigh_{kind}_{mode}_{size}" for kind in TYPES for mode in MODES for size in (64, 256)]
    strided = [f"cam_weigh_any_{kind}_{other}" for kind in TYPES for other in dict.fromkeys((kind, "f32"))]
    weights = [f"cam_channel_weights_{kind}" for kind in TYPES]
    return (*vectors, *strided, *weights, *MAPS_KERNELS)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(at_least: int) -> int:
    return 1 << max(at_least - 1, 0).bit_length()


# ---- raw maps --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weigh:
    """A launch of a cam_weigh_* or cam_channel_weights_* kernel.

    Attributes:
        splits, tiles, positions, channels_first: see `cam::Weigh`.
        shared_bytes: without those of a finish in the same launch.
        by_channel: whether the weights are what an earlier cam_channel_weights_* launch computed.
    """

    kernel: str
    splits: int
    tiles: int
    shared_bytes: int
    positions: int = 0
    channels_first: bool = False
    by_channel: bool = False

    def packed(
        self, job: Weighing, weights: Tensor, partial: int = 0, channel_weights: int = 0, ticket: int = 0
    ) -> Packed:
        """The `cam::Weigh` of this launch; with a ticket, it finishes its maps."""
        return pack(
            WEIGH,
            activations=pack_tensor(job.activations),
            weights=pack_tensor(weights),
            partial=partial,
            ticket=ticket,
            channel_weights=channel_weights,
            **{name: getattr(job, name) for name in ("maps", "channels", "height", "width")},
            **{name: getattr(self, name) for name in ("splits", "tiles", "positions", "channels_first")},
            weighting=WEIGHTINGS["given" if self.by_channel else job.weighting],
            weights_type=TYPES[weights.type].code,
            finishes=ticket != 0,
        )

    def launch(self, job: Weighing, arguments: tuple[Packed, ...], shared_bytes: int = 0) -> Launch:
        blocks = job.images * job.maps * self.splits * self.tiles
        return Launch(self.kernel, check_grid(blocks), THREADS, max(self.shared_bytes, shared_bytes), arguments)


def weigh(job: Weighing) -> tuple[Weigh, Weigh | None]:
    """The launch that sums over channels; and the one that must come before it, if any, for weights by channel.

    How channels are split depends on the shape of one map alone: results are the same for every batch and device.
    """
    mode = _vector_mode(job)
    if mode is not None:
        return _vectors(job, mode), None
    a = job.activations.type
    if job.weighting in ("mean", "plusplus"):
        return _strided(job, f"cam_weigh_any_{a}_f32", by_channel=True), _channel_weights(job)
    return _strided(job, f"cam_weigh_any_{a}_{job.weights.type}"), None


def _vector_mode(job: Weighing) -> str | None:
    """Which kind of vector kernel can do it: 16-byte loads of dense (C,h,w), h·w not above 256."""
    area, lanes = job.height * job.width, 16 // TYPES[job.activations.type].bytes
    if not lanes <= area <= 256 or job.channels % lanes or not _vectorised(job, job.activations):
        return None
    if job.weighting == "given" and job.weights.row == job.weights.column == 0:
        return "channel"
    if job.weights.type != job.activations.type or not _vectorised(job, job.weights):
        return None
    return job.weighting if job.weighting in ("mean", "plusplus") else "element"


def _vectorised(job: Weighing, tensor: Tensor) -> bool:
    dense = tensor.channel == job.height * job.width
    dense &= job.height == 1 or tensor.row == job.width
    dense &= job.width == 1 or tensor.column == 1
    size = TYPES[tensor.type].bytes
    return dense and all(place % 16 == 0 for place in (tensor.pointer, tensor.image * size, tensor.map * size))


def _vectors(job: Weighing, mode: str) -> Weigh:
    kind, area = job.activations.type, job.height * job.width
    lanes = 16 // TYPES[kind].bytes
    lanes = lanes if area <= 64 else 4  # elements of a vector
    warps = THREADS // 32
    splits = min(max(job.channels // lanes // (4 * warps), 1), 32)  # four groups per warp, to hide the loads' latency
    name = f"cam_weigh_{kind}_{mode}_{64 if area <= 64 else 256}"
    return Weigh(name, splits, 1, 4 * area * lanes * warps)


def _channels_first(job: Weighing) -> bool:
    return job.activations.channel == 1 and (job.activations.column != 1 or job.height * job.width == 1)


def _strided(job: Weighing, kernel: str, by_channel: bool = False) -> Weigh:
    area, first = job.height * job.width, _channels_first(job)
    positions = min(power_of_two(area), 8 if first else 32)
    channels = THREADS // positions
    splits = min(max(job.channels // (16 * channels), 1), 16) if area <= STAGED_AREA else 1
    return Weigh(kernel, splits, ceil_div(area, positions), 4 * THREADS, positions, first, by_channel=by_channel)


def _channel_weights(job: Weighing) -> Weigh:
    area, first = job.height * job.width, _channels_first(job)
    positions = min(power_of_two(area), 8 if first else 32 if area <= 1024 else THREADS)
    tiles = ceil_div(job.channels, THREADS // positions)
    return Weigh(f"cam_channel_weights_{job.activations.type}", 1, tiles, 8 * THREADS, positions, first)


# ---- heatmaps and pictures -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finish:
    """Launches that finish raw maps: `layers` hold packed `cam::Source`s of (height, width) `sizes`."""

    images: int
    maps: int
    output: Output
    sizes: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        return self.images * self.maps

    def shared_bytes(self, layers: int) -> int:
        """What a block needs that keeps its maps in shared memory; `layers`: 1 or `MAX_LAYERS`, as declared."""
        values = sum(height * width for height, width in self.sizes)
        return STATISTICS[layers] + SCRATCH + LUT + COLUMN * len(self.sizes) * self.output.width + 4 * values

    @property
    def staged(self) -> bool:
        """Whether maps are kept in shared memory."""
        return self.shared_bytes(MAX_LAYERS) <= SHARED_LIMIT

    def tiles(self, multiprocessors: int) -> int:
        """Blocks per map: about two for every multiprocessor, but not less than some rows for each."""
        return max(min(ceil_div(2 * multiprocessors, self.count), self.output.height // ROWS_PER_TILE), 1)

    def packed(
        self, layers: Sequence[tuple[int, ...]], tiles: int, raw: int = 0, workspace: int = 0, many: bool = True
    ) -> Packed:
        """The `cam::Finish`; `many`: of `MAX_LAYERS`, else of one layer."""
        out, kind = self.output, FINISH_MANY if many else FINISH_ONE
        pointers = ("heatmaps", "levels", "flags", "pictures", "images", "lut")
        strides = (
            "picture_image",
            "picture_map",
            "picture_row",
            "picture_pixel",
            "image_image",
            "image_row",
            "image_pixel",
        )
        packed = pack(
            kind,
            **{name: getattr(out, name) for name in (*pointers, *strides, "height", "width")},
            raw=raw,
            statistics=workspace,
            maps=self.maps,
            tiles=tiles,
            alpha=scaled(out.alpha),
            aligned=aligned(out),
            layer_count=len(layers),
        )
        for index, layer in enumerate(layers):
            packed["layers"][index] = layer
        return packed

    def launches(
        self, layers: Sequence[tuple[int, ...]], raw: int, workspace: int, multiprocessors: int
    ) -> tuple[Launch, ...]:
        """From the sources of `layers` to what is wanted; the first layer's raw maps go to `raw`, unless it is 0."""
        tiles = self.tiles(multiprocessors)
        job = self.packed(layers, tiles, raw, workspace)
        blocks = check_grid(self.count * tiles)
        if self.staged:
            return (Launch("cam_finish", blocks, THREADS, self.shared_bytes(MAX_LAYERS), (job,)),)
        return (
            Launch("cam_extremes", self.count, THREADS, STATISTICS[MAX_LAYERS] + SCRATCH, (job,)),
            Launch("cam_paint", blocks, THREADS, LUT, (job,)),
        )


def sum_splits(job: Weighing, source: tuple[int, ...], raw: int) -> Launch:
    """The launch that only adds partial sums: a finish that nothing else is wanted of."""
    finish = Finish(job.images, job.maps, Output(1, 1), ((job.height, job.width),))
    packed = finish.packed([source], 1, raw)
    return Launch("cam_finish", finish.count, THREADS, finish.shared_bytes(MAX_LAYERS), (packed,))


def partial_source(job: Weighing, splits: int, partial: int) -> tuple[int, ...]:
    """The partial sums `(N·K, splits, h·w)` as the source of a finish."""
    area = job.height * job.width
    tensor = Tensor(partial, "f32", job.maps * splits * area, splits * area, 0, job.width, 1)
    return pack_source(Layer(tensor, job.height, job.width), area, splits)


def aligned(out: Output) -> int:
    """`cam::Aligned`: which outputs can take four pixels in one access."""
    if out.width % 4:
        return 0
    places = (
        out.pictures,
        out.picture_image,
        out.picture_map,
        out.picture_row,
        out.images,
        out.image_image,
        out.image_row,
    )
    pictures = out.picture_pixel == out.image_pixel == 3 and all(place % 4 == 0 for place in places)
    return (out.heatmaps % 16 == 0) | (out.levels % 4 == 0) << 1 | pictures << 2


# ---- checks ----------------------------------------------------------------------------------------------------------


def check_grid(blocks: int) -> int:
    if blocks > LARGEST_GRID:
        raise ValueError(
            f"{blocks} blocks in one launch, but there can be {LARGEST_GRID}; explain fewer images at once"
        )
    return blocks


def check_side(height: int, width: int, what: str) -> None:
    if not (1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE):
        limit = f"1 to {LARGEST_SIDE} on each side; the head 'cpu' takes larger ones"
        raise ValueError(f"{what}: expected {limit}, found {height} x {width}")


def check_tensor(tensor: Tensor, what: str) -> None:
    if tensor.type not in TYPES:
        raise ValueError(f"{what}: expected a type of {', '.join(TYPES)}, found {tensor.type!r}")
    if tensor.pointer == 0 or tensor.pointer % TYPES[tensor.type].bytes:
        raise ValueError(f"{what}: expected an address aligned to {tensor.type}, found {tensor.pointer:#x}")


def check_weighing(job: Weighing) -> None:
    check_side(job.height, job.width, "activations")
    check_tensor(job.activations, "activations")
    check_tensor(job.weights, "weights")
    if job.channels < 1:
        raise ValueError(f"channels: expected at least 1, found {job.channels}")
    if job.weighting not in WEIGHTINGS:
        raise ValueError(f"weighting: expected one of {', '.join(WEIGHTINGS)}, found {job.weighting!r}")
    same, types = job.weights.type == job.activations.type, f"{job.activations.type} and {job.weights.type}"
    if not same and job.weighting in ("mean", "plusplus"):
        raise ValueError(f"{job.weighting!r}: expected activations and gradients of one type, found {types}")
    if not same and job.weights.type != "f32":
        raise ValueError(f"weights: expected the type of the activations or f32, found {types}")


def check_output(out: Output) -> None:
    check_side(out.height, out.width, "output")
    if not 0 <= out.alpha <= 1:
        raise ValueError(f"alpha: expected 0 to 1, found {out.alpha}")
    if out.heatmaps % 4:
        raise ValueError(f"output.heatmaps: expected an address aligned to float32, found {out.heatmaps:#x}")
    if out.pictures and not (out.images and out.lut):
        raise ValueError("output.pictures: also needs output.images and output.lut")
    for name in ("picture_pixel", "image_pixel"):
        if out.pictures and abs(getattr(out, name)) < 3:
            raise ValueError(f"output.{name}: expected 3 bytes or more, found {getattr(out, name)}")
