"""What `sdakd evaluate` compares: networks, bicubic interpolation, folders of images that are already enlarged."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from sdakd.compat import UserError
from sdakd.files.images import UnusableError
from sdakd.files.named import model_file
from sdakd.files.testsets import Folder, Sample, TestSet, partners, split_name
from sdakd.progress import say

# input pixels: a larger image is run in tiles unless --tile says otherwise. RRDBNet's widest layers then take about
# 1 GB each at x4; the overlap covers the receptive field of SRVGGNetCompact with 34 convolutions exactly
WHOLE, TILE, OVERLAP = 512 * 512, 384, 36
RESERVED = ('gt', 'lq')  # folders beside the models' own


class Contender:
    """One row of the table.

    Args:
        name: What tables call it.
        source: As the user gave it.
    """

    kind = 'bicubic'
    network: dict | None = None
    parameters = macs = sha256 = values = None
    metadata: dict = {}

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source

    def check(self, sets: Iterable[TestSet]) -> None:
        """Checks that the row can take part in all sets."""

    def enlarge(self, testset: TestSet, image: str, sample: Sample) -> np.ndarray:
        """The enlarged image, uint8 (H, W, 3), BGR.

        Raises:
            UnusableError: Its file is damaged or has another size.
        """
        from basicsr.utils.matlab_functions import imresize

        large = imresize(sample.lq.astype(np.float32) / 255, testset.scale)
        return (large.clip(0, 1) * 255).round().astype(np.uint8)

    def facts(self) -> dict:
        """Its entry in ``results.json``."""
        keys = ('name', 'source', 'kind', 'network', 'parameters', 'macs', 'sha256', 'values', 'metadata')
        return {key: getattr(self, key) for key in keys}


class NetworkContender(Contender):
    """A generator from a file.

    Args:
        scale: The factor of all sets; None where they have several, for which only a network for faces will do.
        device: Where it runs; an ONNX graph runs where ONNX Runtime puts it.
        tile: Side of a tile in input pixels, 0 for the whole image, None to decide by the image's size.
        noise: What GCFSR adds: ``none``; ``fixed``, which depends on nothing but the image's name and is the same for
            all networks of a size; or ``random``, which differs between rows, factors and seeds.
        seed: Of random noise.
    """

    def __init__(
        self,
        name: str,
        source: str,
        path: str,
        scale: int | None,
        device: str,
        tile: int | None,
        noise: str = 'none',
        seed: int = 0,
    ) -> None:
        from sdakd.files.generators import open_network
        from sdakd_arch.inference.onnx_network import OnnxNetwork
        from sdakd_arch.zoo import values_digest

        super().__init__(name, source)
        opened = open_network(path, faces=True, foreign=True)
        self.faces = opened.scale is None
        if self.faces and tile:
            raise UserError('-t', f'{path} ({opened.network["type"]}) sees whole faces, without tiles; leave it out.')
        if not self.faces and scale is None:
            raise UserError(
                '-m',
                f'{path} always enlarges {opened.scale} times, but --scale gives several factors, which only GCFSR '
                'and bicubic know; give one.',
            )
        if not self.faces and opened.scale != scale:
            raise UserError(
                '-m',
                f'{path} enlarges {opened.scale} times, but --scale is {scale}; measure models of other '
                'factors in separate runs.',
            )
        self.kind = 'onnx' if isinstance(opened.module, OnnxNetwork) else 'network'
        self.network, self.metadata, self.described = opened.network, opened.metadata, opened.describe()
        self.parameters, self.macs = opened.cost() or (None, None)
        self.sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        self.values = values_digest(opened.module.state_dict()) if self.kind == 'network' else None
        self.module, self.device, self.tile = opened.module.to(device), device, tile
        self.multiple, self.grid = opened.multiple, opened.grid
        self.noise, self.seed = noise, seed

    def check(self, sets: Iterable[TestSet]) -> None:
        """Checks by the headers that a network for faces gets faces of its size, reduced by a factor that it can take.

        Raises:
            UserError: Images of another size, or a factor that does not divide it or leaves too little.
        """
        from sdakd.files.generators import SMALLEST_FACE

        for testset in sets if self.faces else ():
            side, scale = self.module.out_size, testset.scale
            if side % scale or side // scale < SMALLEST_FACE:
                raise UserError(
                    '--scale',
                    f'{scale} does not fit {self.name}, whose faces have {side}x{side} pixels: a factor must '
                    f'divide {side} and leave {SMALLEST_FACE} pixels.',
                )
            for name in testset.names:
                size = testset.hr.size(name) if testset.hr else testset.size(name)
                if size and size != (side, side):
                    reached = '' if testset.hr else f', enlarged {scale} times'
                    raise UserError(
                        '-d',
                        f'{name} of {testset.name} has {size[1]}x{size[0]} pixels{reached}, and {self.name} makes '
                        f'faces of {side}x{side}; make the set with `sdakd prepare faces --size {side}`.',
                    )

    def enlarge(self, testset: TestSet, image: str, sample: Sample) -> np.ndarray:
        from basicsr.utils import img2tensor, tensor2img

        from sdakd_arch.inference.tiling import run_tiled

        pixels = sample.lq.shape[0] * sample.lq.shape[1]
        height, width = (side * testset.scale for side in sample.lq.shape[:2])
        if self.faces and (height, width) != (self.module.out_size,) * 2:  # where no header told it before
            raise UnusableError('unreadable', f'{image} would become {width}x{height} pixels, which is no face')
        tile = self.tile if self.tile is not None else TILE if pixels > WHOLE else 0
        lq = img2tensor(sample.lq.astype(np.float32) / 255)[None].to(self.device)
        try:
            with torch.no_grad():
                if self.faces:
                    return tensor2img([self.module(lq, self._noise(image, testset.scale))])
                return tensor2img([run_tiled(self.module, lq, testset.scale, tile, OVERLAP, self.multiple, self.grid)])
        except torch.OutOfMemoryError:
            if self.faces:
                raise UserError(
                    '--device', f'{self.name} finds too little memory on {self.device} for a face; write --device cpu.'
                ) from None
            raise UserError(
                '-t',
                f'{self.name} finds too little memory on {self.device} for {image} ({lq.shape[3]}x{lq.shape[2]}); '
                f'give smaller tiles, for example -t {max(32, (tile or max(lq.shape[2:])) // 2)}.',
            ) from None

    def _noise(self, image: str, scale: int) -> list[torch.Tensor] | None:
        if self.noise == 'none':
            return None
        facts = () if self.noise == 'fixed' else (self.seed, self.name, scale)
        return self.module.generator.noise_of(os.path.basename(image), *facts)


class FolderContender(Contender):
    """Images that something else enlarged; those of a set may be in a sub-folder of the set's name."""

    kind = 'folder'

    def __init__(self, name: str, source: str, path: str) -> None:
        super().__init__(name, source)
        self.path = path
        self.files: dict[str, tuple[Folder, dict[str, str]]] = {}

    def check(self, sets: Iterable[TestSet]) -> None:
        """Finds the images of all sets, and checks their sizes by their headers.

        Raises:
            UserError: One is missing or has another size.
        """
        folders: dict[str, Folder] = {}
        for testset in sets:
            inner = os.path.join(self.path, testset.name)
            path = inner if os.path.isdir(inner) else self.path
            if path not in folders:
                folders[path] = Folder(path, '-m')
                say(folders[path].note.rstrip('\n'))
            folder = folders[path]
            found = partners(
                testset.names,
                folder.files,
                lambda name, path=path, testset=testset: (
                    f'-m: {path} has no image for {name} of {testset.name}; images '
                    'need the name of their HR image, or that name and one ending such as _out.'
                ),
            )
            for name, own in found.items():
                size, wanted = folder.size(own), testset.size(name)
                if size and wanted and not (size == wanted or testset.hr and size == testset.hr.size(name)):
                    raise UserError(
                        '-m',
                        f'{folder.file(own)} in {path} has {size[1]}x{size[0]} pixels; enlarged {testset.scale} '
                        f'times, {name} of {testset.name} has {wanted[1]}x{wanted[0]}.',
                    )
            self.files[testset.name] = (folder, found)

    def enlarge(self, testset: TestSet, image: str, sample: Sample) -> np.ndarray:
        folder, found = self.files[testset.name]
        try:
            large = folder.read(found[image])
        except UnusableError as error:
            raise UnusableError(error.kind, f'{folder.where(found[image])} {error.reason}') from None
        height, width = (side * testset.scale for side in sample.lq.shape[:2])
        if large.shape[0] < height or large.shape[1] < width:
            raise UnusableError('unreadable', f'{folder.where(found[image])} is smaller than {width}x{height}')
        return large[:height, :width]  # where the HR image is cropped to a multiple of the scale, so is this


def _base_name(path: str) -> str:
    return os.path.basename(os.path.normpath(path)) if os.path.isdir(path) else Path(path).stem


def _long_name(path: str) -> str:
    """The name with its folder in front; for a checkpoint in ``experiments/NAME/models/``, with the experiment's."""
    parent = Path(os.path.abspath(path)).parent
    return f'{(parent.parent if parent.name == "models" else parent).name}_{_base_name(path)}'


def open_contenders(
    sources: Iterable[str], scale: int | None, device: str, tile: int | None, noise: str = 'none', seed: int = 0
) -> list[Contender]:
    """Opens what ``-m`` names, each with ``NAME=`` in front where wanted.

    Args:
        sources: Of ``-m``.
        scale: The factor of all sets, None where they have several.
        device, tile, noise, seed: As for :class:`NetworkContender`.

    Raises:
        UserError: A file is no generator, enlarges by another factor, two rows would have the same name, or there is
            noise for GCFSR and no GCFSR.
    """
    given = [(*split_name(source), source) for source in sources]
    names = [name or _base_name(path) for name, path, _ in given]
    names = [
        _long_name(path) if name is None and names.count(own) > 1 and path != 'bicubic' else own
        for own, (name, path, _) in zip(names, given, strict=True)
    ]
    contenders = []
    for name, (_, path, source) in zip(names, given, strict=True):
        if names.count(name) > 1:
            raise UserError('-m', f'two models are called {name}; write NAME=PATH to give one another name.')
        if name in RESERVED or not re.fullmatch(r'[^/\\\0.][^/\\\0]*', name):
            raise UserError('-m', f'{name!r} cannot be the name of a row and its folder; write NAME=PATH.')
        if path == 'bicubic':
            contenders.append(Contender(name, source))
        elif os.path.isdir(path):
            if scale is None:
                raise UserError('-m', f'{path} holds images of one factor, but --scale gives several; give one.')
            contenders.append(FolderContender(name, source, path))
        else:
            path = str(model_file(path))
            contenders.append(NetworkContender(name, source, path, scale, device, tile, noise, seed))
            say(f'{name}: {_network_line(contenders[-1])}')
    if noise != 'none' and not any(getattr(contender, 'faces', False) for contender in contenders):
        raise UserError('--noise', f'only GCFSR adds {noise} noise, and no model is one; leave it out.')
    return contenders


def _network_line(contender: NetworkContender) -> str:
    if contender.parameters is None:
        return contender.described
    return f'{contender.described}, {contender.parameters:,d} parameters'
