"""The pictures of a report: read, cut to the same size, and made into data URIs that stay small enough."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import cv2
import numpy as np

from sdakd.commands.report.data import Evaluate, Picture
from sdakd.files.images import UnusableError, read_image
from sdakd.progress import Progress

GROUND_TRUTH, BICUBIC = 'ground truth', 'bicubic input'
BUDGET = 10_000_000  # bytes of a page's pictures: what a mail and a phone still take
LARGEST = 1024  # pixels of the longer side of a picture that is shown whole
QUALITY = 90
LOSSLESS = 101  # OpenCV's code for it


@dataclass
class Version:
    """One image as one model made it: the whole, and the enlarged part of it; both are data URIs."""

    name: str
    whole: str
    crop: str


@dataclass
class Shown:
    """One image in all its versions; sizes and the region are in pixels of the ground truth."""

    set: str
    name: str
    width: int
    height: int
    region: tuple[int, int, int, int]  # left, top, width, height
    versions: list[Version] = field(default_factory=list)
    reduced: bool = False


@dataclass
class Gallery:
    """The pictures of a report, how many there were, and what was wrong with some."""

    shown: list[Shown] = field(default_factory=list)
    total: int = 0
    missing: list[str] = field(default_factory=list)


def data_uri(image: np.ndarray, quality: int) -> str:
    """A BGR image as WebP inside an address."""
    fine, encoded = cv2.imencode('.webp', image, [cv2.IMWRITE_WEBP_QUALITY, quality])
    if not fine:
        raise ValueError(f'OpenCV makes no WebP of an array {image.shape}')
    return 'data:image/webp;base64,' + base64.b64encode(encoded).decode()


def grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32)


def choose_region(first: np.ndarray, second: np.ndarray | None) -> tuple[int, int, int, int]:
    """The square in which two images differ most, or in which the one image has most detail.

    Args:
        first: (H, W, 3), uint8.
        second: The same shape; None for detail, the variance of the grey values.

    Returns:
        Left, top, width, height; a fifth of the shorter side, between 48 and 128 pixels.
    """
    height, width = first.shape[:2]
    side = min(max(min(height, width) // 5, 48), 128, height, width)
    size = (side, side)

    def mean(values: np.ndarray) -> np.ndarray:
        means = cv2.boxFilter(values, -1, size, anchor=(0, 0), borderType=cv2.BORDER_REPLICATE)
        return means[: height - side + 1, : width - side + 1]

    if second is None:
        values = grey(first)
        score = mean(values**2) - mean(values) ** 2
    else:
        score = mean((grey(first) - grey(second)) ** 2)
    top, left = np.unravel_index(int(score.argmax()), score.shape)
    return int(left), int(top), side, side


def bicubic(lq: np.ndarray, scale: int) -> np.ndarray:
    """Enlarges an image by BasicSR's bicubic interpolation; (H, W, 3) to (H * scale, W * scale, 3), uint8."""
    from sdakd import compat

    compat.import_basicsr()
    from basicsr.utils.matlab_functions import imresize

    return (imresize(lq.astype(np.float32) / 255, scale).clip(0, 1) * 255).round().astype(np.uint8)


def in_rows(number: int, most: int) -> list[int]:
    """How many pictures stand in each row: as even as possible, so that none is alone unless it is the only one.

    Args:
        number: Of all pictures.
        most: In a row; at least 3, or 2 for an even number.
    """
    rows = -(-number // most)
    return [number // rows + (row < number % rows) for row in range(rows)]


def _in_turn(evaluate: Evaluate) -> list[tuple[str, str, Picture]]:
    """The first image of every set, then the second of every set, and so on: a short report shows all sets."""
    columns = [[(of, name, picture) for name, picture in images.items()] for of, images in evaluate.pictures.items()]
    return [entry for row in zip_longest(*columns) for entry in row if entry is not None]


def _read(evaluate: Evaluate, folder: Path, picture: Picture, missing: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Every version that can be read: ground truth, bicubic interpolation, then the models in their order."""
    paths = {GROUND_TRUTH: picture.gt, **{m.name: picture.models.get(m.name) for m in evaluate.models}}
    has_bicubic = any(m.kind == 'bicubic' and picture.models.get(m.name) for m in evaluate.models)
    if picture.lq and not has_bicubic:
        paths = {GROUND_TRUTH: paths.pop(GROUND_TRUTH), BICUBIC: picture.lq, **paths}
    for name, path in paths.items():
        if path is None:
            continue
        try:
            image = read_image(folder / path)
        except UnusableError as error:
            missing.append(f'{path} {error.reason}')
            continue
        yield name, bicubic(image, evaluate.scale) if name == BICUBIC else image


def _show(versions: dict[str, np.ndarray], pair: tuple[str | None, str | None], of: str, name: str) -> Shown:
    height = min(image.shape[0] for image in versions.values())
    width = min(image.shape[1] for image in versions.values())
    versions = {key: np.ascontiguousarray(image[:height, :width]) for key, image in versions.items()}
    if pair[0] in versions and pair[1] in versions:
        region = choose_region(versions[pair[0]], versions[pair[1]])
    else:
        region = choose_region(next(iter(versions.values())), None)
    left, top, across, down = region
    factor = min(1.0, LARGEST / max(height, width))
    shown = Shown(of, name, width, height, region, reduced=factor < 1)
    for key, image in versions.items():
        crop = data_uri(image[top : top + down, left : left + across], LOSSLESS)
        if factor < 1:
            image = cv2.resize(image, (round(width * factor), round(height * factor)), interpolation=cv2.INTER_AREA)
        shown.versions.append(Version(key, data_uri(image, QUALITY), crop))
    return shown


def gallery(evaluate: Evaluate, folder: Path, limit: int | None, pair: tuple[str | None, str | None]) -> Gallery:
    """Reads and encodes pictures, one image at a time.

    Args:
        evaluate: Names the pictures.
        folder: What their paths are relative to.
        limit: How many images; None for as many as fit into :data:`BUDGET`, at least one.
        pair: Teacher and student, whose difference chooses the crops.
    """
    entries = _in_turn(evaluate)
    result = Gallery(total=len(entries))
    size = 0
    for of, name, picture in Progress('pictures', len(entries[:limit]), 'images').over(entries[:limit]):
        versions = dict(_read(evaluate, folder, picture, result.missing))
        if not versions:
            continue
        shown = _show(versions, pair, of, name)
        size += sum(len(version.whole) + len(version.crop) for version in shown.versions)
        if limit is None and result.shown and size > BUDGET:
            break
        result.shown.append(shown)
    order = list(evaluate.pictures)
    result.shown.sort(key=lambda shown: order.index(shown.set))
    return result
