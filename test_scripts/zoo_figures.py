"""The figures of the models that ship: sdakd/pretrained/zoo.json, and the table in the README beside it.

    python test_scripts/zoo_figures.py
    python test_scripts/zoo_figures.py --speed
    python test_scripts/zoo_figures.py -d held_out=:HELD_OUT/lq --images RealESRGAN_x4plus=HELD_OUT/x4plus \\
        --distance efficientnet_lite0_fp16.pth --words '40 photographs, degraded as Real-ESRGAN does'

A new model is a file in sdakd/pretrained and an entry of zoo.json with `file`, `what` and, of a student, `teacher`.
This script writes everything else: what the files say of themselves always, times with --speed, and with -d how close
the students of a teacher are to its images.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from typing import TYPE_CHECKING

from common import ROOT, UserError, compat

if TYPE_CHECKING:
    from sdakd.files.named import Zoo

BEGIN, END = '<!-- made by test_scripts/zoo_figures.py -->\n', '<!-- end of what is made -->\n'


def told(content: Zoo) -> None:
    """Fills in what the files say: sizes, hashes, costs, licences."""
    from sdakd.files.generators import open_network
    from sdakd.files.named import Cost
    from sdakd.files.training import licence_told, training_of
    from sdakd_arch.width import cost
    from sdakd_arch.zoo import digest_of, values_digest

    for teacher in content.teachers.values():
        teacher.parameters, teacher.macs = cost(teacher.network, content.speed.size)
    for name, model in content.models.items():
        opened = open_network(model.path, f'zoo.json: {name}')
        values, network = values_digest(opened.module.state_dict()), opened.describe()
        if values != model.values:
            model.quality = None  # it was other weights'
        known = model.cost.ms if model.cost and network == model.network else None
        training = training_of(opened)
        facts, licence = training.get('facts', {}), licence_told(training)
        if licence is None:
            raise UserError(f'{model.path}: nothing tells its licence; state it in its metadata (docs/publish.md).')
        model.network, model.values, model.license = network, values, licence
        number = facts.get('iterations')
        model.training = f'{number:,d} iterations, batches of {facts.get("batch")}' if number else ''
        model.bytes, model.sha256 = model.path.stat().st_size, digest_of(model.path)
        model.cost = Cost(*opened.cost(content.speed.size), known)


def judge(content: Zoo, data: str, images: str, distance: str, words: str) -> None:
    """Measures how close the students of a teacher are to its images.

    Args:
        content: Filled in.
        data: The test set, as `sdakd evaluate` takes it.
        images: ``TEACHER=FOLDER``.
        distance: Weights of EfficientNet-lite0.
        words: What the set is.

    Raises:
        UserError: No model has this teacher, or see `sdakd evaluate`.
    """
    from sdakd.commands.evaluate import evaluate
    from sdakd.files.named import Quality

    teacher = images.partition('=')[0]
    names = [name for name, model in content.models.items() if model.teacher == teacher]
    if not names:
        raise UserError(f'--images: no student of {teacher} ships; {compat.near(teacher, content.teachers)}.')
    models = ['bicubic', *(f'{name}={content.models[name].path}' for name in names), images]
    judges = [f'efficientnet_lite0:{distance}']
    done = evaluate(models, [data], scale=4, metrics=['psnr'], teacher=teacher, distance=judges)
    done.check()
    psnr, far = (
        {name: done.mean(name, metric, 'teacher') for name in ('bicubic', *names)}
        for metric in ('psnr', 'dist-efficientnet_lite0')
    )
    for name in names:
        bicubic = round(psnr['bicubic'], 2), round(far['bicubic'], 4)
        content.models[name].quality = Quality(words, round(psnr[name], 2), round(far[name], 4), bicubic)


def readme_with_table(text: str, content: Zoo) -> str:
    """The README with the table of today's figures in the place of the old one."""
    from sdakd.commands.models import HEADER, explained, rows
    from sdakd.files.results import table

    cells = [[f'`{row[0]}`', *row[1:]] for row in rows(content)]
    made = (
        table(HEADER, cells, 'md')
        + '\n'
        + ''.join(f'{textwrap.fill(line, 140)}\n\n' for line in explained(content).splitlines())
    )
    models = content.models.values()
    made += table(
        ['file', 'network', 'licence', 'training'],
        [[f'`{model.file}`', model.network, model.license, model.training or '-'] for model in models],
        'md',
    )
    pattern = re.escape(BEGIN) + '.*?' + re.escape(END)
    found, count = re.subn(pattern, lambda _: f'{BEGIN}\n{made}\n{END}', text, flags=re.DOTALL)
    if count != 1:
        raise UserError(f'README.md: it needs one place between {BEGIN.strip()} and {END.strip()}.')
    return found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--speed', action='store_true', help='measure the times on this machine')
    add('-d', '--data', metavar='SET', help='as for `sdakd evaluate`: measure how close students are')
    add('--images', metavar='TEACHER=FOLDER', help="the teacher's images of the set")
    add('--distance', metavar='FILE', help="EfficientNet-lite0's weights")
    add('--words', metavar='TEXT', help='what the set is, in words')
    args = parser.parse_args()
    sys.excepthook = compat.exit_with_sentence
    compat.import_basicsr()
    sys.path.append(ROOT)
    from sdakd.commands.models import measured
    from sdakd.files.images import write
    from sdakd.files.named import PRETRAINED, write_zoo, zoo

    of_quality = {'-d': args.data, '--images': args.images, '--distance': args.distance, '--words': args.words}
    if any(of_quality.values()) and not all(of_quality.values()):
        raise UserError(f'{next(flag for flag, value in of_quality.items() if not value)}: -d needs it, too.')
    content = zoo()
    told(content)
    if args.speed:
        content = measured(content)
    if args.data:
        judge(content, *of_quality.values())
    readme = PRETRAINED / 'README.md'
    text = readme_with_table(readme.read_text(encoding='utf-8'), content)
    write_zoo(content)
    write(readme, text.encode())
    sys.stdout.write(f'Written to {PRETRAINED}: zoo.json and README.md, {len(content.models)} models\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
