"""RRDBNet (ESRGAN, Real-ESRGAN): dense blocks in residual blocks; for scale 2 and 1 on pixel-unshuffled input.

BasicSR's class has two enlargements. ESRGAN's models have as many as their scale wants, and some the further residuals
of ESRGAN+: these are :class:`sdakd_arch.esrgan_arch.ESRGAN`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from sdakd_arch.esrgan_arch import PlusBlock
from sdakd_arch.families.base import Family, State, register_family
from sdakd_arch.families.discriminators import unet
from sdakd_arch.inference.onednn import FastRRDBNet
from sdakd_arch.inference.regroup import regroup
from sdakd_arch.ncnn_graph import Graph, NcnnError, Placed, close

UNSHUFFLE = {2: 2, 1: 4}  # scale -> side of the blocks of input pixels that become channels
GROWTH = 32  # growth channels that programs built on spandrel take for granted
MODULATION = ('am_list.', 'de_net.', 'dd_embed.')  # what MM-RealSR has beside an RRDBNet
DEGREES = 512  # its channels of what it knows of an image's degradation


BRANCH = 0.2  # of every residual branch


@register_family
class RRDBNetFamily(Family):
    """See :class:`basicsr.archs.rrdbnet_arch.RRDBNet` and :class:`sdakd_arch.esrgan_arch.ESRGAN`."""

    types = ('RRDBNet', 'ESRGAN')
    channels = {'num_feat': 64, 'num_grow_ch': 32}
    examples = {'RRDBNet': {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3}}

    def rename(self, state: State) -> State:
        """From ESRGAN's two older namings: a Sequential's numbers; RRDB_trunk and HRconv. Without :func:`modulated`."""
        if any(key.startswith(MODULATION) for key in state):
            return unmodulated(state)
        if 'model.0.weight' in state and any(key.startswith('model.1.sub.') for key in state):
            trunk = max(int(key.split('.')[3]) for key in state if key.startswith('model.1.sub.'))
            names = {f'model.1.sub.{trunk}': 'conv_body', 'model.0': 'conv_first'}
            # behind the trunk: for each enlargement it, a convolution and an activation; then the last two convolutions
            last = max(int(key.split('.')[1]) for key in state)
            names |= {f'model.{3 * number}': f'conv_up{number}' for number in range(1, (last - 4) // 3 + 1)}
            names |= {f'model.{last - 2}': 'conv_hr', f'model.{last}': 'conv_last'}
            block = re.compile(r'model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d|1x1)(?:\.0)?')
        elif any(key.startswith('RRDB_trunk.') for key in state):
            names = {'trunk_conv': 'conv_body', 'HRconv': 'conv_hr'}
            names |= {key[:-7]: f'conv_up{key[6:-7]}' for key in state if re.fullmatch(r'upconv\d\.weight', key)}
            block = re.compile(r'RRDB_trunk\.(\d+)\.RDB(\d)\.conv(\d|1x1)')
        else:
            return state
        renamed = {}
        for key, tensor in state.items():
            module, _, kind = key.rpartition('.')
            found = block.fullmatch(module)
            module = 'body.{}.rdb{}.conv{}'.format(*found.groups()) if found else names.get(module, module)
            renamed[f'{module}.{kind}'] = tensor
        return renamed

    def infer(self, state: State) -> dict | None:
        """Unshuffling is told by 4 or 16 times as many channels at the input as at the output."""
        if not {'conv_first.weight', 'body.0.rdb1.conv1.weight', 'conv_last.weight'} <= state.keys():
            return None
        if any(key.startswith(MODULATION) for key in state):  # MM-RealSR itself
            return None
        features, channels = state['conv_first.weight'].shape[:2]
        colours = state['conv_last.weight'].shape[0]
        unshuffle = {4 * colours: 2, 16 * colours: 4}.get(channels, 1)
        ups = sum(re.fullmatch(r'conv_up\d+\.weight', key) is not None for key in state)
        plus = any('.conv1x1.' in key for key in state)
        options = _options(channels // unshuffle**2, colours, ups, unshuffle, plus)
        if options is None:
            return None
        options['num_feat'] = features
        options['num_block'] = len({int(key.split('.')[1]) for key in state if key.startswith('body.')})
        options['num_grow_ch'] = state['body.0.rdb1.conv1.weight'].shape[0]
        return options | ({'plus': True} if plus else {})

    def from_ncnn(self, graph: Graph) -> tuple[Placed, dict] | None:
        """RRDBNet joins maps; at scale 2 and 1 it unshuffles the pixels of its input."""
        if 'Concat' not in graph.kinds or 'PixelShuffle' in graph.kinds:
            return None
        source, unshuffle = graph.source, 1
        if layer := graph.find('Reorg', source):
            graph.use(layer)
            source, unshuffle = layer.outputs[0], layer.whole(0)
            if unshuffle not in (2, 4) or layer.number(1):
                raise NcnnError(f'its layer {layer} unshuffles by {unshuffle}, not by 2 or 4')
        placed: Placed = []

        def convolution(name: str, blob: str, inputs: int, active: bool) -> tuple[str, int]:
            layer, output, activation = graph.convolution(blob, inputs, name)
            placed.append((name, layer))
            if active and (activation is None or activation[0] != 'leakyrelu' or not close([activation[1]], [0.2])):
                raise NcnnError(f'LeakyReLU(0.2) does not follow {name} ({layer})')
            if not active and activation is not None:
                raise NcnnError(f'an activation follows {name} ({layer})')
            return output, layer.whole(0)

        first, features = convolution('conv_first', source, 3 * unshuffle**2, False)
        blob, blocks, growth = first, 0, 0
        while any(kind == 'Concat' and inputs[0] == blob for kind, inputs in graph.rest):
            start = blob
            for dense in (1, 2, 3):
                inner, joined, width, parts = blob, blob, features, [blob]
                for number in (1, 2, 3, 4, 5):
                    name = f'body.{blocks}.rdb{dense}.conv{number}'
                    inner, channels = convolution(name, joined, width, number < 5)
                    growth = growth or channels
                    if channels != (growth if number < 5 else features):
                        raise NcnnError(f'{name} makes {channels} channels')
                    if number < 5:
                        parts.append(inner)
                        layer = graph.take('Concat', *parts, wanted=f'the input of {name[:-1]}{number + 1}')
                        if layer.number(0):
                            raise NcnnError(f'its layer {layer} does not join channels')
                        joined, width = layer.outputs[0], width + channels
                blob = graph.add(inner, blob, BRANCH, f'the residual of body.{blocks}.rdb{dense}')
            blob = graph.add(blob, start, BRANCH, f'the residual of body.{blocks}')
            blocks += 1
        blob, channels = convolution('conv_body', blob, features, False)
        blob = graph.add(blob, first, 1.0, 'the residual around the body')
        ups = 0
        while graph.find('Interp', blob):
            ups += 1
            blob = graph.enlarge(blob, 2.0, f'the enlargement before conv_up{ups}')
            blob, channels = convolution(f'conv_up{ups}', blob, channels, True)
        for name, active in (('conv_hr', True), ('conv_last', False)):
            blob, channels = convolution(name, blob, channels, active)
        if channels != 3:
            raise NcnnError(f'its output has {channels} channels where RGB has 3')
        graph.end(blob)
        network = _options(3, 3, ups, unshuffle, False)
        if network is None:
            raise NcnnError(f'it unshuffles by {unshuffle} and enlarges {2**ups} times after that')
        return placed, network | {'num_feat': features, 'num_block': blocks, 'num_grow_ch': growth}

    def published_discriminator(self, network: Mapping) -> dict:
        return unet(network)

    def trunk(self, network: nn.Module) -> list[str]:
        """The residual in residual dense blocks."""
        return [f'body.{index}' for index in range(len(network.body))]

    def initialise(self, network: nn.Module) -> None:
        """Lets a network begin as the image that it enlarges, a choice of this project.

        RRDBNet adds nothing to an enlarged input, unlike SRVGGNetCompact, so with BasicSR's weights a narrow student
        has to learn first what an image is: it stays behind bicubic interpolation for more than 1,000 steps. Here its
        first channels, one a colour, carry the pixels: each layer outside the trunk passes them on, the trunk adds zero
        to them and the last layer reads nothing else. The output at the start is exactly the image with every pixel
        repeated, 4 x 4 times at scale 4, because leaky ReLU leaves values in [0, 1] as they are. The other weights of
        these layers are random, of a size that keeps the signal behind leaky ReLU (He et al., arXiv 1502.01852, section
        2.2), ten times smaller in the trunk's last layer; the trunk keeps BasicSR's. Every parameter has a gradient
        from the second step on.

        A network of scale 2 or 1 gets its image as blocks of 2 x 2 or 4 x 4 pixels, one channel a pixel of the block,
        and begins as the blocks' means, enlarged: an image of equal blocks, such as a checkerboard, has constant
        channels, from which enlargement and convolutions make a constant image only, so no weights give its pixels
        back.
        """
        colours = network.conv_last.out_channels
        block = network.conv_first.in_channels // colours  # pixels of a block
        if network.conv_body.out_channels < colours:
            return
        ups = [layer for name, layer in network.named_children() if name.startswith('conv_up')]
        passing = (network.conv_first, *ups, network.conv_hr, network.conv_last)
        for convolution in (*passing, network.conv_body):
            nn.init.kaiming_normal_(convolution.weight, a=network.lrelu.negative_slope)
            nn.init.zeros_(convolution.bias)
            convolution.weight[:colours] = 0
        network.conv_body.weight.mul_(0.1)
        for colour in range(colours):
            network.conv_first.weight[colour, colour * block : (colour + 1) * block, 1, 1] = 1 / block
            for convolution in passing[1:]:
                convolution.weight[colour, colour, 1, 1] = 1

    def multiple(self, network: nn.Module) -> int:
        """The side of the blocks of pixels that become channels."""
        return _unshuffle(network)

    def accelerated(self, network: nn.Module, dtype: torch.dtype) -> nn.Module | None:
        return None if _is_plus(network) else FastRRDBNet(network, dtype, _unshuffle(network))

    def portable(self, network: nn.Module) -> nn.Module:
        """With torch's own operator for pixel-unshuffling, which exporters know."""
        if getattr(network, 'scale', None) not in UNSHUFFLE:
            return network
        behind = copy.copy(network)
        behind.scale = 4  # its forward leaves the unshuffling to the operator before it
        return nn.Sequential(nn.PixelUnshuffle(UNSHUFFLE[network.scale]), behind)

    def regrouped(self, network: nn.Module, runtime: str) -> nn.Module:
        return network if _is_plus(network) else regroup(network, runtime)

    def common(self, network: Mapping, state: State) -> tuple[dict, State]:
        """ESRGAN+ with ESRGAN's first names: programs built on spandrel know its further convolutions by them alone."""
        if not network.get('plus'):
            return dict(network), state
        ups = len({key.split('.')[0] for key in state if key.startswith('conv_up')})
        names = {'conv_first': 'model.0', 'conv_body': f'model.1.sub.{network.get("num_block", 23)}'}
        names |= {f'conv_up{number}': f'model.{3 * number}' for number in range(1, ups + 1)}
        names |= {'conv_hr': f'model.{3 * ups + 2}', 'conv_last': f'model.{3 * ups + 4}'}
        renamed = {}
        for key, tensor in state.items():
            module, _, kind = key.rpartition('.')
            found = re.fullmatch(r'body\.(\d+)\.rdb(\d)\.conv(\d|1x1)', module)
            place = 'model.1.sub.{}.RDB{}.conv{}'.format(*found.groups()) if found else names[module]
            renamed[f'{place}{".0" * bool(found and found[3] != "1x1")}.{kind}'] = tensor
        return dict(network), renamed

    def catalogue(self, network: Mapping) -> tuple[str, list[str]]:
        growth = network.get('num_grow_ch', GROWTH)
        size = [f'{network.get("num_feat", 64)}nf', f'{network.get("num_block", 23)}nb']
        return 'esrgan+' if network.get('plus') else 'esrgan', size + ([f'{growth}gc'] if growth != GROWTH else [])

    def is_padded(self, names: Iterable[str]) -> bool:
        """By what :func:`modulated` adds."""
        return any(name.startswith(MODULATION) for name in names)

    def padded(self, network: Mapping, state: State) -> tuple[dict, State]:
        """As MM-RealSR, of which spandrel reads the growth channels; else with 32 of them, most of them zero."""
        growth = network.get('num_grow_ch', GROWTH)
        if growth == GROWTH:
            raise ValueError(f'has {growth} growth channels already and opens as it is, or with --to safetensors')
        if network['type'] == 'RRDBNet' and network.get('scale', 4) == 4:
            return dict(network), modulated(state)
        if growth > GROWTH:
            raise ValueError(f'has {growth} growth channels already and cannot be padded to {GROWTH}')
        return {**network, 'num_grow_ch': GROWTH}, widen_growth(state)


def _options(taken: int, given: int, ups: int, unshuffle: int, plus: bool) -> dict | None:
    """Type, channels and scale: BasicSR's class where it can be the network; None where that shrinks its input."""
    options = {'num_in_ch': taken, 'num_out_ch': given}
    if ups == 2 and not plus:
        return {'type': 'RRDBNet', **options, 'scale': 4 // unshuffle}
    scale = 2**ups // unshuffle
    return {'type': 'ESRGAN', **options, 'upscale': scale, 'unshuffle': unshuffle} if scale else None


def _unshuffle(network: nn.Module) -> int:
    """Side of the blocks of pixels that become channels."""
    return getattr(network, 'unshuffle', None) or UNSHUFFLE.get(getattr(network, 'scale', 4), 1)


def _is_plus(network: nn.Module) -> bool:
    return any(isinstance(module, PlusBlock) for module in network.modules())


def widen_growth(state: State, growth: int = GROWTH) -> State:
    """RRDBNet's state dict with more growth channels that are always zero, for the same output.

    The dense block's convolution number k (1 to 5) reads the features and the k - 1 growths before it. The additional
    channels have zero weights and zero bias, LeakyReLU keeps their zeros, and what reads them has zero weights too.
    """
    narrow = state['body.0.rdb1.conv1.weight'].shape[0]
    widened = dict(state)
    for key, tensor in state.items():
        found = re.fullmatch(r'body\.\d+\.rdb\d\.conv(\d|1x1)\.(weight|bias)', key)
        if not found:
            continue
        number = 1 if found[1] == '1x1' else int(found[1])
        outputs = tensor.shape[0] if number == 5 else growth
        if found[2] == 'bias':
            widened[key] = tensor.new_zeros(outputs)
            widened[key][: tensor.shape[0]] = tensor
            continue
        features = tensor.shape[1] - (number - 1) * narrow
        wide = tensor.new_zeros(outputs, features + (number - 1) * growth, *tensor.shape[2:])
        wide[: tensor.shape[0], :features] = tensor[:, :features]
        for before in range(number - 1):
            old, new = features + before * narrow, features + before * growth
            wide[: tensor.shape[0], new : new + narrow] = tensor[:, old : old + narrow]
        widened[key] = wide
    return widened


def modulated(state: State) -> State:
    """The weights of an MM-RealSR (Mou et al., ECCV 2022) with the same output, for RRDBNet of scale 4.

    MM-RealSR is an RRDBNet that multiplies the features behind every block by ``1 + gamma`` and adds ``beta``, both
    made by linear layers of the degradation that a small network estimates. All of these are zero here, so gamma and
    beta are, and the estimating network has one channel. The zeros are one number in memory, and so in a ``.pth``.
    """
    features, taken = state['conv_first.weight'].shape[:2]
    blocks = len({key.split('.')[1] for key in state if key.startswith('body.')})
    hidden = (DEGREES + 2 * features) // 2
    shapes = {'de_net.conv_first.0': (1, taken, 3, 3), 'de_net.body.0.0.conv1': (1, 1, 3, 3)}
    shapes |= {'de_net.body.0.0.conv2': (1, 1, 3, 3), 'de_net.fc_degree.0.0': (DEGREES, 1)}
    shapes |= {'de_net.fc_degree.0.2': (1, DEGREES), 'dd_embed.0': (DEGREES, 1)}
    for block in range(blocks):
        shapes |= {f'am_list.{block}.fc.0': (hidden, DEGREES), f'am_list.{block}.fc.2': (hidden, hidden)}
        shapes |= {f'am_list.{block}.fc.4': (2 * features, hidden)}
    zero = state['conv_first.weight'].new_zeros(1)
    zeros = {f'{key}.weight': zero.expand(shape) for key, shape in shapes.items()}
    return {**state, **zeros, **{f'{key}.bias': zero.expand(shape[0]) for key, shape in shapes.items()}}


def unmodulated(state: State) -> State:
    """The RRDBNet in what :func:`modulated` gives; an MM-RealSR that does modulate stays as it is."""
    last = [tensor for key, tensor in state.items() if re.fullmatch(r'am_list\.\d+\.fc\.4\.(weight|bias)', key)]
    if not last or any(tensor.any() for tensor in last):
        return state
    return {key: tensor for key, tensor in state.items() if not key.startswith(MODULATION)}
