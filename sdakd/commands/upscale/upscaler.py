"""Enlarges images with any opened generator: in tiles without a seam, in little memory, with a progress bar."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from sdakd.files.generators import Opened
from sdakd.files.images import UnusableError
from sdakd.files.pictures import Bands, bands_of, beside, resized
from sdakd.progress import Progress, is_open
from sdakd_arch.inference.fast import Plain, accelerate
from sdakd_arch.inference.heap import freed_memory_kept
from sdakd_arch.inference.tiling import run_tiled, tiled_rows
from sdakd_arch.threads import choose_threads

PAD = 40  # tile_pad where the reach is longer or unknown; RRDBNet's hundreds of pixels are reach in name only
BUFFERS = 4  # tensors of the widest layer's size that are alive at once: input, output, activation, workspace
CPU_BYTES = 2 << 30  # for one tile's activations; larger tiles are not faster
SIDES = (32, 64, 128)  # of what is enlarged to find the best number of threads
ROUND = 0.05  # seconds that this takes before it is large enough
WORTH = 10  # seconds of work that repay it
SMALLEST = 32  # side of a tile below which running out of memory is final


def settle_threads(
    enhance: Callable[[np.ndarray], object], pixels: np.ndarray, whole: bool, images: int, say: Callable[[str], None]
) -> None:
    """Lets torch compute with the number of threads that is best here, if there is enough work to repay a second.

    Args:
        enhance: Enlarges an image on the CPU.
        pixels: The first image, of which a part is enlarged again and again.
        whole: Whether it has to be the whole of it.
        images: How many there are.
        say: Takes the line that tells what was found.
    """
    height, width = pixels.shape[:2]
    for side in (max(height, width),) if whole else SIDES:
        part = np.ascontiguousarray(pixels[:side, :side])
        begun = time.perf_counter()
        enhance(part)
        spent = time.perf_counter() - begun
        if spent > ROUND:
            break
    rows, columns = part.shape[:2]
    if spent * images * (height * width) / (rows * columns) > WORTH:
        choose_threads(lambda: enhance(part), each=f'for {columns}x{rows} pixels', say=say)


class Upscaler:
    """Enlarges images; other programs can use it where they expect ``realesrgan.RealESRGANer``, such as GFPGAN.

    Differences from that class: the bits of a pixel are told by the array's type and not by its brightest value; tiles
    are chosen to fit into the memory, begin where the network's blocks of pixels begin, overlap as far as the network
    reaches, and are kept as whole numbers; a tile that does not fit is halved, and never left out; images smaller than
    their padding are extended; opaque alpha stays opaque; nothing is printed.

    Args:
        opened: The network; its module is moved to the device and, with ``half``, converted.
        tile: Side of a tile in input pixels; 0 runs the image whole; None chooses by the memory.
        tile_pad: Context around a tile in input pixels; None takes the network's reach, and 40 where that is longer.
        pre_pad: Mirrored border at the right and at the bottom, in input pixels.
        half: Computes in float16.
        device: Where to compute.
    """

    def __init__(
        self,
        opened: Opened,
        tile: int | None = None,
        tile_pad: int | None = None,
        pre_pad: int = 0,
        half: bool = False,
        device: str | torch.device = 'cpu',
    ) -> None:
        half = half and getattr(opened.module, 'supports_half', True)
        self.scale, self.tile_size, self.pre_pad, self.half = opened.scale, tile, pre_pad, half
        self.device = torch.device(device)
        model = opened.module.eval().to(self.device)
        self.model = model.half() if half else model
        if self.device.type == 'cpu' and not half and opened.path.suffix != '.onnx':
            fast = accelerate(self.model)
            self.model = self.model if isinstance(fast, Plain) else fast
        network, family = opened.network or {}, opened.family
        self.tile_pad = min(family.reach(network) or PAD, PAD) if tile_pad is None else tile_pad
        self.multiple, self.grid, self.widest = opened.multiple, opened.grid, family.widest(network)
        self.tile_pad += -self.tile_pad % self.grid  # as run_tiled does

    def fitting_tile(self, height: int, width: int) -> int:
        """The tile's side for an image of this size: ``tile`` where it was given, else by the memory; 0: whole."""
        if self.tile_size is not None:
            return self.tile_size
        room = torch.cuda.mem_get_info(self.device)[0] // 2 if self.device.type == 'cuda' else CPU_BYTES
        pixels = room // (BUFFERS * self.widest * (2 if self.half else 4))
        if height * width <= pixels:
            return 0
        return max(math.isqrt(pixels) - 2 * self.tile_pad, SMALLEST)

    def _fitted(self, image: torch.Tensor, grey: bool, top: int) -> Iterator[torch.Tensor]:
        """:meth:`_in_tiles` with tiles that fit, of ``(1, 3, h, w)``; those that do not are halved from there on.

        Raises:
            UnusableError: The memory does not suffice, or half precision overflows.
        """
        height, width = image.shape[-2:]
        tile, done = self.fitting_tile(height, width), 0
        while True:
            try:
                for rows in self._in_tiles(image, tile, grey, top, done):
                    done += rows.shape[2] // self.scale
                    yield rows
                    del rows  # before the next are computed
                return
            except Exception as error:  # torch's, ONNX Runtime's and numpy's have no base class of their own in common
                if 'memory' not in str(error) and not isinstance(error, MemoryError):
                    raise
            # outside of the handler: the error's traceback would keep the tensors
            if self.tile_size is not None or 0 < tile <= SMALLEST:
                tiles = f'in tiles of {tile}' if tile else 'in one piece'
                raise UnusableError(
                    'failed', f'needs more memory {tiles} than there is; leave -t out or free some memory'
                )
            tile = (tile or max(height, width)) // 2
            if self.device.type == 'cuda':
                torch.cuda.empty_cache()

    def _in_tiles(self, image: torch.Tensor, tile: int, grey: bool, top: int, start: int) -> Iterator[torch.Tensor]:
        """The network's output from row ``start`` on, by rows of tiles: ``(1, 3 or 1, rows * scale, w * scale)``.

        It is on the CPU, in levels from 0 to ``top``: uint8, or the bits of uint16 as int16.
        """
        height, width = image.shape[-2:]
        tile += -tile % self.grid
        tiles = math.ceil((height - start) / tile) * math.ceil(width / tile) if tile else 1
        progress = Progress('tiles', tiles, 'tiles', shown=tiles > 1 and is_open())

        def network(part: torch.Tensor) -> torch.Tensor:
            with torch.no_grad(), freed_memory_kept():
                output = self.model(part).float()
            progress.step()
            if not all(map(math.isfinite, torch.stack(torch.aminmax(output)).tolist())):
                remedy = '; give --fp32' if self.half else ''
                raise UnusableError('failed', f'makes the network give values that are no numbers{remedy}')
            output = output.clamp_(0, 1)
            if grey:
                output = (output * output.new_tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)).sum(1, keepdim=True)
            output = output.mul_(top).round_()
            # int16 holds the bits of what numpy knows as uint16
            return (output.to(torch.uint8) if top == 255 else output.to(torch.int32).to(torch.int16)).cpu()

        with progress:
            if tile:
                yield from tiled_rows(network, image, self.scale, tile, self.tile_pad, self.multiple, start, self.grid)
            else:
                yield run_tiled(network, image, self.scale, multiple=self.multiple)

    def _run(self, image: np.ndarray, grey: bool) -> Iterator[np.ndarray]:
        """Enlarges ``(h, w, 3)``, RGB, uint8 or uint16, to rows of the same, or of ``(h, w)`` grey, from the top."""
        top = int(np.iinfo(image.dtype).max)
        height, width = image.shape[:2]
        least = 1 + max(self.pre_pad, self.multiple - 1)  # to be mirrored, an image must exceed its padding
        short = max(least - height, 0), max(least - width, 0)
        image = np.pad(image, ((0, short[0]), (0, short[1]), (0, 0)), mode='edge')
        dtype, parts = image.dtype, np.divide(image, np.float32(top), dtype=np.float32).transpose(2, 0, 1)
        tensor = torch.from_numpy(parts)[None].to(self.device)
        del image, parts  # the picture may be large
        tensor = tensor.half() if self.half else tensor
        tensor = F.pad(tensor, (0, self.pre_pad, 0, self.pre_pad), 'reflect')
        due = height * self.scale
        for rows in self._fitted(tensor, grey, top):
            part = rows[0, :, :due, : width * self.scale].permute(1, 2, 0).numpy().view(dtype)
            del rows
            due -= len(part)
            if len(part):
                yield part[..., 0] if grey else part
            del part

    def size_of(self, height: int, width: int, outscale: float | None = None) -> tuple[int, int]:
        """Height and width of the result of an image of this size."""
        if outscale is None or outscale == self.scale:
            return height * self.scale, width * self.scale
        return max(int(height * outscale), 1), max(int(width * outscale), 1)

    def enlarge_alpha(self, alpha: np.ndarray, alpha_upsampler: str = 'realesrgan') -> Bands:
        """Enlarges ``(h, w)`` by the network, which takes it for a grey image, or by bicubic interpolation."""
        shape = alpha.shape[0] * self.scale, alpha.shape[1] * self.scale
        if alpha.min() == alpha.max():  # a network would leave opaque images not quite so
            return bands_of(np.broadcast_to(alpha[:1, :1], shape))
        if alpha_upsampler == 'realesrgan':
            return Bands(shape, alpha.dtype, self._run(np.dstack([alpha] * 3), grey=True))
        return resized(bands_of(alpha), shape, cv2.INTER_CUBIC)

    def bands(self, img: np.ndarray, outscale: float | None = None, alpha_upsampler: str = 'realesrgan') -> Bands:
        """:meth:`enhance`, from the top to the bottom: rows are computed when they are asked for."""
        size = img.shape[0] * self.scale, img.shape[1] * self.scale
        if img.ndim == 2:
            made = Bands(size, img.dtype, self._run(np.dstack([img] * 3), grey=True))
        else:
            rows = map(lambda part: part[..., ::-1], self._run(img[..., 2::-1], grey=False))  # which holds no part
            made = Bands((*size, 3), img.dtype, rows)
            if img.shape[2] == 4:
                made = beside(made, self.enlarge_alpha(img[..., 3], alpha_upsampler))
        return resized(made, self.size_of(*img.shape[:2], outscale), cv2.INTER_LANCZOS4)

    def enhance(
        self, img: np.ndarray, outscale: float | None = None, alpha_upsampler: str = 'realesrgan'
    ) -> tuple[np.ndarray, str]:
        """Enlarges an image.

        Args:
            img: ``(h, w)`` grey, or ``(h, w, 3)`` or ``(h, w, 4)`` with BGR and alpha; uint8 or uint16.
            outscale: Factor between input and output; the network's where None. Lanczos interpolation does the rest.
            alpha_upsampler: ``realesrgan`` (the network) or ``bicubic``.

        Returns:
            The image, of the input's type and channels, and its kind: L, RGB or RGBA.

        Raises:
            UnusableError: The memory does not suffice, or half precision overflows.
        """
        mode = 'L' if img.ndim == 2 else {3: 'RGB', 4: 'RGBA'}[img.shape[2]]
        return self.bands(img, outscale, alpha_upsampler).whole(), mode
