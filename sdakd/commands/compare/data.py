"""The images of a comparison: what is trained on, a validation split, and test sets that share no image with either."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sdakd.commands.compare import missing
from sdakd.commands.compare.config import Config, Pairs, locate, locate_set
from sdakd.compat import UserError
from sdakd.files.images import ENDINGS, Pass, by_stem, list_images, write
from sdakd.files.runs import digest
from sdakd.files.testsets import split_pair

LIST = Path('data/train.txt')  # in the comparison's folder: the photographs that are degraded on line


@dataclass
class Split:
    """Photographs of one folder.

    Args:
        folder: It.
        names: Their paths in it.
    """

    folder: Path
    names: list[str]


@dataclass
class Images:
    """The folders of the images.

    Args:
        train: Folders of ground truth and input; of photographs that are degraded on line, the folder and the list of
            those that count; of faces, the folder.
        validation: Folders of ground truth and, where it is there, input.
        test: Test sets as ``sdakd evaluate -d`` takes them, by name.
        identity: A digest of what is trained on, the same wherever it lies.
        facts: Lines about them for the table.
        splits: The photographs of which pairs, or a list, are still to be made; by ``train`` and ``validation``.
    """

    train: tuple[Path, ...]
    validation: tuple[Path, ...]
    test: dict[str, str]
    identity: str
    facts: list[str]
    splits: dict[str, Split] = field(default_factory=dict)


def hold_out(names: list[str], count: int) -> list[str]:
    """``count`` of the names, evenly spaced through their order."""
    return [names[(2 * number + 1) * len(names) // (2 * count)] for number in range(count)]


def listing(folder: Path, names: Iterable[str]) -> str:
    """A digest of names and sizes of files."""
    lines = [f'{name} {(folder / name).stat().st_size}' for name in names]
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob('*')) if path.suffix.lower() in ENDINGS and path.is_file()]


def check_apart(groups: Mapping[str, list[Path]]) -> None:
    """Checks that no two groups of files hold the same image; only files of equal size are read.

    Raises:
        UserError: Two do; names both keys and one image of each.
    """
    sizes: dict[int, list[tuple[str, Path]]] = {}
    for key, files in groups.items():
        for file in files:
            sizes.setdefault(file.stat().st_size, []).append((key, file))
    for candidates in sizes.values():
        if len({key for key, _ in candidates}) < 2:
            continue
        seen: dict[str, tuple[str, Path]] = {}
        for key, file in candidates:
            other, twin = seen.setdefault(digest(file), (key, file))
            if other != key:
                raise UserError(
                    key,
                    f'{file} is also in {other} ({twin.name}); training, choosing weights and testing need '
                    'images of their own.',
                )


def open_images(config: Config) -> Images:
    """Finds the images and checks them; makes nothing yet.

    Returns:
        The images; where photographs are given, with folders of pairs that are still to be made.

    Raises:
        UserError: A folder is missing or empty, or two splits share an image.
    """
    data = config.data
    test = {name: locate_set(source, f'data:test:{name}') for name, source in data.test.items()}
    test = {name: source for name, source in test.items() if missing.is_there(source)}
    groups = {
        f'data:test:{name}': _files(Path(split_pair(source)[0]))
        for name, source in test.items()
        if source[0] != ':' and not source.endswith('.lmdb')
    }
    if data.photographs is not None:
        return _open_photographs(config, test, groups)
    if data.faces is not None:
        return _open_faces(config, test, groups)
    found = {}
    for part, pairs in (('train', data.train), ('validation', data.validation)):
        found[part] = tuple(
            locate(getattr(pairs, side), f'data:{part}:{side}', folder=True) for side in Pairs.__struct_fields__
        )
        _list(found[part][0], f'data:{part}:gt')
        groups[f'data:{part}:gt'] = _files(found[part][0])
    # BasicSR pairs images of the folder itself; those of sub-folders are not trained on
    trained = [[path for path in _files(side) if path.parent == side] for side in found['train']]
    groups['data:train:gt'] = trained[0]
    check_apart(groups)
    identity = ' '.join(
        listing(side, [path.name for path in paths]) for side, paths in zip(found['train'], trained, strict=True)
    )
    counts = [len(groups[f'data:{part}:gt']) for part in ('train', 'validation')]
    facts = [f'{counts[0]} pairs to train on and {counts[1]} others to choose weights.']
    return Images(found['train'], found['validation'], test, identity, facts)


def _list(folder: Path, where: str) -> list[str]:
    """The images of a folder; none of one whose lack is noted."""
    return list_images(str(folder), where) if folder.is_dir() else []


def _open_faces(config: Config, test: dict[str, str], groups: dict[str, list[Path]]) -> Images:
    faces, folders = config.data.faces, {}
    for part in ('train', 'validation'):
        if getattr(faces, part) is None:
            continue
        folders[part] = locate(getattr(faces, part), f'data:faces:{part}', folder=True)
        _list(folders[part], f'data:faces:{part}')
        groups[f'data:faces:{part}'] = _files(folders[part])
    check_apart(groups)
    count, held = (len(groups.get(f'data:faces:{part}', ())) for part in ('train', 'validation'))
    names = [str(path.relative_to(folders['train'])) for path in groups['data:faces:train']]
    drawn = ', '.join(f'x{factor}' for factor in faces.factors)
    facts = [
        f'{count} faces to train on and {held} others to choose weights; factors in training, often as they stand '
        f'here: {drawn}. Sets and validation are measured at every factor by itself.'
    ]
    identity = f'{listing(folders["train"], names)} faces'
    return Images((folders['train'],), tuple(list(folders.values())[1:]), test, identity, facts)


def _open_photographs(config: Config, test: dict[str, str], groups: dict[str, list[Path]]) -> Images:
    wanted, where = config.data.photographs, 'data:photographs:folder'
    folder = locate(wanted.folder, where, folder=True)
    if wanted.meta_info:
        names = _listed(folder, locate(wanted.meta_info, 'data:photographs:meta_info'))
    else:
        names = list(by_stem(_list(folder, where), str(folder), where=where).values())
    if isinstance(wanted.validation, str):
        other = locate(wanted.validation, 'data:photographs:validation', folder=True)
        held = Split(other, _list(other, 'data:photographs:validation'))
        train = Split(folder, names)
    else:
        if folder.is_dir() and len(names) < (wanted.validation or 0) + 1:
            raise UserError(
                'data:photographs:validation',
                f'{wanted.validation} of the {len(names)} images in {folder} cannot be held out; write fewer.',
            )
        held = Split(folder, hold_out(names, wanted.validation) if names and wanted.validation else [])
        train = Split(folder, [name for name in names if name not in set(held.names)])
    splits = {'train': train, 'validation': held}
    _check_names(splits, wanted.on_line)
    groups |= {f'data:photographs ({part})': [s.folder / name for name in s.names] for part, s in splits.items()}
    check_apart(groups)
    kind = {'bicubic': "MATLAB's bicubic downscaling", 'realesrgan': "Real-ESRGAN's published degradation"}
    how = kind[wanted.degradation]
    if wanted.on_line:
        how += (
            f', drawn on line from the seed and the iteration alone, the same for all methods (every pair used '
            f'{wanted.pool_reuse} times); sharpened targets, as in Real-ESRGAN. Pairs to choose weights are fixed draws'
        )
    facts = [
        f'{len(train.names)} photographs of {Path(wanted.folder).name} to train on and {len(held.names)} held out to '
        f'choose weights; LQ by {how}.'
    ]
    identity = f'{listing(folder, train.names)} {wanted.degradation}{" on line" * wanted.on_line}'
    made = {part: (Path('data') / part / 'gt', Path('data') / part / 'lq') for part in splits}
    places = (folder, LIST) if wanted.on_line else made['train']
    return Images(places, made['validation'], test, identity, facts, splits)


def _check_names(splits: Mapping[str, Split], on_line: bool) -> None:
    """What is made of a photograph has its name, in one folder; BasicSR ends a name in a list at its first space.

    Raises:
        UserError: With the first name that will not do.
    """
    where = 'data:photographs:folder'
    for part, split in splits.items():
        listed = on_line and part == 'train'
        bad = next((name for name in split.names if (' ' if listed else '/') in name), None)
        if bad is not None and listed:
            raise UserError(where, f'{bad} of {split.folder} has a space in its name; rename it.')
        if bad is not None:
            lies = f'{bad} of {split.folder} lies in a sub-folder'
            raise UserError(where, f'{lies}; put all photographs into one folder, or name a folder as validation.')


def _listed(folder: Path, list_file: Path) -> list[str]:
    """The names in a list of BasicSR's that are there.

    Raises:
        UserError: One of them is not.
    """
    if not list_file.is_file() or not folder.is_dir():
        return []
    names = [line.split(' ')[0].strip() for line in list_file.read_text(encoding='utf-8').splitlines() if line.strip()]
    lost = next((name for name in names if not (folder / name).is_file()), None)
    if lost is not None:
        raise UserError('data:photographs:meta_info', f'{lost} is not in {folder}; correct the list, or the folder.')
    return names


def make_pairs(config: Config, images: Images, output: Path, scale: int | None) -> None:
    """Makes what cells read in ``output/data``, where it is not there already: pairs, or the list of photographs.

    Raises:
        UserError: The folder holds what is not this command's, or a photograph cannot be used.
    """
    if not images.splits:
        return
    from sdakd.commands.prepare import synthesis as pairs

    wanted = config.data.photographs
    settings = pairs.read_settings(wanted.degradation, scale, None, 0)
    splits = {part: split for part, split in images.splits.items() if part != 'train' or not wanted.on_line}
    made, mark = output / 'data', output / 'data' / 'made.json'
    content = {'settings': settings, 'splits': {part: listing(s.folder, s.names) for part, s in splits.items()}}
    note = json.dumps(content, indent=2)
    if made.exists() and _marked(made, mark) != content:  # only what this command makes is removed
        for part in ('train', 'validation'):
            if (made / part).is_dir():
                shutil.rmtree(made / part)
        (output / LIST).unlink(missing_ok=True)
    write(mark, note.encode())
    if wanted.on_line:
        write(output / LIST, ''.join(f'{name}\n' for name in images.splits['train'].names).encode())
    for part, split in splits.items():
        place = made / part
        names = [
            n for n in split.names if not all((place / side / f'{Path(n).stem}.png').exists() for side in ('gt', 'lq'))
        ]
        if names:
            work = functools.partial(
                pairs.make_pair, source=str(split.folder), output=str(place), settings=json.dumps(settings)
            )
            every = Pass(f'pairs to {part}', str(split.folder), workers=1)
            every.run(work, names)
            if every.unusable:
                raise UserError(f'data:photographs: {split.folder}', f'{every.unusable[0]}; repair or remove it.')
    set_places(images, output)


def _marked(made: Path, mark: Path) -> dict | None:
    """What the mark says was made in a folder; None of an empty one.

    Raises:
        UserError: The folder holds something and no mark of this command's.
    """
    try:
        content = json.loads(mark.read_text(encoding='utf-8'))
        if content.keys() == {'settings', 'splits'}:
            return content
    except (OSError, ValueError, AttributeError):
        pass
    if not made.is_dir() or any(made.iterdir()):
        raise UserError(
            '-o',
            f'{made} is where pairs are made, and what is there this command did not make; move it, or choose another '
            'folder.',
        )
    return None


def set_places(images: Images, output: Path) -> None:
    """Has the images lie where :func:`make_pairs` has made them, or will."""
    if images.splits:
        images.train = tuple(output / path for path in images.train)  # of absolute ones nothing changes
        images.validation = tuple(output / path for path in images.validation)
