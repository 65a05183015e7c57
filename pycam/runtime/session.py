"""onnxruntime sessions: providers that are really there, threads that are really used."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from pycam.errors import InputError, ModelError, ProviderError, PycamError

from . import providers as known
from .providers import CPU, Asked, Provider

if TYPE_CHECKING:
    from .cache import Cache

Change: TypeAlias = "Callable[[Any], None]"
"""What puts more into onnxruntime's session options."""

_NVIDIA = (known.CUDA, f"Tensorrt{known.SUFFIX}")


def make_session(
    model: str | os.PathLike[str] | bytes,
    providers: Asked | Sequence[Asked] | None = None,
    threads: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    *,
    spin: bool = True,
    shrink: bool = False,
    cache: Cache | None = None,
    identity: str = "",
) -> Any:
    """An `onnxruntime.InferenceSession`.

    Args:
        model: Path or bytes.
        providers: Execution providers in order of preference, see `providers.choose`; those that are named must all
            start.  None: CUDA if this onnxruntime has it and it starts, else the CPU;
            `session.get_providers()[0]` says which runs.
        threads: Threads within an op; None leaves it to onnxruntime (one per core).
        folder: Where the weights lie that `model` refers to, if not beside its file.
        spin: Idle threads wait for work actively for a while: quicker, but they take the core from others.
        shrink: Give memory that a run needed back when it ends, see `shrinking.Shrinking`.
        cache: Keeps the optimised model: the next session like this one starts faster.  On the CPU alone.
        identity: With a cache: what tells this model, with its weights, from all others; else the files are hashed.

    Raises:
        ProviderError: a provider was asked for by name and is not there, or cannot start.
        ModelError: onnxruntime refuses the model.
        InputError: no threads, or options that providers do not have.
    """
    try:
        import onnxruntime as ort
    except ImportError:
        raise ProviderError(
            "onnxruntime is not installed: pip install 'pycam-onnx[cpu]' (or [gpu]; never both)"
        ) from None
    chosen = known.choose(providers)
    known.check_there(chosen)
    if any(provider.name in _NVIDIA for provider in chosen):
        from .missing import preload

        preload()
    if folder is not None and not isinstance(model, bytes):
        with open(model, "rb") as file:
            model = file.read()  # of bytes alone onnxruntime is told where the weights lie

    check_threads(threads)

    def start(source: Any = model, change: Change = _nothing, on: Sequence[Provider] = chosen) -> Any:
        options = _options(threads, folder if source is model else None, spin)
        change(options)
        return _start(ort, source, options, on, shrink)

    if cache is not None and [provider.name for provider in chosen] == [CPU]:
        from .optimised import open_optimised

        start = partial(open_optimised, start, model, folder, cache, identity)
    try:
        session = start()
    except PycamError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base class
        refused = ModelError(f"onnxruntime {ort.__version__} refuses the model: {error}")
        first = chosen[0].name
        if first == CPU:
            raise refused from error
        session = _on_cpu(start, refused, error)  # is it the model, or the provider?
        if providers is not None:
            raise ProviderError(f"{first} cannot run this model, which the CPU can: {error}") from error
    got = session.get_providers()
    lacking = [provider.name for provider in chosen if provider.name not in got]
    if providers is not None and lacking:
        from .missing import why_not

        raise ProviderError(
            f"{lacking[0]} was asked for but could not start (onnxruntime fell back to {got[0]}): {why_not(lacking[0])}"
        )
    return session


def check_threads(threads: Any) -> None:
    """Raise InputError where `threads` is neither None nor a positive number."""
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads={threads!r}: give a positive number, or None")


def _nothing(options: Any) -> None:
    """Leave the options as they are."""


def _on_cpu(start: Any, refused: ModelError, error: Exception) -> Any:
    try:
        return start(on=[Provider(CPU, {})])
    except Exception:  # see above
        raise refused from error


def _options(threads: int | None, folder: str | os.PathLike[str] | None, spin: bool) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors are raised anyway; warnings are about other people's models
    if threads is not None:
        options.intra_op_num_threads = threads
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", os.fspath(folder) or "."
        )
    return options


def _start(ort: Any, source: Any, options: Any, chosen: Sequence[Provider], shrink: bool) -> Any:
    """A session; onnxruntime's own falling back, which prints and goes on, is off."""
    source = source if isinstance(source, bytes) else os.fspath(source)
    kind = ort.InferenceSession
    if shrink:
        from .shrinking import Shrinking

        kind = Shrinking
    plugins = [provider for provider in chosen if known.plugin_devices(provider.name)]
    if not plugins:
        return kind(source, options, providers=[(name, given) for name, given in chosen], enable_fallback=0)
    others = {provider.name for provider in chosen} - {CPU, *(provider.name for provider in plugins)}
    if others:
        raise ProviderError(
            f"{plugins[0].name} is a plugin here, which onnxruntime does not mix with {', '.join(others)}"
        )
    for name, given in plugins:
        options.add_provider_for_devices(*known.picked(name, given))
    return kind(source, options, enable_fallback=0)
