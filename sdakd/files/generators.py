"""Opens generators from files of any supported kind, for evaluate, bench, export and upscale."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from torch import nn

from sdakd.compat import UserError, no_file
from sdakd_arch.families import FAMILIES, Family, check_told, family_of, registered, untold
from sdakd_arch.file_kinds import kind_of
from sdakd_arch.foreign import Foreign, needs_spandrel, open_foreign
from sdakd_arch.inference.onnx_network import OnnxNetwork
from sdakd_arch.ncnn_file import is_ncnn
from sdakd_arch.plugins import import_entry_points
from sdakd_arch.weights import describe, infer_network, load_into, read_weights
from sdakd_arch.width import build_told, check_channels, cost, scale_of

BLOCK = 4  # pixels on a side, of what becomes channels in a graph of unknown architecture: RRDBNet's for scale 1
SMALLEST_FACE = 4  # pixels; less is left by no factor of the training
# what an exported file says of itself, as JSON texts; `quantization` only in int8 files
METADATA = ('network', 'scale', 'training', 'commit', 'version', 'quantization')


@dataclass
class Opened:
    """A generator that is ready to run.

    Args:
        name: What tables call it, the file's name without its ending.
        path: The file.
        module: On the CPU, in float32, in eval mode; maps ``(N, 3, h, w)``, RGB in [0, 1], to ``(N, 3, h * scale,
            w * scale)``.
        scale: Factor between input and output; None for a :class:`FaceNetwork`, which enlarges to one size.
        network: Its options as BasicSR's ``build_network`` takes them; None for an ONNX file that does not tell, and
            for a :class:`sdakd_arch.foreign.Foreign`.
        metadata: What the file says of itself: the keys of :data:`METADATA` that it holds, decoded.
    """

    name: str
    path: Path
    module: nn.Module
    scale: int | None
    network: dict | None
    metadata: dict = field(default_factory=dict)

    @property
    def family(self) -> Family:
        """What is known of its architecture."""
        return family_of(self.network or self.module)

    @property
    def multiple(self) -> int:
        """Sides of the input must be multiples of this number of pixels."""
        if isinstance(self.module, OnnxNetwork | Foreign):
            return self.module.multiple
        return self.family.multiple(self.module)

    @property
    def grid(self) -> int:
        """What tiles should begin at multiples of: a graph may unshuffle pixels and fill up blocks without telling."""
        return math.lcm(self.multiple, BLOCK) if isinstance(self.module, OnnxNetwork) else self.multiple

    def describe(self) -> str:
        """One line for people."""
        return describe(self.network) if self.network else self.module.describe()

    def cost(self, size: int = 64) -> tuple[int, int | None] | None:
        """Parameters and multiply-accumulates for ``size`` x ``size`` input pixels; None where they cannot be told."""
        if isinstance(self.module, Foreign):  # what it computes in inference mode, torch does not count
            return sum(parameter.numel() for parameter in self.module.parameters()), None
        try:
            return cost(self.network, size) if self.network else None
        except Exception:  # a graph of an architecture that is not registered here, or one that tells another
            if isinstance(self.module, OnnxNetwork):
                return None
            raise


class FaceNetwork(nn.Module):
    """GCFSR, called as any other generator: enlarges square images to faces of one size.

    The input is resized as :func:`sdakd_data.face_dataset.degrade` does, by MATLAB's bicubic interpolation, and
    rounded to 8 bits. Without noise, equal inputs give equal faces.

    Args:
        generator: GCFSR or GCFSRBlind.
        factor: The factor that the generator is told; None: ``out_size / h``, the one that the image's size says.
    """

    def __init__(self, generator: nn.Module, factor: float | None = None) -> None:
        super().__init__()
        self.generator, self.factor = generator, factor

    @property
    def out_size(self) -> int:
        """Side of the faces in pixels."""
        return self.generator.out_size

    def fault(self, height: int, width: int) -> str | None:
        """What is wrong with images of this size, None where nothing is."""
        largest = self.out_size
        if height != width:
            return f'has {width}x{height} pixels and is not square'
        if not SMALLEST_FACE <= height <= largest:
            return f'has {width}x{height} pixels, where faces from {SMALLEST_FACE} to {largest} pixels can be taken'
        return None

    def resize(self, image: torch.Tensor) -> torch.Tensor:
        """``(N, 3, h, h)`` at the size of the faces, of 8-bit levels in [0, 1]."""
        from sdakd_data.face_dataset import resize, rounded

        return rounded(resize(image.float(), self.out_size)).to(image)

    def forward(self, image: torch.Tensor, noise: list[torch.Tensor] | None = None) -> torch.Tensor:
        """Maps ``(N, 3, h, h)`` to ``(N, 3, out_size, out_size)``, both RGB in [0, 1], the output not clipped.

        Args:
            image: The small faces.
            noise: As for :class:`sdakd_arch.gcfsr.gcfsr_arch.GCFSR`; None adds none.

        Raises:
            RuntimeError: Images that are not square, too small, or larger than the faces.
        """
        if fault := self.fault(*image.shape[-2:]):
            raise RuntimeError(f'a face {fault}')
        factor = self.factor or self.out_size / image.shape[-1]
        large = self.resize(image)
        in_size = large.new_full((len(large), 1), 16 * factor / self.out_size)
        return (self.generator(2 * large - 1, in_size, noise) + 1) / 2


def read_metadata(path: Path, where: str = '-m', texts: Mapping[str, str] | None = None) -> dict:
    """What a ``.safetensors`` or ``.onnx`` file says of itself, decoded from JSON; empty for any other file.

    Args:
        path: The file.
        where: Flag or key to name in an error.
        texts: What was read from a graph.

    Raises:
        UserError: It names a network that is none; see :func:`sdakd_arch.families.check_told`.
    """
    if texts is None and not is_ncnn(path) and kind_of(path, where) == 'safetensors':
        from safetensors import safe_open

        with safe_open(path, 'pt') as file:
            texts = file.metadata()
    found = {}
    for key in METADATA:
        if key not in (texts or {}):
            continue
        try:
            found[key] = json.loads(texts[key])
        except (ValueError, RecursionError):  # a file of someone else, who means something else by the key
            found[key] = None
    if 'network' in found and (found['network'] is not None or texts['network'].strip() != 'null'):
        found['network'] = check_told(found['network'], f'{where}: metadata of {path}: network')
    return found


def options_beside(path: Path) -> dict | None:
    """The option file that BasicSR copies into ``experiments/<name>/``, two folders above a checkpoint, if it is there.

    It counts as one if its ``network_g`` names a type. The file is complete, and its ``imports`` are not followed: a
    network is opened without executing what lies beside it.
    """
    for file in sorted(path.resolve().parent.parent.glob('*.yml')):
        if no_file(file):
            continue
        try:
            options = yaml.safe_load(file.read_text(encoding='utf-8')) or {}
            network = options.get('network_g')
        except (OSError, yaml.YAMLError, ValueError, AttributeError, RecursionError):
            continue
        if isinstance(network, Mapping) and 'type' in network:
            return options
    return None


def _open_onnx(path: Path, where: str, threads: int) -> Opened:
    module = OnnxNetwork(path, where, threads)
    metadata = read_metadata(path, where, module.session.get_modelmeta().custom_metadata_map)
    network, told = metadata.get('network'), metadata.get('scale')
    if network is not None and registered(network):
        on_meta = build_told(network, None, where, path)
        module.probe(ours=True)
        module.multiple, told = family_of(network).multiple(on_meta), scale_of(on_meta, where)
    else:
        module.probe()
    if isinstance(told, int) and told != module.scale:
        raise UserError(
            where,
            f'{path} says of itself that it enlarges {told} times, and enlarges {module.scale} times; export it anew.',
        )
    return Opened(path.stem, path, module, module.scale, network, metadata)


def open_network(
    path: str | Path, where: str = '-m', threads: int = 0, faces: bool = False, foreign: bool = False
) -> Opened:
    """Opens a generator: BasicSR's and ESRGAN's ``.pth``, ``.safetensors``, ncnn's ``.param``/``.bin``, or ``.onnx``.

    The file's metadata or graph tell the architecture, else the names and shapes of its weights, else the option file
    of the BasicSR experiment that the checkpoint lies in, else spandrel where it is installed. ``params_ema`` is
    preferred to ``params``.

    Args:
        path: The file.
        where: The flag or key to name in an error.
        threads: For ONNX Runtime; 0 leaves the choice to it.
        faces: Whether GCFSR will do, as a :class:`FaceNetwork`.
        foreign: Whether a network will do that only spandrel knows, as a :class:`sdakd_arch.foreign.Foreign`.

    Raises:
        UserError: A missing or damaged file, pickled objects other than tensors, an architecture that cannot be told,
            weights that do not fit it, a discriminator, a network of other images than RGB, or one for faces where none
            will do.
    """
    import_entry_points()
    path = Path(path)
    if path.suffix == '.onnx':
        if reason := no_file(path):
            raise UserError(where, f'the file {path} {reason}.')
        return _open_onnx(path, where, threads)
    state = read_weights(path, 'params_ema', where)
    metadata = read_metadata(path, where)
    network = metadata.get('network') or infer_network(state)
    if network is None and (beside := options_beside(path)) is not None:
        network = check_told(beside['network_g'], f'{where}: the option file of {path}: network_g')
    if network is None and (module := open_foreign(state, path, where)) is not None:
        opened = Opened(path.stem, path, module, module.scale, None, metadata)
        if foreign:
            return opened
        raise UserError(
            where,
            f'{path} holds {opened.describe()}, which can teach (`sdakd distill`, the key teacher) and be run (`sdakd '
            'evaluate`, `bench` and `upscale`), and nothing else; give a network of an architecture that this project '
            'knows.',
        )
    if network is None:
        known = ', '.join(name for name, family in FAMILIES.items() if not family.discriminator)
        reason = untold(state) or f'its weights are of no known family ({known})'
        raise UserError(
            where,
            f'nothing tells the architecture of {path}: {reason}, and no option file '
            f'with network_g lies two folders above; put it where its experiment left it{needs_spandrel()}.',
        )
    if family_of(network).discriminator:
        raise UserError(where, f'{path} holds the discriminator {describe(network)}; give a generator (net_g_...).')
    check_channels(network, path, where)
    module = build_told(network, state, where, path).eval().requires_grad_(False)
    load_into(module, state, path, where)
    if hasattr(module, 'example_inputs'):
        if faces:
            return Opened(path.stem, path, FaceNetwork(module).eval(), None, network, metadata)
        raise UserError(
            where,
            f'{path} holds {describe(network)}, which takes faces of one size and their factor; give a '
            'generator that takes any image, such as RRDBNet or SRVGGNetCompact.',
        )
    return Opened(path.stem, path, module, scale_of(build_told(network, state, where, path), where), network, metadata)
