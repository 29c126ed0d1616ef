"""A teacher's answers to whole training images, in a folder: computed once, read crop by crop in every later step."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from basicsr.utils import get_root_logger
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from sdakd.compat import UserError
from sdakd_arch.taps import FeatureTaps

if TYPE_CHECKING:
    from sdakd_models.sdakd_model import SDAKDModel

FORMAT = 1  # of the folder; raised when what the code writes is no longer what it wrote before
MANIFEST = 'cache.json'
LARGEST = 512 * 512  # input pixels that are run in one piece: RRDBNet's last layers then hold 4 GiB
TILE, CONTEXT = 384, 64  # input pixels; with its context on both sides a tile is as large as the largest whole image


def key_of(image: np.ndarray) -> str:
    """What an input image is called in a cache: SHA-256 of its size and pixels, ``(h, w, 3)``, uint8, BGR."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


class TeacherCache:
    """The folder of one teacher: ``cache.json``, ``images/`` and, for every tap, ``maps/<tap>/``.

    An entry is called by its input's :func:`key_of` and is a NumPy array of float16, ``(H, W, C)``; images are RGB, in
    [0, 1] but for overshoot. float16 keeps 11 bits, so that an image is off by at most 1/16 of an 8-bit level.

    Args:
        folder: The folder, which need not exist yet.
        taps: The taps whose maps are wanted besides the images.
        where: Key of the option file to name in an error.
    """

    def __init__(self, folder: str, taps: Iterable[str] = (), where: str = 'teacher:cache') -> None:
        self.folder, self.taps, self.where = Path(folder), tuple(taps), where

    def path(self, key: str, tap: str = '') -> Path:
        """The file of an image's map, or with no tap of the teacher's image."""
        return self.folder / (f'maps/{tap.replace(":", "-")}' if tap else 'images') / f'{key}.npy'

    def missing(self, key: str) -> list[str]:
        """What is still to be computed for an image: taps, and '' for the teacher's image."""
        return [tap for tap in ('', *self.taps) if not self.path(key, tap).is_file()]

    def read(self, key: str, tap: str = '') -> np.ndarray:
        """An entry, mapped into memory: only what is used is read.

        Raises:
            UserError: It is missing or damaged.
        """
        path = self.path(key, tap)
        try:
            entry = np.load(path, mmap_mode='r')
        except (OSError, ValueError, EOFError):
            entry = None
        if entry is None or entry.dtype != np.float16 or entry.ndim != 3:
            raise UserError(f'{self.where}: the entry {path} is missing or damaged; delete it to have it made again.')
        return entry

    def write(self, key: str, tap: str, values: np.ndarray) -> None:
        """Writes an entry, which other processes find either whole or not at all."""
        stream = io.BytesIO()
        np.save(stream, values)
        self._write(self.path(key, tap), stream.getvalue())

    def _write(self, path: Path, data: bytes) -> None:
        partial = path.with_name(f'.{path.name}.{os.getpid()}.part')  # several processes may fill one folder
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            os.replace(partial, path)
        except OSError as error:
            raise UserError(f'{self.where}: {path} cannot be written ({error.strerror or error}).') from None
        finally:
            partial.unlink(missing_ok=True)

    def manifest(self) -> dict[str, Any] | None:
        """What the folder says of itself; None where it is new or empty.

        Raises:
            UserError: It is no folder of this kind.
        """
        if not self.folder.exists() or (self.folder.is_dir() and not any(self.folder.iterdir())):
            return None
        try:
            found = json.loads((self.folder / MANIFEST).read_bytes())
            return {key: found[key] for key in ('format', 'teacher', 'scale', 'taps')}
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{self.where}: {self.folder} is no folder of a teacher's answers (its {MANIFEST} is missing or "
                'damaged); name a new or an empty folder.'
            ) from None

    def check(self, teacher: str) -> None:
        """Sees that the folder is new, or holds the answers of this teacher in this format.

        Args:
            teacher: Its fingerprint.

        Raises:
            UserError: It does not.
        """
        found = self.manifest()
        if found is not None and found['format'] != FORMAT:
            raise UserError(
                f'{self.where}: {self.folder} has the format {found["format"]} of another version of this program, '
                f'which writes {FORMAT}; delete it or name another folder.'
            )
        if found is not None and found['teacher'] != teacher:
            raise UserError(
                f'{self.where}: {self.folder} holds the answers of another teacher (its weights have the fingerprint '
                f'{str(found["teacher"])[:12]}, these {teacher[:12]}); name another folder, or delete this one.'
            )

    def claim(self, teacher: str, scale: int) -> None:
        """Makes the folder, or adds the taps to those that its manifest names.

        Raises:
            UserError: It belongs to another teacher, or cannot be written.
        """
        self.check(teacher)
        found = self.manifest()
        taps = sorted({*self.taps, *(found['taps'] if found else ())})
        manifest = {'format': FORMAT, 'teacher': teacher, 'scale': scale, 'values': 'float16', 'taps': taps}
        if found is None or found['taps'] != taps:
            self._write(self.folder / MANIFEST, (json.dumps(manifest, indent=1) + '\n').encode())


# ------------------------------------------------------------------------------------------------------ computing them


@torch.no_grad()
def answer(network: nn.Module, taps: FeatureTaps, image: torch.Tensor, scale: int) -> dict[str, np.ndarray]:
    """A generator's image and feature maps for a whole input, in float32, in tiles if it is large.

    Args:
        network: The generator.
        taps: Of this network.
        image: ``(1, 3, h, w)`` in [0, 1], on the network's device.
        scale: The network's factor; below 4, the input is padded by reflection to the multiple of 4 that
            pixel-unshuffling needs, and the result is cut back.

    Returns:
        The image under '' and the maps by tap, float16 ``(H, W, C)``.
    """
    height, width = image.shape[-2:]
    if scale < 4:
        image = F.pad(image, (0, -width % 4, 0, -height % 4), mode='reflect' if min(height, width) > 3 else 'replicate')
    bottom, right = image.shape[-2:]
    side = TILE if height * width > LARGEST else max(bottom, right)
    found: dict[str, np.ndarray] = {}
    for top in range(0, bottom, side):
        for left in range(0, right, side):
            y, x = max(top - CONTEXT, 0), max(left - CONTEXT, 0)
            part = image[..., y : top + side + CONTEXT, x : left + side + CONTEXT]
            with taps:
                output = network(part)
            for name, values in {'': output, **taps.pop()}.items():
                k = values.shape[-1] // part.shape[-1]
                whole = found.setdefault(name, np.empty((height * k, width * k, values.shape[1]), np.float16))
                place = whole[top * k : (top + side) * k, left * k : (left + side) * k]
                inner = values[0, :, (top - y) * k :, (left - x) * k :][:, : place.shape[0], : place.shape[1]]
                place[:] = inner.permute(1, 2, 0).half().cpu().numpy()
    return found


def fill(model: SDAKDModel) -> None:
    """Computes what the caches of a run lack; called once, when its teachers are there and no step has been made.

    Every process goes through the images in an order of its own and leaves out what another one has made since, be it
    of this run or of another run. They share the work and end together, sooner than a collective operation gives up
    waiting. What is there is kept: filling may be interrupted at any time.

    Raises:
        UserError: The folder cannot be written, or a value is beyond float16.
    """
    from sdakd_models.cached_dataset import CachedPairedDataset

    options = model.opt['datasets'].get('train') or {}
    if not options.get('caches'):
        return
    pairs = CachedPairedDataset(options)
    numbers = random.SystemRandom().sample(range(len(pairs)), len(pairs))  # seeded generators are left alone
    for name, cache in pairs.caches.items():
        network = model.teachers[name]
        cache.claim(model.fingerprints[name], model.opt['scale'])
        wanted = [number for number in numbers if cache.missing(key_of(pairs.read(number, 'lq')))]
        get_root_logger().info(
            f'{cache.where}: {len(pairs) - len(wanted):,d} of {len(pairs):,d} answers are in {cache.folder}'
            f'{", the others are computed now" if wanted else ""}.'
        )
        taps = FeatureTaps(network, cache.taps)
        # cuDNN's search for the fastest algorithm would begin anew with every size of image
        with torch.backends.cudnn.flags(benchmark=False):
            for number in tqdm(wanted, f"{name}'s answers", unit='image', disable=model.opt['rank'] > 0 or not wanted):
                _fill_one(cache, pairs.read(number, 'lq'), network, taps, model)
        taps.close()
    pairs.close()
    if model.opt['dist']:
        torch.distributed.barrier()


def _fill_one(cache: TeacherCache, image: np.ndarray, network: nn.Module, taps: FeatureTaps, model: SDAKDModel) -> None:
    key = key_of(image)
    missing = cache.missing(key)  # another process may have made it since
    if not missing:
        return
    rgb = torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))).float() / 255
    found = answer(network, taps, rgb[None].to(model.device), model.opt['scale'])
    for tap in missing:
        if not np.isfinite(found[tap]).all():
            raise UserError(
                f'{cache.where}: the teacher has values beyond float16 ({tap or "its image"}); leave cache out.'
            )
        cache.write(key, tap, found[tap])


# ------------------------------------------------------------------------------------------------------- reading crops


def blocks(values: np.ndarray, k: int) -> np.ndarray:
    """Sees ``(h * k, w * k, C)`` as ``(h, w, k, k, C)``, a block per input pixel, so that crops are those of inputs."""
    height, width, channels = values.shape
    return values.reshape(height // k, k, width // k, k, channels).transpose(0, 2, 1, 3, 4)


def joined(parts: np.ndarray) -> np.ndarray:
    """Undoes :func:`blocks`; a copy."""
    height, width, k, _, channels = parts.shape
    return parts.transpose(0, 2, 1, 3, 4).reshape(height * k, width * k, channels)
