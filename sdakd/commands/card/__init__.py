"""`sdakd card`: a model's page, as a card for the Hugging Face Hub and as a record for OpenModelDB."""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sdakd import compat, stops
from sdakd.commands.interface import Flags, Outcome
from sdakd.compat import UserError, no_file
from sdakd.files.named import PRETRAINED, model_file

if TYPE_CHECKING:
    import numpy as np

    from sdakd.files.generators import Opened

README = 'README.md'
SHEET = 'comparison.png'
SMOKE = PRETRAINED / 'smoke'
SHIPPED = ('photographs/chelsea', 'test/rocket')  # shown where no picture is given: crops, cut into halves
LARGEST = 256  # pixels: of larger pictures the middle is shown
SHOWN = 128  # pixels on a side, of what is put side by side
REPO = re.compile(r'[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?/[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = Flags(parser, card)
    add('-m', '--model', metavar='FILE', help='.pth, .safetensors, ncnn .param or .onnx, or a name of `sdakd models`')
    add('-o', '--output', metavar='FOLDER', help='folder for the card (default: {default})')
    add('--picture', dest='pictures', nargs='+', metavar='IMAGE', help='inputs to show before and after, the middle '
        f'{LARGEST} pixels of each (default: parts of two photographs that are shipped)')  # fmt: skip
    add('--results', metavar='FILE', help='results.json of `sdakd evaluate`, with a row of this model')
    add('--license', metavar='SPDX', help="of the model, such as MIT; it is known if the teacher is Real-ESRGAN's")
    add('--author', metavar='NAME', help="OpenModelDB's name of whoever has made it")
    add('--repo', metavar='USER/NAME', help='where it will lie on the Hub, for addresses in the card')
    add('--base_model', metavar='USER/NAME', help="the teacher's own page on the Hub, if it has one")


@dataclass
class Card(Outcome):
    """What was written.

    Args:
        folder: Where it is.
        files: Of the folder, by what they are.
        license: An SPDX expression; None where it is not known.
        notes: What is left to be given, a line each.
    """

    folder: Path
    files: dict[str, Path]
    license: str | None
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return ''.join(f'{path}: {what}\n' for what, path in self.files.items()) + ''.join(
            f'{note}\n' for note in self.notes
        )


@stops.leaving('files that are there are whole; give the same command again')
def card(
    model: str | Path,
    output: str | Path = 'card',
    *,
    pictures: Sequence[str | Path] = (),
    results: str | Path | None = None,
    license: str | None = None,
    author: str | None = None,
    repo: str | None = None,
    base_model: str | None = None,
) -> Card:
    """Writes a model's page: ``README.md`` for the Hugging Face Hub, a record for OpenModelDB, and pictures.

    Both say what the model's file and ``results.json`` say, and no more.

    Args:
        model: The model's file, or a name of :mod:`sdakd.files.named`.
        output: A folder. Cards that this command wrote there are replaced.
        pictures: Images that the model enlarges; default: parts of two photographs that are shipped.
        results: ``results.json`` of `sdakd evaluate`, or its folder.
        license: An SPDX expression; default: what the file says of itself or of its teacher.
        author: Who has made it.
        repo: ``user/name`` on the Hub.
        base_model: The teacher's ``user/name`` on the Hub.

    Raises:
        UserError: A mistake in an argument, or a file that cannot be read or is in the way; nothing is written then.
    """
    model, output = model_file(model), Path(output)
    pictures = [pictures] if isinstance(pictures, str | Path) else list(pictures)
    for flag, name in (('--repo', repo), ('--base_model', base_model)):
        check_repo(flag, name)
    _check_place(output)
    compat.import_basicsr()
    from sdakd.commands.card import hub, openmodeldb
    from sdakd.commands.card.subject import Picture, Subject, licence_of, parts_of, read_row
    from sdakd.files.generators import open_network
    from sdakd.files.images import encode_png, write
    from sdakd.files.training import training_of
    from sdakd_arch.weights import stored_names

    opened = open_network(model)
    training = training_of(opened)
    padded = opened.network is not None and opened.family.is_padded(stored_names(model, '-m'))
    subject = Subject(opened, parts_of(model), padded, training, licence_of(training, license))
    subject.author, subject.repo, subject.base_model = author, repo, base_model
    if results is not None:
        subject.row = read_row(Path(results), opened, subject.sha256)
    shown = _enlarge(opened, _read(pictures))
    data = {}
    for title, before, after in shown:
        word = _word(title, [picture.before for picture in subject.pictures])
        picture = Picture(title, f'before_{word}.png', f'after_{word}.png')
        data |= {picture.before: encode_png(before, 6), picture.after: encode_png(after, 6)}
        subject.pictures.append(picture)
    subject.sheet = SHEET
    data[SHEET] = _side_by_side(shown, opened.scale)
    files = {'pictures side by side': output / SHEET}
    found = openmodeldb.record(subject, subject.summary)
    if found is not None:
        name = f'{openmodeldb.identifier(subject.name, opened.scale)}.json'
        data[name] = openmodeldb.text(found).encode()
        files["OpenModelDB's record"] = output / name
    data[README] = hub.readme(subject).encode()
    files["the Hugging Face Hub's card"] = output / README
    stale = _stale(output) - data.keys()
    for name, content in data.items():
        write(output / name, content)
    for name in stale:
        (output / name).unlink(missing_ok=True)
    notes = _notes(subject, openmodeldb.left_out(subject), hub.not_known(subject))
    return Card(output, dict(reversed(files.items())), subject.license, notes)


def check_repo(flag: str, name: str | None) -> None:
    """Checks the name of a repository on the Hub.

    Raises:
        UserError: It is none.
    """
    if name is not None and (not REPO.fullmatch(name) or '--' in name or '..' in name):
        raise UserError(
            flag,
            f'{name!r} is no name on the Hub; write user/name of letters, digits, single dots and dashes, and '
            'underscores, at most 96 of them each.',
        )


def _check_place(output: Path) -> None:
    """Creates nothing.

    Raises:
        UserError: A file is in the way, or a README that is no card of ours would be replaced.
    """
    if output.exists() and not output.is_dir():
        raise UserError('-o', f'{output} is a file; give a folder.')
    readme = output / README
    try:
        ours = not readme.exists() or '\nlibrary_name: sdakd\n' in readme.read_text(encoding='utf-8')
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise UserError('-o', f'{readme} is no card of this command and would be replaced; give another folder.')


def _stale(output: Path) -> set[str]:
    """Names of what an earlier card has left: its record, and pictures before and after; empty without such a card."""
    if not (output / README).exists():  # _check_place() has seen that it is one of this command
        return set()
    found = {path.name for path in output.glob('*x-*.json') if re.match(r'\d+x-', path.name) and _is_record(path)}
    for path in output.glob('before_*.png'):
        after = f'after_{path.name.removeprefix("before_")}'
        found |= {path.name, after} if (output / after).exists() else set()
    return found


def _is_record(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {'architecture', 'resources', 'images'} <= content.keys()


def _word(title: str, taken: Sequence[str]) -> str:
    """A picture's title as a part of a file's name, numbered where another one has become the same."""
    word = re.sub(r'[^A-Za-z0-9-]+', '_', title)
    known = {name.casefold() for name in taken}  # disks of Windows and macOS do not tell A from a
    words = itertools.chain([word], (f'{word}_{number}' for number in itertools.count(2)))
    return next(each for each in words if f'before_{each}.png'.casefold() not in known)


def _read(pictures: Sequence[str | Path]) -> list[tuple[str, np.ndarray]]:
    """Title and pixels of every picture, its middle if it is large.

    Raises:
        UserError: One cannot be used, or two have the same name.
    """
    import cv2

    from sdakd.files.images import UnusableError, read_image

    if not pictures:
        halves = [[read_image(SMOKE / f'{name}{column}.png') for column in (0, 64)] for name in SHIPPED]
        return [(Path(name).name, cv2.hconcat(pair)) for name, pair in zip(SHIPPED, halves, strict=True)]
    found: dict[str, np.ndarray] = {}
    for path in map(Path, pictures):
        if reason := no_file(path):
            raise UserError('--picture', f'the file {path} {reason}.')
        if path.stem in found:
            raise UserError('--picture', f'two pictures are called {path.stem}; rename one.')
        try:
            pixels = read_image(path)
        except UnusableError as error:
            raise UserError('--picture', f'{path} cannot be used ({error}); give another picture.') from None
        found[path.stem] = _middle(pixels, LARGEST)
    return list(found.items())


def _middle(pixels: np.ndarray, side: int) -> np.ndarray:
    height, width = (min(length, side) for length in pixels.shape[:2])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width].copy()


def _enlarge(opened: Opened, pictures: list[tuple[str, np.ndarray]]) -> list[tuple[str, np.ndarray, np.ndarray]]:
    from sdakd.commands.upscale import open_upscaler
    from sdakd.files.images import UnusableError

    upscaler = open_upscaler(opened)
    try:
        return [(title, pixels, upscaler.enhance(pixels)[0]) for title, pixels in pictures]
    except UnusableError as error:
        raise UserError('-m', f'{opened.path} cannot enlarge a picture ({error}); give another model.') from None


def _side_by_side(shown: Sequence[tuple[str, np.ndarray, np.ndarray]], scale: int) -> bytes:
    from sdakd.files.sheets import enlarged, image_of, sheet

    rows = []
    for title, before, after in shown:
        large = _middle(after, SHOWN * scale)
        small = _middle(before, SHOWN)
        height, width = large.shape[:2]
        rows.append([(f'{title}, before', enlarged(small, width, height)), ('after', image_of(large))])
    return sheet(rows)


def _notes(subject, left_out: str | None, unknown: str) -> list[str]:
    notes = []
    if subject.license is None:
        notes.append(
            f'{unknown[0].upper()}{unknown[1:]}, and the card says so; look it up and give it by --license before you '
            'share the model.'
        )
    if left_out:
        notes.append(f'{left_out}: no record.')
        return notes
    if subject.repo is None:
        notes.append("OpenModelDB's record lacks addresses of the files; --repo USER/NAME gives those on the Hub.")
        if subject.author is None:
            notes.append("OpenModelDB's record lacks an author; give --author.")
    return notes
