"""Weights files: what teachers and students come in, which network they hold, and writing them whole."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from sdakd.compat import UserError, no_file, replacing
from sdakd_arch.families import DescribedState, infer_network, modern_keys
from sdakd_arch.file_kinds import AGAIN, kind_of, unreadable
from sdakd_arch.ncnn_file import is_ncnn, read_ncnn

State = dict[str, torch.Tensor]
_load = torch.load

# under which keys the weights of a generator lie, in the order in which they are tried: BasicSR, neosr and traiNNer,
# KAIR, Lightning and other training programs
SECTIONS = (
    'params_ema', 'params-ema', 'params', 'state_dict', 'model_state_dict', 'model', 'net', 'net_g_ema', 'net_g',
    'netG', 'generator', 'g_ema',
)  # fmt: skip
WRAPPERS = ('module.', '_orig_mod.')  # what DataParallel and torch.compile put in front of names
PREFIXES = ('netG.', 'net_g.', 'generator.', 'model.', 'net.', 'network.')  # what training programs do
# beginnings of what lies beside a generator in the state of a training
COMPANIONS = re.compile(
    r'(net_?[df]|discriminator|criterion|cri_\w+|\w*loss\w*|perceptual\w*|vgg|lpips)\.', re.IGNORECASE
)


def load_tensors(path: str | os.PathLike, where: str, **options: object) -> object:
    """``torch.load`` without executing anything, whatever torch's default and its environment variables say.

    Args:
        path: The file.
        where: Flag or key to name in an error.
        options: Of ``torch.load``.

    Raises:
        UserError: It cannot be read, or holds objects other than tensors and plain values.
    """
    if reason := no_file(path):
        raise UserError(where, f'the file {path} {reason}.')
    try:
        kind_of(path, where)
        if tarfile.is_tarfile(path):  # torch before 2.6 unpacks this old format onto the disk
            raise UserError(where, f'{path} is a tar archive, as torch wrote before 0.4; save it anew with torch.save.')
        options = {'map_location': 'cpu', **options, 'weights_only': True}
        with warnings.catch_warnings(), contextlib.ExitStack() as stack:
            warnings.simplefilter('ignore')  # that another program has written it
            # newer torch looks at the ending of a path, which may be wrong
            wrong = os.fspath(path).endswith('.safetensors')
            return _load(stack.enter_context(open(path, 'rb')) if wrong else path, **options)
    except UserError:
        raise
    except Exception as error:  # torch, zipfile and pickle each raise their own
        raise _unreadable(path, where, error) from None


def _unreadable(path: str | os.PathLike, where: str, error: Exception) -> UserError:
    text = str(getattr(error, 'strerror', None) or error).strip()
    reason = (text.splitlines() or [type(error).__name__])[0][:200]
    if re.search('weights[_ ]only', reason, re.IGNORECASE):  # torch advises to let the file run its code
        named = re.search(r'GLOBAL ([\w.]+)', text)
        if named:
            reason = f'it holds {named[1][:100]}, which could run code; save the state_dict of the network alone'
        else:
            reason = f'it is no checkpoint, or a damaged one; {AGAIN}'
    return unreadable(path, where, reason)


@contextlib.contextmanager
def tensors_only(where: str) -> Iterator[None]:
    """While it lasts, whoever calls ``torch.load`` gets :func:`load_tensors`.

    For code of other packages that loads files itself: BasicSR's VGG and networks, torchvision's, GFPGAN, facexlib,
    lpips and torch-fidelity. Before torch 2.6 their calls execute what a pickle asks for, and some always do. A file
    with values that are no numbers is refused (:func:`check_finite`).

    Args:
        where: Flag or key to name in an error.
    """

    @functools.wraps(_load)
    def load(file, map_location=None, pickle_module=None, **options):
        if not isinstance(file, str | os.PathLike):
            return _load(file, map_location, **{**options, 'weights_only': True})
        content = load_tensors(file, where, map_location=map_location, **options)
        check_finite(content, file, where)
        return content

    before, torch.load = torch.load, load
    try:
        yield
    finally:
        torch.load = before


def first_not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor that holds NaN or infinity as float32, None where none does."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            least, most = tensor.detach().float().aminmax()  # both are NaN where one value is; no copy in memory
            if not (torch.isfinite(least) and torch.isfinite(most)):
                return name
    return None


def check_finite(content: object, path: str | os.PathLike, where: str) -> None:
    """Checks that the weights in a file are numbers, once it is read; NaN spreads to all that a network gives.

    Args:
        content: Tensors by name, also below further names such as ``params_ema``; anything else is passed over.
        path, where: The file and its flag or key, to name in an error.

    Raises:
        UserError: A value is NaN or infinite, or is so as float32.
    """
    if (name := first_not_finite(_tensors(content))) is not None:
        raise UserError(
            where,
            f'{path} is damaged or was saved by a training that diverged: its tensor {name} is not finite (NaN or '
            'infinity); take another file, such as an earlier checkpoint.',
        )


def _tensors(content: object, prefix: str = '') -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(content, torch.Tensor):
        yield prefix, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors(value, f'{prefix}:{key}' if prefix else str(key))


def read_weights(path: str | os.PathLike, param_key: str | None = None, where: str = 'weights') -> State:
    """Reads a state dict, with plain float32 tensors on the CPU and today's key names.

    Accepts safetensors and what torch saves, whatever their names end in, with the tensors under a key of
    :data:`SECTIONS` or bare; keys with a prefix of :data:`WRAPPERS` or :data:`PREFIXES` in front; ESRGAN's two older
    namings of RRDBNet; and ncnn's ``.param`` and ``.bin``, named by either, which tell their network
    (:class:`DescribedState`).

    Args:
        path: The file.
        param_key: The key to read; where it is not in the file, or None, those of :data:`SECTIONS` are tried in order.
        where: Key of the option file to name in an error.

    Raises:
        UserError: Missing or unreadable file, pickled objects other than tensors, no tensors under a known key, or
            values that are not finite.
    """
    path = Path(path)
    if reason := no_file(path):
        raise UserError(where, f'the file {path} {reason}.')
    if is_ncnn(path):
        state = DescribedState(*read_ncnn(path, where))
        check_finite(state, path, where)
        return state
    kind = kind_of(path, where)
    if kind == 'onnx':
        raise unreadable(path, where, 'it is an ONNX graph; give .pth or .safetensors, or let its name end in .onnx')
    if kind == 'safetensors':
        from safetensors.torch import load_file

        try:
            content: object = load_file(path)
        except Exception as error:  # a kind of its own, or the system's
            raise _unreadable(path, where, error) from None
    else:
        content = load_tensors(path, where)
    if not isinstance(content, Mapping):
        raise UserError(f'{where}: {path} holds a {type(content).__name__}, not a dictionary of tensors.')
    content, sections = _unwrapped(content, param_key)
    state = {
        key: (tensor.detach().float() if tensor.is_floating_point() else tensor.detach())
        for key, tensor in content.items()
        if isinstance(key, str) and isinstance(tensor, torch.Tensor)
    }
    if not state:
        found = ', '.join(map(str, list(content)[:6])) or 'nothing'
        raise UserError(
            f'{where}: {path} holds no tensors under {", ".join(SECTIONS[:4])} or another known key, or bare; found '
            f'{found}.'
        )
    named = state
    for section in reversed(sections):
        named = {section: named}
    check_finite(named, path, where)
    return _plain_names(state)


def stored_names(path: str | os.PathLike, where: str = 'weights') -> list[str]:
    """The names of a file's tensors as they are in it, without the key that they lie under; empty for graphs.

    Raises:
        UserError: It cannot be read.
    """
    if is_ncnn(path) or (kind := kind_of(path, where)) == 'onnx':
        return []
    if kind == 'safetensors':
        from safetensors import safe_open

        with safe_open(path, 'pt') as file:
            return list(file.keys())
    return [str(key) for key in _unwrapped(load_tensors(path, where), None)[0]]


def _unwrapped(content: Mapping, param_key: str | None) -> tuple[Mapping, list[str]]:
    """The innermost mapping that holds a generator's tensors, and the keys that lead to it."""
    sections: list[str] = []
    while len(sections) < 4:
        inner = {key: value for key, value in content.items() if isinstance(value, Mapping) and value}
        key = next((key for key in (param_key, *SECTIONS) if key in inner), None)
        if key is None and len(content) == 1:
            key = next(iter(inner), None)
        if key is None or any(isinstance(value, torch.Tensor) for value in content.values()):
            break
        content = inner[key]
        sections.append(str(key))
    return content, sections


def _plain_names(state: State) -> State:
    """A state dict without what training programs put in front of its names, and with today's names.

    A prefix of :data:`PREFIXES` goes only where a known network appears behind it and nothing of a network's own is
    left out: the names of an architecture that nobody knows may begin so.
    """
    for prefix in WRAPPERS:
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    state.pop('n_averaged', None)  # torch's counter beside averaged weights
    modern = modern_keys(state)
    if infer_network(modern) is None:
        for prefix in PREFIXES:
            part = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
            others = (key for key in state if not key.startswith(prefix))
            if part and all(map(COMPANIONS.match, others)) and infer_network(named := _plain_names(part)) is not None:
                return named
    return modern


def load_into(network: nn.Module, state: State, path: str | os.PathLike, where: str) -> None:
    """Loads a state dict strictly.

    Raises:
        UserError: Keys or shapes differ; the message says which network the file holds, where that can be told.
    """
    own = network.state_dict()
    for prefix in PREFIXES:  # a wrapper around a known network keeps the names that were taken for a program's
        if own.keys() != state.keys() and own.keys() == {f'{prefix}{key}' for key in state}:
            state = {f'{prefix}{key}': tensor for key, tensor in state.items()}
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


def save_whole(content: object, path: str | os.PathLike, ready: Callable[[str], None] | None = None) -> None:
    """``torch.save`` to a temporary file beside ``path``, renamed when complete: a reader never meets half a file.

    Args:
        content: What to save.
        path: Its place.
        ready: Called with the temporary file's path when that is complete, before it is renamed.
    """
    path = Path(path)
    with replacing(path, path.with_name(f'.{path.name}.{os.getpid()}.partial')) as file:
        torch.save(content, file)
        if ready is not None:
            file.flush()
            ready(file.name)
