"""Identity similarity: how alike two images of a face are to a network that recognises people."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from sdakd import compat
from sdakd.compat import UserError
from sdakd_arch.inference.onnx_network import OnnxNetwork
from sdakd_arch.weights import load_into, read_weights
from sdakd_arch.zoo import ensure_file

SIDE = 112  # pixels, of what face recognition takes
# ArcFace's five-point template of 112 pixels lies on FFHQ's landmarks when it covers this part of the side, 0.744 by
# least squares, with its centre 0.005 of the side above that of the image
PART = 0.75
WEIGHTS = 'recognition_arcface_ir_se50.pth'
URL = f'https://github.com/xinntao/facexlib/releases/download/v0.1.0/{WEIGHTS}'
KEPT = 8  # images whose embeddings are remembered: a reference is met once for every model
CONVENTION = (
    f'faces are taken to be aligned as in FFHQ: the central {PART} of the side, resized to {SIDE}x{SIDE}, RGB, '
    '(value - 127.5) / 127.5.'
)


def crop(image: np.ndarray) -> np.ndarray:
    """The central part of an aligned face, as large as networks for recognition want it.

    Args:
        image: uint8 ``(H, W, 3)``.

    Returns:
        uint8 ``(112, 112, 3)``, by area interpolation where it shrinks and bicubic where it grows.
    """
    height, width = image.shape[:2]
    side = max(round(PART * min(height, width)), 1)
    top, left = (height - side) // 2, (width - side) // 2
    inner = image[top : top + side, left : left + side]
    return cv2.resize(inner, (SIDE, SIDE), interpolation=cv2.INTER_AREA if side > SIDE else cv2.INTER_CUBIC)


class FaceModel:
    """A network for recognition.

    Args:
        name: For the convention in ``results.json``.
        network: Maps ``(1, 3, 112, 112)``, RGB in [-1, 1], to ``(1, C)``.
        device: Where it runs.
    """

    def __init__(self, name: str, network: nn.Module, device: str) -> None:
        self.name, self.network, self.device = name, network, device

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The embedding of a face, uint8 ``(H, W, 3)``, BGR: float64 ``(C,)``, of length 1."""
        rgb = np.ascontiguousarray(crop(image)[..., ::-1].transpose(2, 0, 1), np.float32)
        with torch.no_grad():
            found = self.network(((torch.from_numpy(rgb) - 127.5) / 127.5)[None].to(self.device))
        vector = found.double().cpu().numpy().reshape(-1)
        return vector / max(np.linalg.norm(vector), 1e-12)


class Likeness:
    """The cosine of the embeddings of two faces, between -1 and 1; 1 for equal images.

    Args:
        network: Makes the embeddings.
    """

    def __init__(self, network: FaceModel) -> None:
        self.network = network
        self.known: list[tuple[np.ndarray, np.ndarray]] = []

    def embed(self, image: np.ndarray) -> np.ndarray:
        """The embedding, from memory where this very array was met shortly before."""
        for array, vector in self.known:
            if array is image:
                return vector
        self.known = [*self.known[-KEPT + 1 :], (image, self.network(image))]
        return self.known[-1][1]

    def __call__(self, image: np.ndarray, reference: np.ndarray) -> float:
        return float(self.embed(image) @ self.embed(reference))


@functools.lru_cache(maxsize=1)
def open_face_model(file: str | None, device: str) -> FaceModel:
    """Opens facexlib's ArcFace (IR-SE-50, Deng et al., arXiv 1801.07698) or an ONNX graph.

    Args:
        file: ``.onnx`` or facexlib's weights; None: facexlib's, where it keeps them, downloaded when online.

    Raises:
        UserError: facexlib or the file is missing, or it holds another network; the sentence says where to get it.
    """
    if file is not None and file.endswith('.onnx'):
        if not Path(file).is_file():
            raise UserError('--face_model', f'the file {file} does not exist.')
        network, name = OnnxNetwork(Path(file), '--face_model'), Path(file).name
    else:
        network, name = _arcface(file).to(device), "facexlib's ArcFace (IR-SE-50)"
    model = FaceModel(name, network, device)
    try:
        found = model.network(torch.zeros(1, 3, SIDE, SIDE, device=device))
    except Exception as error:  # ONNX Runtime's share no base class
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError('--face_model', f'{file} does not run on (1, 3, {SIDE}, {SIDE}) ({reason}).') from None
    if found.dim() < 2 or len(found) != 1 or found.numel() != found.shape[1] or found.numel() < 2:
        raise UserError('--face_model', f'{file} gives {tuple(found.shape)} for a face, not one vector (1, C).')
    return model


def _arcface(file: str | None) -> nn.Module:
    otherwise = 'name an .onnx with --face_model, or leave identity out of the metrics'
    found = importlib.util.find_spec('facexlib')
    if found is None:
        raise UserError(
            '--metrics identity', f'the package facexlib is not installed: pip install facexlib, {otherwise}.'
        )
    path = Path(file or Path(found.submodule_search_locations[0], 'weights', WEIGHTS))
    where = '--metrics identity' if file is None else '--face_model'
    ensure_file(path, where, otherwise, URL if path.name == WEIGHTS else None)
    compat.prepare_imports()
    from facexlib.recognition.arcface_arch import Backbone

    network = Backbone(num_layers=50, drop_ratio=0.6, mode='ir_se').eval().requires_grad_(False)
    state = read_weights(path, where=where)
    # counters of training steps, which files of old versions of torch do not have
    counters = {key: value for key, value in network.state_dict().items() if key.endswith('num_batches_tracked')}
    load_into(network, counters | state, path, where)
    return network
