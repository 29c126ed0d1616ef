"""A model's card for the Hugging Face Hub: ``README.md`` with the block of metadata that the Hub reads."""

from __future__ import annotations

import re

import msgspec
import yaml

from sdakd import __version__
from sdakd.commands.card.subject import Subject
from sdakd.files.results import table
from sdakd.files.training import KNOWN, UNKNOWN

UPSTREAM = 'https://github.com/xinntao/Real-ESRGAN'
HEAD = re.compile(r'\A---\n(.*?)\n---\n', re.DOTALL)
# the Hub's identifiers of licences that models have; it wants others as `other` with a name
LICENCES = {
    'apache-2.0', 'mit', 'bsd-2-clause', 'bsd-3-clause', 'cc0-1.0', 'cc-by-4.0', 'cc-by-sa-4.0', 'cc-by-nc-4.0',
    'cc-by-nc-sa-4.0', 'cc-by-nd-4.0', 'cc-by-nc-nd-4.0', 'gpl-2.0', 'gpl-3.0', 'agpl-3.0', 'lgpl-2.1', 'lgpl-3.0',
    'mpl-2.0', 'isc', 'unlicense', 'wtfpl', 'zlib', 'openrail', 'afl-3.0', 'artistic-2.0', 'bsl-1.0', 'epl-2.0',
}  # fmt: skip
NOT_KNOWN = "the teacher's licence is not known"


def not_known(subject: Subject) -> str:
    """Whose licence is missing."""
    if subject.start is not None and 'license' not in subject.start:
        return f'the licence of {subject.start.get("file")}, which the training began with, is not known'
    return NOT_KNOWN


def licence(spdx: str | None) -> dict[str, str]:
    """A licence as the Hub's metadata say it."""
    if spdx is None:
        return {'license': 'other', 'license_name': 'not-known'}
    name = re.sub(r'-(only|or-later)$', '', spdx.lower())
    if name in LICENCES:
        return {'license': name}
    return {'license': 'other', 'license_name': re.sub(r'[^a-z0-9.-]+', '-', name)}


def metadata(subject: Subject) -> dict:
    """The block of metadata, as the Hub's documentation of model cards wants it."""
    kind = (subject.opened.network or {}).get('type')
    tags = ['super-resolution', 'image-upscaling', f'{subject.opened.scale}x', *([kind] if kind else [])]
    tags += ['knowledge-distillation'] if subject.teachers else []
    tags += ['onnx'] if subject.opened.path.suffix == '.onnx' else ['ncnn'] if len(subject.parts) > 1 else ['pytorch']
    found = {**licence(subject.license), 'library_name': 'sdakd', 'pipeline_tag': 'image-to-image', 'tags': tags}
    if subject.base_model:
        found['base_model'] = subject.base_model
    if subject.row and (own := subject.row.own()):
        task = {'type': 'image-to-image', 'name': f'Super-resolution x{subject.opened.scale}'}
        sets = dict.fromkeys(score['set'] for score in own)
        results = [
            {
                'task': task,
                'dataset': {'type': _word(name), 'name': name},
                'metrics': [
                    {
                        'type': score['metric'],
                        'value': round(score['mean'], 4),
                        'name': subject.row.label(score),
                    }
                    for score in own
                    if score['set'] == name
                ],
            }
            for name in sets
        ]
        found['model-index'] = [{'name': subject.name, 'results': results}]
    return found


def _word(name: str) -> str:
    return re.sub(r'[^A-Za-z0-9_.-]+', '-', name)


def readme(subject: Subject) -> str:
    """The card."""
    block = yaml.dump(metadata(subject), Dumper=_Plain, sort_keys=False, allow_unicode=True, width=1000)
    parts = [
        f'---\n{block}---\n\n# {subject.name}\n\n{subject.summary}',
        *([f'![before and after]({subject.sheet})'] if subject.sheet else []),
        _facts(subject),
        *([_results(subject)] if subject.row else [_figures(subject)] if subject.ships else []),
        _use(subject),
        _limits(subject),
        _licence(subject),
    ]
    return '\n\n'.join(part.strip() for part in parts) + '\n'


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:  # what stands twice is written twice
        return True


def _facts(subject: Subject) -> str:
    opened = subject.opened
    cost = opened.cost()
    rows = [
        *(['file', f'`{part.name}`, {part.size:,d} bytes, SHA-256 `{part.sha256}`'] for part in subject.parts),
        ['network', opened.describe()],
        ['enlarges', f'{opened.scale} times, RGB to RGB'],
    ]
    if cost:
        macs = f', {cost[1] / 1e9:.3f} G multiply-accumulates for 64x64 pixels' if cost[1] else ''
        rows.append(['cost', f'{cost[0]:,d} parameters{macs}'])
    for teacher in subject.teachers:
        rows.append(['teacher', _teacher(teacher)])
    if subject.start is not None:
        rows.append(['began with', _teacher(subject.start)])
    rows.append(['training', _training(subject)])
    if subject.data:
        rows.append(['trained on', subject.data])
    if recipe := subject.facts.get('recipe'):
        rows.append(['recipe', f'`{recipe}`'])
    rows.append(['made with', f'SDAKD for BasicSR {opened.metadata.get("version") or __version__}'])
    return '\n'.join(['| | |', '|---|---|', *(f'| {what} | {_cell(text)} |' for what, text in rows)])


def _cell(text: str) -> str:
    return ' '.join(text.replace('|', '\\|').split())


def _teacher(teacher: dict) -> str:
    official = teacher.get('official')
    text = f"Real-ESRGAN's {official}, told by its {teacher.get('told by')}" if official else f'`{teacher.get("file")}`'
    if digest := teacher.get('sha256'):
        text += f', SHA-256 `{digest}`'
    elif values := teacher.get('values'):
        text += f', SHA-256 of its values in float16 `{values}`'
    return text + f', {teacher.get("license") or "its licence is not known"}'


def _training(subject: Subject) -> str:
    if subject.training['source'] == UNKNOWN:
        return f'not recorded: {subject.training.get("reason")}'
    text = 'iterations are not recorded' if subject.iterations is None else f'{subject.iterations:,d} iterations'
    text += f', batches of {subject.batch}' if subject.batch else ''
    text += f', crops of {subject.crop} pixels' if subject.crop else ''
    text += f', degradation: {subject.degradation}' if subject.degradation else ''
    tells = subject.opened.path.suffix in ('.safetensors', '.onnx')
    whole = subject.training['source'] == KNOWN and tells
    return text + (" (the file's metadata hold all options)" if whole else '')


def _results(subject: Subject) -> str:
    header, rows = subject.row.table()
    date = f' on {subject.row.date[:10]}' if subject.row.date else ''
    return f"""## Results

{table(header, rows, 'md')}
The model is the row {subject.row.name}. Measured by `sdakd evaluate`{date}. PSNR and SSIM: higher is closer to the
photograph or, where it says so, to the teacher's image. NIQE and distances: lower is better. GMACs and milliseconds:
for 64x64 pixels of input."""


def _figures(subject: Subject) -> str:
    """The figures that are committed beside a model that ships."""
    from sdakd.commands.models import HEADER, explained, rows

    content, name = subject.ships
    alone = msgspec.structs.replace(content, models={name: content.models[name]})
    row = next(row for row in rows(content) if row[0] == name)
    text = explained(alone).replace('\n', '\n\n').strip()
    return f'## Results\n\n{table(HEADER, [row], "md")}\n{text}'


def _use(subject: Subject) -> str:
    text = f"""## Use

With SDAKD for BasicSR:

    sdakd upscale -m {subject.file} -i photographs -o enlarged
"""
    if subject.repo:
        files = ' '.join(part.name for part in subject.parts)
        text = text.replace('    sdakd', f'    hf download {subject.repo} {files} --local-dir .\n    sdakd')
    opened = subject.opened
    if opened.network is None or opened.path.suffix == '.onnx' or not opened.family.catalogue(opened.network):
        return text
    if len(subject.parts) > 1:
        return text + '\nUpscayl and other programs built on ncnn take both files.'
    if subject.padded:
        return text + '\nThe file is padded: spandrel, chaiNNer and ComfyUI open it as it is.'
    try:
        opened.family.padded(opened.network, opened.module.state_dict())
    except ValueError:
        return text + '\nspandrel, chaiNNer and ComfyUI open the file as it is.'
    return text + (
        '\nspandrel opens it after one line, `import sdakd_arch.spandrel`. chaiNNer and ComfyUI without this line take '
        f'what `sdakd export -m {subject.file} --to padded` writes.'
    )


def _limits(subject: Subject) -> str:
    text = 'What it does to images of other kinds than those it was trained on is not known.'
    if subject.teachers:
        text = 'It imitates its teacher on inputs like those it was trained on, and has seen no others.'
        text += '' if subject.row or subject.nearness else ' How near it comes was not measured for this card.'
    if said := subject.facts.get('limits'):
        text = f'{said} {text}'
    return f'## Limits\n\n{text}'


def _licence(subject: Subject) -> str:
    officials = [teacher for teacher in [*subject.teachers, subject.facts] if teacher.get('official')]
    if subject.license is None:
        text = f'other: {not_known(subject)}. Ask whoever has made it before you use or share this model.'
        return f'## Licence\n\n{text}'
    text = f'## Licence\n\n{subject.license}.'
    for official in officials:
        whose = 'The network' if official is subject.facts else 'The teacher'
        text += f" {whose} is Real-ESRGAN's {official['official']} ({official['license']}, {UPSTREAM}), whose licence"
        text += ' goes with every copy.' if official is subject.facts else ' goes with the student.'
    return text
