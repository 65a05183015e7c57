"""Deep Feature Factorization, as pytorch-grad-cam calls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycam.graph import emit
from pycam.graph.load import load
from pycam.graph.locate import locate_layers
from pycam.graph.normalise import normalise
from pycam.runtime.algebra import check_installed, nmf
from pycam.runtime.session import make_session

from .arrays import inputs_of
from .base import check_transform, checked_layers, checked_model
from .utils.image import scale_cam_image

__all__ = ["DeepFeatureFactorization"]


class DeepFeatureFactorization:
    """The concepts that a layer tells apart (1806.10206), which come in the order of what they explain.

    `pycam.Explainer(model, "dff")` has the model's own scores of the concepts as well.

    Args:
        model: ONNX: a path, bytes or a ModelProto.
        target_layer: Name of the layer.
        reshape_transform: Not used: pycam finds in the graph where tokens lie.
        computation_on_concepts: A function of the concepts, float32 (concepts, channels) of numpy, such as the model's
            last linear layer; None: nothing is computed.
        providers, threads: See `pycam.Explainer`.
    """

    def __init__(
        self,
        model: Any,
        target_layer: str,
        reshape_transform: Callable[..., Any] | None = None,
        computation_on_concepts: Callable[[NDArray[np.float32]], Any] | None = None,
        *,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> None:
        check_transform(reshape_transform)
        check_installed(["nmf"])
        (name,) = checked_layers([target_layer])
        self.computation_on_concepts = computation_on_concepts
        loaded = load(checked_model(model))
        normal = normalise(loaded)
        (layer,) = locate_layers(normal.graph, name, normal.graph.outputs[0])
        normal.graph.outputs[:] = [layer]
        proto = emit.finish(normal, stand_alone=False)
        self._image = proto.graph.input[0].name
        self._session = make_session(
            proto.SerializeToString(), folder=loaded.folder, providers=providers, threads=threads
        )

    def __call__(self, input_tensor: Any, n_components: int = 16) -> tuple[Any, ...]:
        """Factorise a batch.

        Args:
            input_tensor: (N, C, H, W), or {name: array}.
            n_components: How many concepts.

        Returns:
            The concepts, float32 (channels, n_components); a list with the maps of each image, float32
            (n_components, H, W) in [0, 1]; and what `computation_on_concepts` gave, if there is one.
        """
        feeds = inputs_of(input_tensor)
        feeds = feeds if isinstance(feeds, dict) else {self._image: feeds}
        (features,) = self._session.run(None, feeds)
        maps, concepts = nmf(features.astype(np.float32), components=n_components, seed=0, iterations=200)
        height, width = feeds[self._image].shape[-2:]
        explanations = [scale_cam_image(one, (width, height)) for one in maps]
        if self.computation_on_concepts is None:
            return concepts.T, explanations
        return concepts.T, explanations, self.computation_on_concepts(concepts)
