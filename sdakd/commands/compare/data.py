"""The images of a comparison: pairs to train on, a validation split, and test sets that share no image with either."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sdakd.commands.compare.config import Config, Pairs, locate, locate_set
from sdakd.compat import UserError
from sdakd.files.images import ENDINGS, Pass, by_stem, list_images, write
from sdakd.files.runs import digest
from sdakd.files.testsets import split_pair


@dataclass
class Images:
    """The folders of the images.

    Args:
        train, validation: Folders of ground truth and input.
        test: Test sets as ``sdakd evaluate -d`` takes them, by name.
        identity: A digest of what is trained on, the same wherever it lies.
        facts: Lines about them for the table.
    """

    train: tuple[Path, Path]
    validation: tuple[Path, Path]
    test: dict[str, str]
    identity: str
    facts: list[str]


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


def open_images(config: Config) -> tuple[Images, dict[str, list[str]]]:
    """Finds the images and checks them; makes nothing yet.

    Returns:
        The images, with the folders of pairs that are still to be made where photographs are given, and the names of
        the photographs of each split.

    Raises:
        UserError: A folder is missing or empty, or two splits share an image.
    """
    data, facts = config.data, []
    test = {name: locate_set(source, f'data:test:{name}') for name, source in config.data.test.items()}
    groups = {
        f'data:test:{name}': _files(Path(split_pair(source)[0]))
        for name, source in test.items()
        if source[0] != ':' and not source.endswith('.lmdb')
    }
    if data.photographs is not None:
        where = 'data:photographs:folder'
        folder = locate(data.photographs.folder, where, folder=True)
        names = list(by_stem(list_images(str(folder), where), str(folder), where=where).values())
        if len(names) < data.photographs.validation + 1:
            raise UserError(
                'data:photographs:validation',
                f'{data.photographs.validation} of the {len(names)} images in {folder} '
                'cannot be held out; write fewer.',
            )
        inner = next((name for name in names if '/' in name), None)
        if inner is not None:
            raise UserError(where, f'{inner} of {folder} lies in a sub-folder; put all photographs into one folder.')
        held = hold_out(names, data.photographs.validation)
        splits = {'train': [name for name in names if name not in set(held)], 'validation': held}
        groups |= {f'data:photographs ({part})': [folder / name for name in splits[part]] for part in splits}
        check_apart(groups)
        kind = {'bicubic': "MATLAB's bicubic downscaling", 'realesrgan': "Real-ESRGAN's published degradation"}
        facts.append(
            f'{len(splits["train"])} photographs of {Path(data.photographs.folder).name} to train on and {len(held)} '
            f'held out to choose weights; LQ by {kind[data.photographs.degradation]}.'
        )
        identity = f'{listing(folder, splits["train"])} {data.photographs.degradation}'
        nowhere = Path('data')
        places = {part: (nowhere / part / 'gt', nowhere / part / 'lq') for part in splits}
        return Images(places['train'], places['validation'], test, identity, facts), splits
    found = {}
    for part, pairs in (('train', data.train), ('validation', data.validation)):
        found[part] = tuple(
            locate(getattr(pairs, side), f'data:{part}:{side}', folder=True) for side in Pairs.__struct_fields__
        )
        list_images(str(found[part][0]), f'data:{part}:gt')
        groups[f'data:{part}:gt'] = _files(found[part][0])
    check_apart(groups)
    gt, lq = found['train']
    identity = ' '.join(listing(side, [path.name for path in _files(side)]) for side in (gt, lq))
    counts = [len(groups[f'data:{part}:gt']) for part in ('train', 'validation')]
    facts.append(f'{counts[0]} pairs to train on and {counts[1]} others to choose weights.')
    return Images(found['train'], found['validation'], test, identity, facts), {}


def make_pairs(config: Config, images: Images, splits: dict[str, list[str]], output: Path, scale: int) -> None:
    """Makes the pairs of the photographs in ``output/data``, where they are not there already.

    Raises:
        UserError: A photograph cannot be used.
    """
    if not splits:
        return
    from sdakd.commands.prepare import synthesis as pairs

    wanted = config.data.photographs
    folder = locate(wanted.folder, 'data:photographs:folder', folder=True)
    settings = pairs.read_settings(wanted.degradation, scale, None, 0)
    made, mark = output / 'data', output / 'data' / 'made.json'
    note = json.dumps({'settings': settings, 'splits': {p: listing(folder, n) for p, n in splits.items()}}, indent=2)
    if made.exists() and not (mark.is_file() and mark.read_text(encoding='utf-8') == note):
        shutil.rmtree(made)
    write(mark, note.encode())
    for part, names in splits.items():
        place = made / part
        missing = [
            n for n in names if not all((place / side / f'{Path(n).stem}.png').exists() for side in ('gt', 'lq'))
        ]
        if missing:
            work = functools.partial(
                pairs.make_pair, source=str(folder), output=str(place), settings=json.dumps(settings)
            )
            every = Pass(f'pairs to {part}', str(folder), workers=1)
            every.run(work, missing)
            if every.unusable:
                raise UserError(f'data:photographs: {folder}', f'{every.unusable[0]}; repair or remove it.')
    images.train, images.validation = (tuple(made / part / side for side in ('gt', 'lq')) for part in splits)
