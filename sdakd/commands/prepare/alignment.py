"""Aligned crops of faces: facexlib's detector of five landmarks, and the similarity that puts them where FFHQ has them.

The detector is RetinaFace (arXiv 1905.00641) on a ResNet-50: facexlib's network, weights, anchors and decoding. OpenCV
removes overlapping boxes: torchvision's operator for that is missing where torchvision was built for another torch.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from sdakd import compat
from sdakd.compat import UserError

# where facexlib puts the left eye, the right eye (both as seen), the nose and the corners of the mouth of an FFHQ-like
# face of 512 x 512 pixels: x, y
TEMPLATE = np.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ]
)
CONFIDENCE = 0.97  # of a face, facexlib's choice
OVERLAP = 0.4  # intersection over union from which two boxes are one face, facexlib's choice
SHORTEST = 640  # pixels of a photograph's shortest side in the detector; larger ones are shrunk, as GFPGAN does


# ------------------------------------------------ the detector -------------------------------------------------------


def _empty_detector(device: str):
    """facexlib's network, without weights."""
    compat.prepare_imports()
    import torch
    from facexlib.detection.retinaface import RetinaFace

    with warnings.catch_warnings(), torch.device(device):
        warnings.filterwarnings('ignore', category=UserWarning, module='torchvision')  # facexlib's older spelling
        return RetinaFace('resnet50', device=device)


def find_weights(given: str | None) -> str:
    """Finds the detector's weights: the given file, or facexlib's own, downloaded when the machine is online.

    Raises:
        UserError: facexlib is not installed, or the file is missing or is not the detector's.
    """
    if importlib.util.find_spec('facexlib') is None:
        raise UserError(
            'the package facexlib is not installed: pip install facexlib, or give faces that are aligned already with '
            '--aligned.'
        )
    from sdakd.commands.upscale import FACE_URLS

    name = 'detection_Resnet50_Final.pth'
    path = Path(given or Path(importlib.util.find_spec('facexlib').submodule_search_locations[0], 'weights', name))
    compat.import_basicsr()
    from sdakd_arch.zoo import ensure_file

    otherwise = 'name it with --detector, or give faces that are aligned already with --aligned'
    if given:
        otherwise = 'give faces that are aligned already with --aligned'
    ensure_file(path, '--detector', otherwise, FACE_URLS[name] if path.name == name else None)
    _load(_empty_detector('meta'), str(path))
    return str(path)


def _load(network, path: str) -> None:
    from sdakd_arch.weights import load_into, read_weights

    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'for .*: copying from a non-meta parameter')  # when it is only a check
        load_into(network, read_weights(path, where='--detector'), path, '--detector')


@functools.lru_cache(maxsize=1)
def detector(path: str):
    """The detector on the CPU; kept, as every process has many photographs."""
    compat.import_basicsr()
    network = _empty_detector('cpu')
    _load(network, path)
    return network


def find_landmarks(image: np.ndarray, network) -> np.ndarray | None:
    """The landmarks of the largest face.

    Args:
        image: uint8 array (H, W, 3), BGR.
        network: From :func:`detector`.

    Returns:
        Array (5, 2) of x and y in pixels, in the order of ``TEMPLATE``, or None where there is no face.
    """
    import torch
    from facexlib.detection.retinaface_utils import PriorBox, decode, decode_landm
    from facexlib.utils.face_restoration_helper import get_largest_face

    height, width = image.shape[:2]
    shrunk = min(1, SHORTEST / min(height, width))
    if shrunk < 1:
        image = cv2.resize(image, None, fx=shrunk, fy=shrunk, interpolation=cv2.INTER_AREA)
    with torch.inference_mode():
        pixels = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32)) - network.mean_tensor
        boxes, scores, landmarks = network(pixels)
        anchors, variances = PriorBox(network.cfg, image.shape[:2]).forward(), network.cfg['variance']
        boxes = decode(boxes[0], anchors, variances).numpy() * [width, height, width, height]
        landmarks = decode_landm(landmarks[0], anchors, variances).numpy() * ([width, height] * 5)
        scores = scores[0, :, 1].numpy()
    found = np.flatnonzero(scores > CONFIDENCE)
    corners = np.hstack([boxes[found, :2], boxes[found, 2:] - boxes[found, :2]])  # and sizes, as OpenCV wants them
    kept = found[np.asarray(cv2.dnn.NMSBoxes(corners, scores[found], CONFIDENCE, OVERLAP), int).ravel()]
    if not len(kept):
        return None
    return landmarks[kept[get_largest_face(boxes[kept], height, width)[1]]].reshape(5, 2)


# ------------------------------------------------ the crop -----------------------------------------------------------


def similarity(landmarks: np.ndarray, size: int) -> np.ndarray | None:
    """Turns, scales and shifts landmarks onto the template, as facexlib does: the least median of squares, refined.

    Args:
        landmarks: Array (5, 2) of x and y in pixels.
        size: Side of the crop in pixels.

    Returns:
        Matrix (2, 3) that takes ``x, y, 1`` of the photograph into the crop, or None where all landmarks coincide.
    """
    return cv2.estimateAffinePartial2D(landmarks, TEMPLATE * (size / 512), method=cv2.LMEDS)[0]


def face_side(matrix: np.ndarray, size: int) -> float:
    """Side, in pixels of the photograph, of the square that becomes the crop."""
    return size / float(np.hypot(*matrix[:, 0]))


def crop(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """Cuts out a face. What lies beyond the photograph's border is its mirror image.

    A warp only interpolates; where it shrinks, it would alias. So the face is cut out with at least the photograph's
    resolution and then resized by a whole factor.

    Args:
        image: uint8 array (H, W, 3).
        matrix: From :func:`similarity`.
        size: Side of the crop in pixels.

    Returns:
        uint8 array (size, size, 3).
    """
    factor = max(1, int(np.ceil(face_side(matrix, size) / size)))
    fine = matrix * factor
    fine[:, 2] += (factor - 1) / 2  # the centres of pixels lie at whole numbers
    warped = cv2.warpAffine(
        image, fine, (size * factor, size * factor), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )
    return shrink(warped, size)


def shrink(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes a square image with Lanczos, antialiased; equal sizes are left as they are."""
    if image.shape[0] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))
