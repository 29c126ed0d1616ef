"""How fast `sdakd upscale` is with videos: the whole command beside the network alone, in one process.

    python test_scripts/video_speed.py -m sdakd/pretrained/demo_student_x4.pth --size 320x180 640x360 --threads 2

The clips are made of the photographs of scikit-image, moving and zooming, by libx264. The network alone is the same
frames, enlarged from memory to memory one after the other. Both take turns, and a median is shown.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.append(str(Path(__file__).parents[1]))
from sdakd import compat  # noqa: E402

compat.import_basicsr()
import torch  # noqa: E402

from sdakd.commands.upscale import upscale  # noqa: E402
from sdakd.commands.upscale.upscaler import Upscaler  # noqa: E402
from sdakd.files.generators import open_network  # noqa: E402
from sdakd.files.results import table  # noqa: E402

sys.path.pop()


def clip(path: Path, width: int, height: int, frames: int) -> list[np.ndarray]:
    """Writes a clip and returns its frames as they are decoded, BGR."""
    import av
    from skimage import data

    picture = np.ascontiguousarray(data.chelsea())
    with av.open(str(path), 'w') as output:
        stream = output.add_stream('libx264', rate=24, options={'crf': '18'})
        stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
        for number in range(frames):
            zoom = 1 + number / frames
            move = np.float32([[zoom * width / 400, 0, -2 * number], [0, zoom * width / 400, -number]])
            seen = cv2.warpAffine(picture, move, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(seen, 'rgb24')))
        output.mux(stream.encode(None))
    with av.open(str(path)) as source:
        return [frame.to_ndarray(format='bgr24') for frame in source.decode(video=0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-m', '--models', nargs='+', default=['sdakd/pretrained/demo_student_x4.pth'])
    parser.add_argument('--size', nargs='+', default=['320x180', '640x360'])
    parser.add_argument('--frames', type=int, default=60, help='of a clip of 320x180; larger ones have fewer')
    parser.add_argument('--presets', nargs='+', default=['medium', 'veryfast'])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--threads', type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for model in options.models:
        upscaler = Upscaler(open_network(model))
        for size in options.size:
            width, height = map(int, size.split('x'))
            with tempfile.TemporaryDirectory() as folder:
                count = max(options.frames * 320 * 180 // (width * height), 10)
                frames = clip(Path(folder, 'in.mp4'), width, height, count)
                upscaler.enhance(frames[0])
                alone: list[float] = []
                whole: dict[str, list[float]] = {preset: [] for preset in options.presets}
                for _ in range(options.rounds):
                    begun = time.perf_counter()
                    for frame in frames:
                        upscaler.enhance(frame)
                    alone.append(count / (time.perf_counter() - begun))
                    for preset in options.presets:
                        begun = time.perf_counter()
                        with contextlib.redirect_stderr(io.StringIO()):
                            upscale(Path(folder, 'in.mp4'), Path(folder, f'{preset}.mp4'), model=model, preset=preset,
                                    threads=options.threads)  # fmt: skip
                        whole[preset].append(count / (time.perf_counter() - begun))
            base = statistics.median(alone)
            for preset, rates in whole.items():
                rate = statistics.median(rates)
                share = f'{100 * rate / base:.0f}'
                rows.append([Path(model).stem, size, str(count), preset, f'{base:.2f}', f'{rate:.2f}', share])
                print(rows[-1], file=sys.stderr)
    header = ['model', 'clip', 'frames', '--preset', 'network alone, frames/s', 'command, frames/s', '%']
    print(table(header, rows, 'md'))


if __name__ == '__main__':
    main()
