"""How a channel is taken away: pycam's Ablation-CAM knows images from tokens itself, so that `ablation_layer=` is
accepted and not used."""

from __future__ import annotations

__all__ = ["AblationLayer", "AblationLayerFasterRCNN", "AblationLayerVit"]


class AblationLayer:
    """Of a convolutional network."""


class AblationLayerVit(AblationLayer):
    """Of tokens."""


class AblationLayerFasterRCNN(AblationLayer):
    """Of one level of a feature pyramid."""
