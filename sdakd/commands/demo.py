"""`sdakd demo`: `sdakd distill` in six minutes, with a teacher of this project and photographs of scikit-image."""

from __future__ import annotations

import argparse
from pathlib import Path

from sdakd import compat, stops
from sdakd.commands.distill import Distilled, check_folder, distill, open_teacher
from sdakd.commands.interface import MOST_SEED, Flags, number, whole
from sdakd.files.named import zoo
from sdakd.files.results import read_results

TRAIN = ('astronaut', 'coffee', 'rocket', 'hubble_deep_field', 'retina', 'immunohistochemistry')
HELD_OUT = ('chelsea', 'motorcycle')  # of the second, the left image of a pair
TIME = '6m'
TEACHER = 'demo_teacher_x4'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = Flags(parser, demo)
    add('-o', '--output', help='folder for all that is made (default: {default})')
    add('-t', '--teacher', metavar='TEACHER', help='file, address or name of another teacher')
    add('-d', '--data', dest='photographs', metavar='PHOTOS', help='folder of other photographs')
    add('--seed', type=number, help='of all random numbers (default: {default})')


@stops.leaving('give the same command again to go on')
def demo(
    output: str | Path = 'demo',
    *,
    teacher: str | Path | None = None,
    photographs: str | Path | None = None,
    seed: int = 0,
) -> Distilled:
    """Distils a small teacher on photographs, beside the same student without a teacher.

    Args:
        output: Folder for everything.
        teacher: Its file, its address, or the name of an official one; default: the one that is shipped.
        photographs: A folder of them; default: six of scikit-image's to train on, two to measure on.
        seed: Of all random numbers.

    Raises:
        UserError: See :func:`sdakd.commands.distill.distill`.
    """
    output, shipped = Path(output), photographs is None
    compat.import_basicsr()
    whole(seed, '--seed', 0, MOST_SEED)
    check_folder(output)
    if teacher is not None:  # before anything is written
        open_teacher(str(teacher), output)
    if shipped:
        photographs = write_photographs(output / 'photographs')
    done = distill(
        teacher or zoo().models[TEACHER].path,
        photographs / 'train' if shipped else photographs,
        output,
        degradation='bicubic',
        validation=photographs / 'held_out' if shipped else None,
        seed=seed,
        baseline=True,
        time=TIME,
    )
    _show_what_ships(done)
    return done


def _show_what_ships(done: Distilled) -> None:
    """Puts the best student that ships into the picture, and says who is who."""
    from sdakd.commands.distill.closing import picture, shown_by
    from sdakd.files.generators import open_network

    name, results = zoo().default, done.folder / 'results'
    model = open_network(zoo().models[name].path)
    if read_results(results)['evaluate']['scale'] != model.scale:  # of another teacher
        return
    images = shown_by(model, results, done.folder / 'data/held_out/lq')
    picture(results, done.folder / 'comparison.png', {f'ships: {name}': images})
    done.notes.append(
        f'comparison.png: "student" is what was trained here in minutes; "ships: {name}" is a student of '
        f'{zoo().models[name].teacher} that comes with this project, and what `sdakd upscale` uses.'
    )


def write_photographs(folder: Path) -> Path:
    """Writes scikit-image's photographs as PNG into ``train`` and ``held_out``; returns the folder."""
    import skimage.data

    from sdakd.files.images import write_png

    for part, names in (('train', TRAIN), ('held_out', HELD_OUT)):
        for name in names:
            if not (path := folder / part / f'{name}.png').exists():
                rgb = skimage.data.stereo_motorcycle()[0] if name == 'motorcycle' else getattr(skimage.data, name)()
                write_png(path, rgb[..., ::-1])
    return folder
