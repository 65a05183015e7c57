"""A whole script, run by pytorch-grad-cam on a torch model and by pycam.compat on its export: skipped where the former
is not installed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pycam.frameworks import from_torch

SCRIPT = """
import numpy as np
from LIBRARY import GradCAM, HiResCAM, ScoreCAM, GradCAMPlusPlus, AblationCAM, XGradCAM, LayerCAM
from LIBRARY import GuidedBackpropReLUModel
from LIBRARY.utils.image import deprocess_image, preprocess_image, show_cam_on_image
from LIBRARY.utils.model_targets import ClassifierOutputTarget

rgb_img = np.float32(picture) / 255
input_tensor = preprocess_image(rgb_img, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]).to("cpu")
targets = [ClassifierOutputTarget(3)]
results = {}
for algorithm in (GradCAM, HiResCAM, ScoreCAM, GradCAMPlusPlus, AblationCAM, XGradCAM, LayerCAM):
    with algorithm(model=model, target_layers=target_layers) as cam:
        cam.batch_size = 32
        grayscale_cam = cam(input_tensor=input_tensor, targets=targets, aug_smooth=algorithm is GradCAM)
        grayscale_cam = grayscale_cam[0, :]
        cam_image = show_cam_on_image(rgb_img, grayscale_cam, use_rgb=True)
        results[algorithm.__name__] = grayscale_cam
        results[algorithm.__name__ + " picture"] = cam_image
        results["outputs"] = np.asarray(cam.outputs.detach().cpu().numpy())
gb_model = GuidedBackpropReLUModel(model=model, device="cpu")
gb = gb_model(input_tensor, target_category=None)
results["gb picture"] = deprocess_image(gb)
results["cam gb picture"] = deprocess_image(grayscale_cam[..., None] * gb)
"""


@pytest.fixture(scope="module")
def network() -> Any:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    nn = torch.nn
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(12 * 16, 20),
        nn.ReLU(),
        nn.Linear(20, 6),
    ).eval()


@pytest.fixture(scope="module")
def exported(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    path = tmp_path_factory.mktemp("compat") / "model.onnx"
    from_torch(network, (1, 3, 32, 36), path=path)
    return path


def run(library: str, **names: Any) -> dict[str, np.ndarray]:
    exec(SCRIPT.replace("LIBRARY", library), names)
    return names["results"]


@pytest.mark.filterwarnings("default")
def test_script(peer: SimpleNamespace, network: Any, exported: Path) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (32, 36, 3), np.uint8)
    wanted = run("pytorch_grad_cam", model=network, target_layers=[network[3]], picture=picture)
    found = run("pycam.compat", model=exported, target_layers=["3"], picture=picture)
    assert found.keys() == wanted.keys()
    for key, array in wanted.items():
        assert found[key].shape == array.shape, key
        assert found[key].dtype == array.dtype, key
        bound = 1 if array.dtype == np.uint8 else 1e-3
        assert np.abs(found[key].astype(np.float64) - array).max() <= bound, key


def test_tensors_in_and_out(network: Any, exported: Path) -> None:
    import torch

    from pycam.compat import GradCAM

    x = torch.randn(2, 3, 32, 36, requires_grad=True)
    cam = GradCAM(model=exported, target_layers=["3"])
    maps = cam(input_tensor=x, targets=None)
    assert type(maps) is np.ndarray
    assert isinstance(cam.outputs, torch.Tensor)
    torch.testing.assert_close(cam.outputs, network(x).detach(), atol=1e-5, rtol=1e-4)


def test_error_names_the_way_out(network: Any) -> None:
    from pycam.compat import GradCAM

    with pytest.raises(ValueError, match="from_torch"):
        GradCAM(model=network, target_layers=[network[3]])
