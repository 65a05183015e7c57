"""onnxruntime sessions: providers that are really there, threads that are really used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from pycam.errors import InputError, ModelError, ProviderError

DEFAULT = ("CUDAExecutionProvider", "CPUExecutionProvider")


def make_session(
    model: str | os.PathLike[str] | bytes,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Any:
    """An `onnxruntime.InferenceSession`.

    Args:
        model: Path or bytes.
        providers: Execution providers in order of preference, with or without the suffix "ExecutionProvider".
            None: CUDA if this onnxruntime has it, else CPU; `session.get_providers()[0]` says which runs.
        threads: Threads within an op; None leaves it to onnxruntime (one per core).
        folder: Where the weights lie that a model given as bytes refers to.

    Raises:
        ProviderError: a provider was asked for by name and is not there, or cannot start.
        ModelError: onnxruntime refuses the model.
        InputError: no threads.
    """
    try:
        import onnxruntime as ort
    except ImportError:
        raise ProviderError(
            "onnxruntime is not installed: pip install 'pycam-onnx[cpu]' (or [gpu]; never both)"
        ) from None
    available = ort.get_available_providers()
    if providers is None:
        chosen = [p for p in DEFAULT if p in available]
    else:
        asked = [providers] if isinstance(providers, str) else providers
        chosen = [p if p.endswith("ExecutionProvider") else f"{p}ExecutionProvider" for p in asked]
        missing = [p for p in chosen if p not in available]
        if missing or not chosen:
            raise ProviderError(
                f"provider {', '.join(missing) or 'list is empty'}: not in this onnxruntime "
                f"({ort.__version__}), which has {', '.join(available)}. For CUDA install "
                "'pycam-onnx[gpu]' in place of [cpu]"
            )
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors are raised anyway; warnings are about other people's models
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads={threads}: give a positive number, or None")
        options.intra_op_num_threads = threads
    if folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", os.fspath(folder) or "."
        )
    source = model if isinstance(model, bytes) else os.fspath(model)
    try:
        session = ort.InferenceSession(source, options, providers=chosen)
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ModelError(f"onnxruntime {ort.__version__} refuses the model: {error}") from error
    if providers is not None and session.get_providers()[0] != chosen[0]:
        raise ProviderError(
            f"{chosen[0]} was asked for but could not start (onnxruntime fell back to "
            f"{session.get_providers()[0]}): check the driver, CUDA and cuDNN that it needs"
        )
    return session
