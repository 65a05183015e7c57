"""Execution providers: what is asked for → what onnxruntime is given, or an error that says why it cannot be had.

Most are built into onnxruntime.  Others are plugins: libraries that are registered with it when they are asked for, as
OpenVINO's is (`pip install onnxruntime-ep-openvino`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeAlias

from pycam.errors import InputError, ProviderError, nearest

Asked: TypeAlias = "str | tuple[str, Mapping[str, Any]]"

SUFFIX = "ExecutionProvider"
CPU, CUDA = f"CPU{SUFFIX}", f"CUDA{SUFFIX}"

_ALIASES = {"directml": "Dml", "trt": "Tensorrt", "onednn": "Dnnl", "nvtensorrtrtx": "NvTensorRTRTX"}
"""What people say for a provider, where that is not onnxruntime's own name."""

_PLUGINS = {f"OpenVINO{SUFFIX}": "onnxruntime_ep_openvino"}
"""Provider → the package that brings its plugin: it has `get_library_path()`."""

_HINTS = {
    CUDA: "install 'pycam-onnx[gpu]' in place of [cpu]",
    f"Tensorrt{SUFFIX}": "install 'pycam-onnx[gpu]' in place of [cpu], and tensorrt",
    f"OpenVINO{SUFFIX}": "pip install onnxruntime-ep-openvino (not onnxruntime-openvino, which is an old onnxruntime)",
    f"Dml{SUFFIX}": "on Windows, install onnxruntime-directml in place of onnxruntime",
    f"CoreML{SUFFIX}": "onnxruntime has it on macOS",
    f"Xnnpack{SUFFIX}": "build onnxruntime with --use_xnnpack",
}


_TINY = bytes.fromhex(
    "08083a340a0d0a017812017922034162733a001201745a0f0a0178120a0a0808"
    "0112040a020801620f0a0179120a0a08080112040a02080142040a001011"
)
"""A model, y = Abs(x) of one number, to see whether a provider starts."""


class Provider(NamedTuple):
    """A provider that was asked for.

    Attributes:
        name: onnxruntime's.
        options: Of the provider, as onnxruntime takes them: text.
    """

    name: str
    options: dict[str, str]


def choose(providers: Asked | Sequence[Asked] | None) -> list[Provider]:
    """What is asked for, by onnxruntime's names, in the order of preference.

    Args:
        providers: Names in any case, with or without "ExecutionProvider", such as "CUDA", "tensorrt" or "DirectML";
            with options as (name, {option: value}).  None: CUDA if this onnxruntime has it, and the CPU.

    Raises:
        ProviderError: nothing is asked for, or something that onnxruntime has never heard of.
        InputError: options of a wrong type, or a provider twice.
    """
    if providers is None:
        return [Provider(name, {}) for name in (CUDA, CPU) if name in there()]
    chosen = [Provider(_full(name), _texts(name, options)) for name, options in map(_pair, _listed(providers))]
    if not chosen:
        raise ProviderError(f"the provider list is empty: give one, or None; {_has()}")
    names = [provider.name for provider in chosen]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"providers={names}: {twice} is there twice")
    if dict(chosen).get(CPU):
        raise InputError(
            f"the provider CPU takes no options, and got {dict(chosen)[CPU]}: threads= and spin= are pycam's"
        )
    return chosen


def check_there(chosen: Iterable[Provider]) -> None:
    """Register the plugins that are asked for.

    Raises:
        ProviderError: onnxruntime has one of the providers neither built in nor as a plugin.
    """
    for name, _ in chosen:
        if name not in there() and not plugin_devices(name):
            _register(name)


def there() -> list[str]:
    """Names of the providers that are built into this onnxruntime."""
    import onnxruntime as ort

    return list(ort.get_available_providers())


def installed() -> dict[str, str]:
    """What there is to say of providers that are here, built in or as plugins: name → whether they can start."""
    from .missing import LIBRARIES, preload, why_not

    found = {}
    for name in there():
        if name in LIBRARIES:
            preload()
            found[name] = _started(name) or f"cannot start: {why_not(name)}"
    for name, package in _PLUGINS.items():
        if name not in there() and find_spec(package) is not None:
            try:
                check_there([Provider(name, {})])
                devices = ", ".join(device.device.type.name for device in plugin_devices(name))
                found[name] = f"plugin, for {devices}"
            except ProviderError as error:
                found[name] = str(error)
    return found


def _started(name: str) -> str:
    """What says that a session of a tiny model runs on a provider; "" if onnxruntime falls back."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(_TINY, options, providers=[name], enable_fallback=0)
    except Exception:  # onnxruntime's exceptions share no base class; `why_not` says why
        return ""
    return "starts" if name in session.get_providers() else ""


def plugin_devices(name: str) -> list[Any]:
    """The devices of a registered plugin, as onnxruntime describes them; [] for anything else."""
    import onnxruntime as ort

    if name in there() or not hasattr(ort, "get_ep_devices"):  # before 1.23
        return []
    return [device for device in ort.get_ep_devices() if device.ep_name == name]


def picked(name: str, options: Mapping[str, str]) -> tuple[list[Any], dict[str, str]]:
    """(the devices of a plugin that are asked for, the other options).

    Args:
        name: Of the provider.
        options: `device` says of which type: "CPU", "GPU" or "NPU"; without it the first device is taken.

    Raises:
        ProviderError: there is no such device.
    """
    devices, others = plugin_devices(name), dict(options)
    kind = others.pop("device", "").upper()
    fitting = [device for device in devices if kind in ("", device.device.type.name)]
    if not fitting:
        found = ", ".join(device.device.type.name for device in devices)
        raise ProviderError(f"{name} has no device of type {kind!r} here; it has {found}")
    return fitting[:1], others


def _register(name: str) -> None:
    """Register the plugin of the package that has it."""
    import onnxruntime as ort

    package, hint = _PLUGINS.get(name), _HINTS.get(name, "")
    if package is None:
        raise ProviderError(f"the provider {name} is not in this onnxruntime: {_has()}{f'; {hint}' if hint else ''}")
    if not hasattr(ort, "register_execution_provider_library"):
        raise ProviderError(
            f"the provider {name} is a plugin, which onnxruntime {ort.__version__} cannot load: use 1.23"
        )
    try:
        library = import_module(package).get_library_path()
    except ImportError:
        raise ProviderError(f"the provider {name} is a plugin that is not installed: {hint}; {_has()}") from None
    try:
        ort.register_execution_provider_library(name, library)
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ProviderError(f"the provider {name} cannot be loaded from {library!r}: {error}") from error
    if not plugin_devices(name):
        ort.unregister_execution_provider_library(name)
        raise ProviderError(
            f"the provider {name} finds no device here that it can use (OpenVINO's wants one of Intel's)"
        )


def _listed(providers: Any) -> list[Any]:
    """A list of what is asked for; a single provider may stand alone."""
    pair = isinstance(providers, tuple) and len(providers) == 2 and isinstance(providers[1], Mapping)
    if isinstance(providers, str) or pair:
        return [providers]
    if not isinstance(providers, Sequence):
        raise InputError(f"providers={providers!r}: give a list of names, or of (name, {{option: value}})")
    return list(providers)


def _pair(asked: Any) -> tuple[str, Any]:
    pair = asked if isinstance(asked, (tuple, list)) else (asked, {})
    if len(pair) != 2 or not isinstance(pair[0], str):
        raise InputError(f"provider {asked!r}: give a name, or (name, {{option: value}})")
    return pair[0], pair[1]


def _texts(name: str, options: Any) -> dict[str, str]:
    """Options as onnxruntime takes them."""
    if not isinstance(options, Mapping):
        raise InputError(f"the options of the provider {name!r} are {options!r}: give a dictionary, {{option: value}}")
    for key, value in options.items():
        if not isinstance(key, str) or not isinstance(value, (str, int, float)):
            raise InputError(
                f"the option {key!r}: {value!r} of the provider {name!r} is of type {type(value).__name__}: "
                "options are text, numbers, True or False"
            )
    return {key: str(value) for key, value in options.items()}


def _full(name: str) -> str:
    """onnxruntime's name.

    Raises:
        ProviderError: there is none.
    """
    import onnxruntime as ort

    known = {*ort.get_all_providers(), *there(), *_PLUGINS}
    if hasattr(ort, "get_ep_devices"):
        known |= {device.ep_name for device in ort.get_ep_devices()}
    short = name.lower().removesuffix(SUFFIX.lower()).replace("_", "").replace("-", "")
    wanted = f"{_ALIASES.get(short, short)}{SUFFIX}".lower()
    found = next((one for one in known if one.lower() == wanted), None)
    if found is None:
        names = {one.removesuffix(SUFFIX).lower(): one.removesuffix(SUFFIX) for one in sorted(known)}
        close = ", ".join(names[one] for one in nearest(short, names, 3).split(", "))
        full = name if name.endswith(SUFFIX) else name + SUFFIX
        raise ProviderError(f"the provider {full} is unknown (nearest: {close}); {_has()}")
    return str(found)


def _has() -> str:
    """What there is, for errors."""
    import onnxruntime as ort

    return f"this is onnxruntime {ort.__version__}, which has {', '.join(there())}"
