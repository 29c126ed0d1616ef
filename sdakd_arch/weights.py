"""Weights files: what teachers and students come in, which network they hold, and writing them whole."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from sdakd.compat import UserError
from sdakd_arch.ncnn_file import is_ncnn, read_ncnn

State = dict[str, torch.Tensor]


class DescribedState(State):
    """A state dict whose file says which network it is.

    Args:
        state: Names and tensors.
        network: The network's options as BasicSR's ``build_network`` takes them.
    """

    def __init__(self, state: State, network: dict) -> None:
        super().__init__(state)
        self.network = network


def read_weights(path: str | os.PathLike, param_key: str | None = None, where: str = 'weights') -> State:
    """Reads a state dict, with plain float32 tensors on the CPU and today's key names.

    Accepts ``.safetensors``; ``.pth`` with the tensors under ``params_ema``, ``params`` or ``state_dict``, or bare;
    keys with DataParallel's ``module.`` in front; ESRGAN's two older namings of RRDBNet; and ncnn's ``.param`` and
    ``.bin``, named by either, which tell their network (:class:`DescribedState`).

    Args:
        path: The file.
        param_key: The key to read; where it is not in the file, or None, the others are tried in the order above.
        where: Key of the option file to name in an error.

    Raises:
        UserError: Missing or unreadable file, pickled objects other than tensors, or no tensors under a known key.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'{where}: the file {path} does not exist.')
    if is_ncnn(path):
        return DescribedState(*read_ncnn(path, where))
    try:
        if path.suffix == '.safetensors':
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch, zipfile, pickle and safetensors each raise their own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        if re.search('weights[_ ]only', reason[0], re.IGNORECASE):  # torch advises to let the file run its code
            reason = ['it is no checkpoint, or holds objects other than tensors, which could run code']
        raise UserError(f'{where}: {path} cannot be read as a weights file ({reason[0][:200]}).') from None
    if not isinstance(content, Mapping):
        raise UserError(f'{where}: {path} holds a {type(content).__name__}, not a dictionary of tensors.')
    for key in (param_key, 'params_ema', 'params', 'state_dict'):
        if key in content and isinstance(content[key], Mapping):
            content = content[key]
            break
    state = {
        key.removeprefix('module.'): (tensor.detach().float() if tensor.is_floating_point() else tensor.detach())
        for key, tensor in content.items()
        if isinstance(key, str) and isinstance(tensor, torch.Tensor)
    }
    if not state:
        found = ', '.join(map(str, list(content)[:6])) or 'nothing'
        raise UserError(
            f'{where}: {path} holds no tensors under params_ema, params, state_dict or bare; found {found}.'
        )
    return _modern_keys(state)


def _modern_keys(state: State) -> State:
    """Renames ESRGAN's older RRDBNet keys (a Sequential's numbers; RRDB_trunk and HRconv) to BasicSR's."""
    if 'model.0.weight' in state and any(key.startswith('model.1.sub.') for key in state):
        trunk = max(int(key.split('.')[3]) for key in state if key.startswith('model.1.sub.'))
        names = {f'model.1.sub.{trunk}': 'conv_body', 'model.0': 'conv_first', 'model.3': 'conv_up1'}
        names |= {'model.6': 'conv_up2', 'model.8': 'conv_hr', 'model.10': 'conv_last'}
        if 'model.10.weight' not in state:  # the x2 layout has one upsampling less, which RRDBNet cannot express
            return state
        block = re.compile(r'model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0')
    elif any(key.startswith('RRDB_trunk.') for key in state):
        names = {'trunk_conv': 'conv_body', 'upconv1': 'conv_up1', 'upconv2': 'conv_up2', 'HRconv': 'conv_hr'}
        block = re.compile(r'RRDB_trunk\.(\d+)\.RDB(\d)\.conv(\d)')
    else:
        return state
    renamed = {}
    for key, tensor in state.items():
        module, _, kind = key.rpartition('.')
        found = block.fullmatch(module)
        module = 'body.{}.rdb{}.conv{}'.format(*found.groups()) if found else names.get(module, module)
        renamed[f'{module}.{kind}'] = tensor
    return renamed


def infer_network(state: State) -> dict | None:
    """The options of the generator or discriminator that a state dict belongs to, or None where they cannot be told.

    Known are RRDBNet (scale 4, 2 or 1 from the channels of its pixel-unshuffled input), SRVGGNetCompact with PReLU (a
    network with ReLU and one with LeakyReLU look the same in a file), UNetDiscriminatorSN, GCFSR, GCFSRBlind and
    GCFSRDiscriminator (all with the usual blur, which no file holds). A :class:`DescribedState` says it itself.
    """
    if isinstance(state, DescribedState):
        return dict(state.network)
    if 'condition_scale1.0.weight' in state or 'conv_body.1.conv1.0.weight' in state:
        return _infer_gcfsr(state)
    if all(key in state for key in ('conv_first.weight', 'body.0.rdb1.conv1.weight', 'conv_last.weight')):
        first = state['conv_first.weight']
        unshuffled = {3: 4, 12: 2, 48: 1}.get(first.shape[1])
        blocks = {int(key.split('.')[1]) for key in state if key.startswith('body.')}
        if unshuffled is None:
            return None
        return {
            'type': 'RRDBNet',
            'num_in_ch': 3,
            'num_out_ch': state['conv_last.weight'].shape[0],
            'scale': unshuffled,
            'num_feat': first.shape[0],
            'num_block': len(blocks),
            'num_grow_ch': state['body.0.rdb1.conv1.weight'].shape[0],
        }
    # by number: a .safetensors file sorts its keys as text, body.10 before body.2
    numbers = sorted(int(found[1]) for key in state if (found := re.fullmatch(r'body\.(\d+)\.weight', key)))
    body = [state[f'body.{number}.weight'] for number in numbers]
    if numbers[:2] == [0, 1] and body[0].dim() == 4 and body[1].dim() == 1:
        convs = [tensor for tensor in body if tensor.dim() == 4]
        return {
            'type': 'SRVGGNetCompact',
            'num_in_ch': convs[0].shape[1],
            'num_out_ch': 3,
            'num_feat': convs[0].shape[0],
            'num_conv': len(convs) - 2,
            'upscale': round((convs[-1].shape[0] / 3) ** 0.5),
            'act_type': 'prelu',
        }
    if 'conv0.weight' in state and 'conv8.weight_orig' in state:
        return {
            'type': 'UNetDiscriminatorSN',
            'num_in_ch': state['conv0.weight'].shape[1],
            'num_feat': state['conv0.weight'].shape[0],
            'skip_connection': True,
        }
    return None


def _infer_gcfsr(state: State) -> dict | None:
    """The options of a network of GCFSR; None for StyleGAN2's own discriminator, which joins batch statistics in."""
    generator = 'condition_scale1.0.weight' in state
    body, first = ('conv_body_down', 'conv_body_first.0.weight') if generator else ('conv_body', 'conv_body.0.0.weight')
    modulation = 'style_conv1.modulated_conv.modulation.weight'
    needed = {first, 'final_conv.0.weight', *((modulation, 'final_linear.weight') if generator else ())}
    if not needed <= state.keys():
        return None
    shape = state['final_conv.0.weight'].shape
    if shape[0] != shape[1]:
        return None
    stages = {int(found[1]) for key in state if (found := re.match(rf'{body}\.(\d+)\.', key))}
    out_size = 1 << len(stages) + (4 if generator else 1)
    narrow = shape[0] / 512
    network = {
        'out_size': out_size,
        'channel_multiplier': state[first].shape[0] * out_size / 16384 / narrow if out_size > 32 else 2,
        'narrow': narrow,
    }
    network = {key: int(value) if value == int(value) else value for key, value in network.items()}
    if not generator:
        return {'type': 'GCFSRDiscriminator', **network}
    blind = state['final_linear.weight'].shape[1] == 16 * shape[0]
    style = {'num_style_feat': state[modulation].shape[1]}
    return {'type': 'GCFSRBlind' if blind else 'GCFSR', **network, **style}


def load_into(network: nn.Module, state: State, path: str | os.PathLike, where: str) -> None:
    """Loads a state dict strictly.

    Raises:
        UserError: Keys or shapes differ; the message says which network the file holds, where that can be told.
    """
    own = network.state_dict()
    missing, extra = own.keys() - state.keys(), state.keys() - own.keys()
    shapes = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    if missing or extra or shapes:
        found, want = infer_network(state), infer_network(own)
        found, want = found and describe(found), describe(want) if want else type(network).__name__
        if found is not None and found != want:
            holds = f'it holds {found}'
        else:
            example = sorted(missing or extra or shapes)[0]
            counts = f'{len(missing)} keys are missing, {len(extra)} unknown, {len(shapes)} of another shape'
            holds = f'{counts}, such as {example}'
        raise UserError(f'{where}: {path} does not fit {want}: {holds}.')
    network.load_state_dict(state)


def describe(network: Mapping) -> str:
    """One line for people: type and the numbers that matter."""
    shown = {k: v for k, v in network.items() if k not in ('type', 'num_in_ch', 'num_out_ch', 'skip_connection')}
    return f'{network["type"]}(' + ', '.join(f'{k}={v}' for k, v in shown.items()) + ')'


def fingerprint(network: nn.Module) -> str:
    """SHA-256 over names and bytes of a network's state, to tell whether two are the same."""
    digest = hashlib.sha256()
    for key, tensor in network.state_dict().items():
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_whole(content: object, path: str | os.PathLike) -> None:
    """``torch.save`` to a temporary file beside ``path``, renamed when complete: a reader never meets half a file."""
    path = Path(path)
    partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    try:
        torch.save(content, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
