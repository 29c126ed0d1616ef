"""`sdakd models`: the models that ship, what they cost and how close they are to their teachers."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdakd import compat, stops
from sdakd.commands.interface import Flags, Outcome
from sdakd.files.named import PLACES, Cost, Speed, Zoo, published, zoo
from sdakd.files.results import table

BACKENDS = ('eager', 'fast')  # of which the faster one counts
ROUNDS = 5
HEADER = ('name', 'teacher', 'parameters', 'GMACs', 'MB', 'ms', 'speed', 'PSNR-Y', 'distance', 'for')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = Flags(parser, models)
    add('--measure', action='store_true', help='measure the times on this machine, in about a minute')
    add('--json', dest='as_json', action='store_true', help='all that is known, as JSON')


@dataclass
class Models(Outcome):
    """What ships, and what is published.

    Args:
        zoo: What ships.
        here: Published models by their names: the file, or None where it is not here.
        as_json: Whether ``str()`` is JSON.
    """

    zoo: Zoo
    here: dict[str, Path | None]
    as_json: bool = False

    def __str__(self) -> str:
        return self._json() if self.as_json else self._text()

    def _json(self) -> str:
        import msgspec

        found = msgspec.to_builtins(self.zoo)
        for name, model in found['models'].items():
            model |= {'path': str(self.zoo.models[name].path), 'ratio': self.zoo.ratio(name)}
        found['published'] = {name: path and str(path) for name, path in self.here.items()}
        return json.dumps(found, indent=2, ensure_ascii=False) + '\n'

    def _text(self) -> str:
        from sdakd_arch.zoo import MODELS

        text = table(HEADER, rows(self.zoo, mark='*'))
        text += f'* is what `sdakd upscale` uses where no model is named. {explained(self.zoo)}'
        listed = []
        for name, path in self.here.items():
            cost = self.zoo.teachers.get(name)
            costs = [f'{cost.parameters:,d}', f'{cost.macs / 1e9:.2f}'] if cost else ['-', '-']
            time = f'{cost.ms:.1f}' if cost and cost.ms else '-'
            megabytes = f'{MODELS[name].size / 1e6:.2f}'
            listed.append([name, *costs, megabytes, time, MODELS[name].what, str(path or f'sdakd fetch {name}')])
        text += '\nPublished by Real-ESRGAN, not shipped:\n'
        return text + table(('name', 'parameters', 'GMACs', 'MB', 'ms', 'what', 'here, or how to get it'), listed)


def rows(content: Zoo, mark: str = '') -> list[list[str]]:
    """A row of :data:`HEADER` for every model that ships.

    Args:
        content: What ships.
        mark: What the name of the default begins with.
    """

    def cell(value: float | None, form: str, unit: str = '') -> str:
        return '-' if value is None else format(value, form) + unit

    found = []
    for name, model in content.models.items():
        cost, quality = model.cost or Cost(0, 0), model.quality
        found.append([
            (mark if name == content.default else '') + name, model.teacher or '-', f'{cost.parameters:,d}',
            f'{cost.macs / 1e9:.2f}', f'{model.bytes / 1e6:.2f}', cell(cost.ms, '.1f'),
            cell(content.ratio(name), '.1f', 'x'), cell(quality and quality.psnr, '.2f'),
            cell(quality and quality.distance, '.4f'), model.what,
        ])  # fmt: skip
    return found


def explained(content: Zoo) -> str:
    """What the columns of :func:`rows` are, in lines."""
    size, speed = content.speed.size, content.speed
    text = f"GMACs and ms: for {size}x{size} pixels of input, float32, PyTorch's faster way of {' and '.join(BACKENDS)}"
    text += f', {speed.cpu}, threads: {speed.threads}, {speed.date}' if speed.cpu else ''
    text += '. speed: times as fast as its teacher, measured likewise.\n'
    judged = [model for model in content.models.values() if model.quality]
    for teacher, name, psnr, far in dict.fromkeys((m.teacher, m.quality.set, *m.quality.bicubic) for m in judged):
        text += f'PSNR-Y (dB) and distance (features of EfficientNet-lite0, less is closer) to the images of {teacher}'
        text += f': {name}, where bicubic interpolation has {psnr:.2f} and {far:.4f}.\n'
    return text


@stops.leaving('nothing was written; give the same command again')
def models(measure: bool = False, as_json: bool = False) -> Models:
    """Lists the models that ship, and those that are published and can be fetched.

    Args:
        measure: Whether to measure the times on this machine; else they are those that were committed, and the text
            says of which machine.
        as_json: Whether the text of the outcome is JSON.

    Raises:
        UserError: See :func:`sdakd.commands.bench.bench`.
    """
    compat.import_basicsr()
    content = measured(zoo()) if measure else zoo()
    here = {
        name: next((path for folder in PLACES if (path := folder / f'{name}.pth').is_file()), None)
        for name in published()
    }
    return Models(content, here, as_json)


def measured(content: Zoo, names: Sequence[str] | None = None) -> Zoo:
    """The same with times of this machine, and with the costs that they go with.

    A published teacher need not be here: random weights take the same time.

    Args:
        content: What ships.
        names: Models to measure; default: all.
    """
    import msgspec
    from safetensors.torch import save_file

    from sdakd.commands.bench import bench
    from sdakd_arch.width import build

    content = msgspec.json.decode(msgspec.json.encode(content), type=Zoo)
    names = list(content.models if names is None else names)
    with tempfile.TemporaryDirectory() as folder:
        sources = {}
        for name in {content.models[name].teacher for name in names} & content.teachers.keys():
            sources[name] = Path(folder, f'{name}.safetensors')
            save_file(build(content.teachers[name].network, name).state_dict(), sources[name])
        sources |= {name: content.models[name].path for name in names}
        named = [f'{name}={path}' for name, path in sources.items()]
        section = bench(named, size=content.speed.size, rounds=ROUNDS, backends=BACKENDS, precisions=['fp32']).section
    for found in section['models']:
        times = [run['median_ms'] for run in section['runs'] if run['model'] == found['name'] and run['median_ms']]
        cost = {'parameters': found['parameters'], 'macs': found['macs'], 'ms': min(times) if times else None}
        if teacher := content.teachers.get(found['name']):
            content.teachers[found['name']] = msgspec.structs.replace(teacher, **cost)
        else:
            content.models[found['name']].cost = Cost(**cost)
    machine = section['cpu'] if section['device'] == 'cpu' else section['device']
    content.speed = Speed(
        section['size'], machine, section['threads'], str(section['torch']), section['rounds'], section['date'][:10]
    )
    return content
