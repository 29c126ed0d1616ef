"""Student or teacher? Sheets of crops for looking at without knowing which is which, and the score of the answers.

    python test_scripts/blind_sheet.py make -m x4plus_rrdbnet_1_4 x4plus=HELD_OUT/x4plus -d :HELD_OUT/lq \\
        -o blind --key key.json
    python test_scripts/blind_sheet.py score --key key.json --answers blind/answers.txt

Each crop of an enlarged image is shown twice, as A and B: one by the student, one by the teacher, in an order that a
coin decides for each and the key alone tells. Who looks writes behind the numbers in answers.txt which one is the
teacher's, A or B; what is left empty is not counted. A share of a half means that nobody can tell them apart.

Models and set are written as for `sdakd evaluate`. Pixels are repeated, never interpolated. Of several places in an
image, the one is shown in which the teacher draws most, since there is nothing to see in a sky.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from common import ROOT, UserError, compat

if TYPE_CHECKING:
    import numpy as np

    from sdakd.commands.evaluate.contenders import Contender
    from sdakd.files.testsets import TestSet

TRIED = 8  # places in an image, of which the one with most to see is taken
ROWS, PAIRS = 4, 2  # of a page
ANSWERS = 'answers.txt'
LARGEST = 1 << 20  # bytes of a file of answers


# ------------------------------------------------------- the sheets ---------------------------------------------------


def draw(
    testset: TestSet, student: Contender, teacher: Contender, count: int, side: int, zoom: int, seed: int
) -> tuple[list[bytes], dict]:
    """The pages as PNG, and the key.

    Images are used once before one is used again.

    Raises:
        UserError: An image cannot be read, or is smaller than a crop.
    """
    import numpy as np

    from sdakd.files.images import UnusableError
    from sdakd.files.sheets import enlarged, sheet

    random = np.random.default_rng(seed)
    names = [name for _ in range(math.ceil(count / len(testset.names))) for name in random.permutation(testset.names)]
    cells, crops = [], []
    for number, name in enumerate(map(str, names[:count]), 1):
        try:
            sample = testset.read(name)
            pair = [contender.enlarge(testset, name, sample) for contender in (student, teacher)]
        except UnusableError as error:
            raise UserError(f'-d: {name}: {error.reason}; leave it out.') from None
        height, width = (min(image.shape[axis] for image in pair) for axis in (0, 1))
        if min(height, width) < side:
            raise UserError(f'--crop: {name} has {width}x{height} pixels, less than a crop of {side}; write less.')
        free = width - side + 1, height - side + 1
        places = [tuple(map(int, random.integers(free))) for _ in range(TRIED)]
        left, top = max(places, key=lambda place: detail(pair[1][place[1] :, place[0] :][:side, :side]))
        first = random.random() < 0.5
        shown = {'A': 'student' if first else 'teacher', 'B': 'teacher' if first else 'student'}
        for letter, who in shown.items():
            crop = pair[who == 'teacher'][top : top + side, left : left + side]
            cells.append((f'{number} {letter}', enlarged(np.ascontiguousarray(crop), side * zoom, side * zoom)))
        crops.append({'number': number, 'image': name, 'left': left, 'top': top, **shown})
    rows = [cells[begin : begin + 2 * PAIRS] for begin in range(0, len(cells), 2 * PAIRS)]
    pages = [sheet(rows[begin : begin + ROWS]) for begin in range(0, len(rows), ROWS)]
    facts = {'student': student.facts(), 'teacher': teacher.facts()}
    key = {'set': testset.source, 'seed': seed, 'crop': side}
    key |= {who: {name: entry[name] for name in ('name', 'source', 'sha256')} for who, entry in facts.items()}
    return pages, key | {'crops': crops}


def detail(crop: np.ndarray) -> float:
    """How much there is to see: the mean difference of neighbours."""
    grey = crop.astype(float).mean(2)
    return float(abs(grey[1:] - grey[:-1]).mean() + abs(grey[:, 1:] - grey[:, :-1]).mean())


# ------------------------------------------------------- the score ----------------------------------------------------


def binomial_interval(right: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share, of which at least ``level`` of all cover it: Clopper and Pearson, 1934.

    Its limits are the shares at which as many hits or more, or as many or fewer, have a probability of
    ``(1 - level) / 2``.
    """

    def at_most(hits: int, share: float) -> float:
        return sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(hits + 1))

    def root(falls: Callable[[float], float]) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if falls(middle) > 0 else (low, middle)
        return (low + high) / 2

    tail = (1 - level) / 2
    lower = root(lambda share: tail - (1 - at_most(right - 1, share))) if right else 0.0
    upper = root(lambda share: at_most(right, share) - tail) if right < count else 1.0
    return lower, upper


def chance(right: int, count: int) -> float:
    """How probable it is to be at least as far from a half by tossing coins."""
    far = abs(2 * right - count)
    return sum(math.comb(count, k) for k in range(count + 1) if abs(2 * k - count) >= far) / 2**count


def read_key(path: str) -> dict[int, str]:
    """Number -> the letter of the teacher.

    Raises:
        UserError: It is no key.
    """
    try:
        crops = json.loads(_text(path, '--key'))['crops']
        return {crop['number']: 'A' if crop['A'] == 'teacher' else 'B' for crop in crops}
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f'--key: {path} is no key of this script; give the file that `make --key` has written.'
        ) from None


def read_answers(path: str, numbers: set[int]) -> dict[int, str]:
    """Number -> the letter that was written behind it; those without one are left out.

    Raises:
        UserError: A line that is no answer, a number that the key does not have, or one that comes twice.
    """
    found = {}
    for place, line in enumerate(_text(path, '--answers').splitlines(), 1):
        if not line.strip() or line.startswith('#'):
            continue
        parts = re.fullmatch(r'\s*(\d{1,6})\s*[:.,;\s]?\s*([ABab]?)\s*', line)
        if not parts:
            raise UserError(f'--answers: line {place} of {path} is {line.strip()[:40]!r}; write a number and A or B.')
        number = int(parts[1])
        if number not in numbers or number in found:
            what = 'comes twice' if number in found else 'is not in the key'
            raise UserError(f'--answers: {number} (line {place} of {path}) {what}; mend that line.')
        found[number] = parts[2].upper()
    return {number: letter for number, letter in found.items() if letter}


def score(key: str, answers: str) -> str:
    """What the answers say, as a line.

    Raises:
        UserError: A file that cannot be read, or no answer.
    """
    teacher = read_key(key)
    given = read_answers(answers, set(teacher))
    if not given:
        raise UserError(f'--answers: {answers} holds no answer; write A or B behind the numbers.')
    right, count = sum(teacher[number] == letter for number, letter in given.items()), len(given)
    low, high = binomial_interval(right, count)
    text = f'{right} of {count} right, {right / count:.0%}; 95% interval {low:.0%} to {high:.0%} (Clopper-Pearson); '
    text += f'{chance(right, count):.3f} is the probability of as much or more by chance'
    return f'{text}; {len(teacher) - count} crops without an answer\n' if len(teacher) > count else f'{text}\n'


def _text(path: str, flag: str) -> str:
    if reason := compat.no_file(path):
        raise UserError(f'{flag}: the file {path} {reason}.')
    try:
        with open(path, encoding='utf-8') as file:
            return file.read(LARGEST)
    except (OSError, ValueError):
        raise UserError(f'{flag}: {path} cannot be read as text; give another file.') from None


# ---------------------------------------------------- the command line ------------------------------------------------


def make(args: argparse.Namespace) -> str:
    """Writes the sheets, an empty file of answers, and the key; returns what to say."""
    compat.import_basicsr()
    sys.path.append(ROOT)
    from sdakd.commands.evaluate.contenders import open_contenders
    from sdakd.files.images import write
    from sdakd.files.results import output_folder
    from sdakd.files.testsets import open_sets

    for flag in ('count', 'crop', 'zoom', 'scale'):
        if getattr(args, flag) < 1:
            raise UserError(f'--{flag}: write a whole number of at least 1, not {getattr(args, flag)}.')
    if args.seed is None:
        args.seed = secrets.randbelow(2**32)  # whoever knows it knows the order
    if args.seed < 0:
        raise UserError(f'--seed: write a whole number of at least 0, not {args.seed}.')
    (testset,) = open_sets([args.data], args.scale)
    contenders = open_contenders(args.models, args.scale, 'cpu', None)
    if len(contenders) != 2:
        raise UserError(f'-m: give two, the student and then the teacher, not {len(contenders)}.')
    folder, key = Path(args.output), Path(args.key)
    if (folder / ANSWERS).exists():
        raise UserError(f'-o: {folder / ANSWERS} is there already, and may hold answers; give another folder.')
    if key.exists():
        raise UserError(f'--key: {key} is there already, and may belong to other sheets; give another name.')
    for contender in contenders:
        contender.check([testset])
    pages, content = draw(testset, *contenders, args.count, args.crop, args.zoom, args.seed)
    output_folder(folder)
    output_folder(key.parent, '--key')
    for number, page in enumerate(pages, 1):
        write(folder / f'sheet_{number}.png', page)
    write(key, (json.dumps(content, indent=2) + '\n').encode())
    write(folder / ANSWERS, ''.join(f'{crop["number"]} \n' for crop in content['crops']).encode())
    return f'Written to {folder}: {len(pages)} sheets of {args.count} crops, {ANSWERS}; the key: {key}\n'


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest='mode', required=True)
    add = modes.add_parser('make', help='draw sheets').add_argument
    add('-m', '--models', nargs='+', required=True, metavar='MODEL', help='the student, then the teacher')
    add('-d', '--data', required=True, metavar='SET', help='as for `sdakd evaluate`')
    add('-o', '--output', required=True, metavar='FOLDER', help='for sheets and answers')
    add('--key', required=True, metavar='FILE', help='the JSON that says which is which, best in another folder')
    add('--count', type=int, default=24, help='crops (default: 24)')
    add('--crop', type=int, default=160, help='side of a crop in pixels of the enlarged image (default: 160)')
    add('--zoom', type=int, default=2, help='how often pixels are repeated (default: 2)')
    add('--scale', type=int, default=4, help='factor between input and output (default: 4)')
    add('--seed', type=int, help='of images, places and order (default: a random one, which the key holds)')
    add = modes.add_parser('score', help='score answers').add_argument
    add('--key', required=True, metavar='FILE', help='what `make` has written')
    add('--answers', required=True, metavar='FILE', help='a number and A or B a line: the one that is the teacher')
    args = parser.parse_args()
    sys.excepthook = compat.exit_with_sentence
    sys.stdout.write(make(args) if args.mode == 'make' else score(args.key, args.answers))
    return 0


if __name__ == '__main__':
    sys.exit(main())
