"""One runtime in a process of its own, for `bench.portable`: a crash of it, or a version of numpy, is its own affair.

    python bench/runtimes.py openvino < requests

Stands alone: needs numpy and the runtime.  The first line of the answer says which version it is, or why there is none;
then each line of the input, a JSON object, is answered by one:

    {"model": PATH, "inputs": [[name, dtype, shape, file], …], "outputs": [name, …], "out": PREFIX}
    → {"outputs": [[dtype, shape, file], …]} or {"error": text}

Tensors lie in files, raw.  Lines of the answer begin with `MARK`: what else a runtime prints is no part of it.
`runtimes.cjs` does the same for the two of JavaScript.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

MARK = "@@ "

Run = Callable[[str, Mapping[str, Any], Sequence[str]], "list[Any]"]


def onnxruntime() -> tuple[str, Run]:
    import onnxruntime as ort

    def run(path: str, feed: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        return list(
            ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(list(names), dict(feed))
        )

    return ort.__version__, run


def reference() -> tuple[str, Run]:
    import onnx
    from onnx.reference import ReferenceEvaluator

    def run(path: str, feed: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
        with np.errstate(all="ignore"):
            return list(ReferenceEvaluator(path).run(list(names), dict(feed)))

    return onnx.__version__, run


def openvino() -> tuple[str, Run]:
    import openvino as ov

    core = ov.Core()

    def run(path: str, feed: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
        compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        results = compiled({port: feed[(port.names & feed.keys()).pop()] for port in compiled.inputs})
        return [results[compiled.output(name)] for name in names]

    return ov.__version__.partition("-")[0], run


def opencv() -> tuple[str, Run]:
    import cv2

    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

    def run(path: str, feed: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
        net = cv2.dnn.readNetFromONNX(path)
        for name, array in feed.items():
            net.setInput(array, name)
        return list(net.forward(list(names)))

    return cv2.__version__, run


def tract() -> tuple[str, Run]:
    import tract

    def run(path: str, feed: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
        model = tract.onnx().load(path)
        order = [model.input_name(i) for i in range(model.input_count())]
        outputs = [model.output_name(i) for i in range(model.output_count())]
        results = model.into_model().into_runnable().run([feed[name] for name in order])
        by_name = dict(zip(outputs, results, strict=True)) if set(names) <= set(outputs) else None
        return [(by_name[name] if by_name else results[i]).to_numpy() for i, name in enumerate(names)]

    return str(tract.version()), run


RUNTIMES = {f.__name__: f for f in (onnxruntime, openvino, opencv, tract, reference)}


def explained(error: BaseException) -> str:
    """What a runtime says, without the places in its sources."""
    lines = [line.strip() for line in f"{error}".splitlines()]
    said = [
        line for line in lines if line and not re.match(r"(Exception from |Check '.*' failed at|Stack backtrace)", line)
    ]
    return re.sub(r"\s+", " ", f"{type(error).__name__}: {' '.join(said)}")[:600]


def answer(**what: object) -> None:
    print(MARK + json.dumps(what), flush=True)


def main(name: str) -> int:
    try:
        version, run = RUNTIMES[name]()
    except ImportError as error:
        answer(missing=str(error))
        return 0
    answer(version=version)
    for line in sys.stdin:
        asked = json.loads(line)
        feed = {k: np.fromfile(file, dtype).reshape(shape) for k, dtype, shape, file in asked["inputs"]}
        try:
            found = [np.ascontiguousarray(y) for y in run(asked["model"], feed, asked["outputs"])]
        except BaseException as error:  # a panic of Rust is no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            answer(error=explained(error))
            continue
        listed = []
        for i, array in enumerate(found):
            file = f"{asked['out']}.{i}"
            array.tofile(file)
            listed.append([array.dtype.name, array.shape, file])
        answer(outputs=listed)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
