"""Writes a placebo of a teacher: RRDBNet's weights in random order, tensor by tensor, with layers as large as before.

    python test_scripts/placebo_teacher.py RealESRGAN_x4plus.pth PHOTOGRAPH placebo.pth

Shuffled weights alone let the signal explode within a few blocks. So every convolution is scaled until the standard
deviation of its output on the photograph, reduced to a quarter, is the teacher's. A student that gains as much from
this network as from the teacher gains nothing that the teacher knows.
"""

import argparse
import sys
from functools import partial

from common import compat


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('teacher')
    parser.add_argument('photograph')
    parser.add_argument('output')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    compat.import_basicsr()
    import torch
    from torch import nn
    from torch.nn import functional as F

    from sdakd.files.images import read_image
    from sdakd_arch.weights import infer_network, read_weights, save_whole
    from sdakd_arch.width import build

    state = read_weights(args.teacher, where='teacher')
    teacher, placebo = (build(infer_network(state), 'teacher') for _ in range(2))
    generator = torch.Generator().manual_seed(args.seed)
    teacher.load_state_dict(state)
    placebo.load_state_dict(
        {k: v.flatten()[torch.randperm(v.numel(), generator=generator)].view_as(v) for k, v in state.items()}
    )
    image = torch.from_numpy(read_image(args.photograph)[:256, :256, ::-1].copy()).permute(2, 0, 1)[None].float() / 255
    image = F.avg_pool2d(image, 4)
    sizes: dict[str, torch.Tensor] = {}

    def remember(name: str, _module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        sizes[name] = output.std()

    def scale(name: str, module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        ratio = sizes[name] / output.std()
        for parameter in module.parameters():
            parameter.mul_(ratio)
        return output * ratio

    with torch.no_grad():
        for network, hook in ((teacher, remember), (placebo, scale)):
            for name, module in network.named_modules():
                if isinstance(module, nn.Conv2d):
                    module.register_forward_hook(partial(hook, name))
            network(image)
    save_whole({'params': placebo.state_dict()}, args.output)
    return 0


if __name__ == '__main__':
    sys.exit(main())
