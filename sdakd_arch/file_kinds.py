"""What a file holds, told from its bytes: its name may say anything, and what came may be no model at all."""

from __future__ import annotations

import os
import zipfile
from typing import Literal

from sdakd.compat import UserError

Kind = Literal['safetensors', 'torch', 'onnx']

LFS = b'version https://git-lfs.github.com/spec/'
PAGE = (b'<!doctype', b'<html', b'<head', b'<?xml')
NCNN = b'7767517'
LARGEST_HEADER = 100 << 20  # bytes, of a safetensors file: what its own library accepts
# first bytes -> what such a file is
OTHERS = {
    b'\x1f\x8b': 'a gzip archive; unpack it',
    b'BZh': 'a bzip2 archive; unpack it',
    b'7z\xbc\xaf\x27\x1c': 'a 7-Zip archive; unpack it',
    b'Rar!': 'a RAR archive; unpack it',
    b'\xfd7zXZ': 'an xz archive; unpack it',
    b'\x28\xb5\x2f\xfd': 'a Zstandard archive; unpack it',
    b'\x89HDF': 'an HDF5 file, as Keras writes them; give weights of PyTorch',
    b'GGUF': 'a GGUF file; give .pth or .safetensors',
    b'\x93NUMPY': 'an array of NumPy; give .pth or .safetensors',
    b'\x89PNG': 'a PNG image; give a model',
    b'\xff\xd8\xff': 'a JPEG image; give a model',
    b'%PDF': 'a PDF; give a model',
}
AGAIN = 'download it again'
HEAD = 512  # bytes that are looked at


def kind_of(path: str | os.PathLike, where: str) -> Kind:
    """Tells which reader a model's file is for.

    Args:
        path: The file, which exists.
        where: Flag or key to name in an error.

    Returns:
        ``safetensors``, ``onnx``, or ``torch``, which is also what nothing else is known of: its reader says more.

    Raises:
        UserError: It cannot be read, or holds something else than weights or a graph: what it is, and what to do.
    """
    if reason := stand_in(path):
        raise unreadable(path, where, reason)
    with open(path, 'rb') as file:
        head = file.read(HEAD)
        file.seek(max(0, os.fstat(file.fileno()).st_size - HEAD))
        tail = file.read()
    if not (head + tail).strip(b'\0'):
        raise unreadable(path, where, f'it holds zeros alone; {AGAIN}')
    for beginning, found in OTHERS.items():
        if head.startswith(beginning):
            raise unreadable(path, where, f'it is {found}')
    if head.startswith(b'PK'):
        return _in_zip(path, where)
    if is_safetensors(head):
        return 'safetensors'
    if _is_text(head):
        raise _text(path, where, head)
    # the number of the format's version, then its producer or the next field
    if (
        head[:1] == b'\x08'
        and head[1:2] <= b'\x20'
        and head[2:3] in (b'\x12', b'\x1a', b'\x22', b'\x2a', b'\x32', b':')
    ):
        return 'onnx'
    return 'torch'


def stand_in(path: str | os.PathLike) -> str | None:
    """What a file is that came in the place of any model, and what to do, as a clause; None where it may be a model."""
    try:
        with open(path, 'rb') as file:
            head = file.read(HEAD)
    except OSError as error:
        return error.strerror or str(error)
    if not head:
        return f'it is empty; {AGAIN}'
    if head.startswith(LFS):
        return 'it is a pointer of Git LFS; run `git lfs pull` where it was cloned, or download the file itself'
    if head.lstrip()[:16].lower().startswith(PAGE):
        return 'it is a web page; download the file itself, which may want a login or another address'
    return None


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins as safetensors do: with the length of a header in JSON, and that."""
    return head[8:9] == b'{' and 0 < int.from_bytes(head[:8], 'little') <= LARGEST_HEADER


def unreadable(path: str | os.PathLike, where: str, reason: str) -> UserError:
    """That a file is no weights file, for a reason."""
    return UserError(where, f'{path} cannot be read as a weights file: {reason}.')


def _in_zip(path: str | os.PathLike, where: str) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        raise unreadable(path, where, f'it is cut off or damaged; {AGAIN}') from None
    inside = {name.partition('/')[2] for name in names}
    if 'data.pkl' in inside and not any(name.startswith('code/') for name in inside):
        return 'torch'
    if 'data.pkl' in inside or 'constants.pkl' in inside:
        program = 'it is a program of TorchScript, which would run when it is opened; give the weights behind it'
        raise unreadable(path, where, program)
    shown = ', '.join(names[:3]) + ', ...' * (len(names) > 3) or 'nothing'
    raise unreadable(path, where, f'it is a zip archive without weights of PyTorch, of {shown}; unpack it')


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # not where a character was cut
            return False
        text = head[: error.start].decode()
    return all(character.isprintable() or character in '\t\r\n\f\ufeff' for character in text)


def _text(path: str | os.PathLike, where: str, head: bytes) -> UserError:
    if head.startswith(NCNN):
        ncnn = "it is a graph of ncnn; let its name end in .param, and that of its weights' file in .bin"
        return unreadable(path, where, ncnn)
    text = head.decode(errors='ignore').strip('\ufeff \t\r\n')
    if text.startswith(('{', '[')):
        return unreadable(path, where, f'it is a JSON text, such as an index or an error of a server; {AGAIN}')
    line = (text.splitlines() or [''])[0][:60]
    return unreadable(path, where, f'it is a text that begins {line!r}; {AGAIN}')
