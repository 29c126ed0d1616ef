"""A model's record for OpenModelDB, as its ``src/lib/schema.ts`` and ``src/lib/model-props.ts`` want it."""

from __future__ import annotations

import datetime
import json
import re

from sdakd.commands.card.subject import Subject

CONTENT = {'photographs': ['photo'], 'drawings': ['anime'], 'animations': ['anime']}  # of an official teacher
REALESRGAN = ['compression-removal', 'deblur', 'denoise', 'jpeg', 'restoration']  # what that degradation teaches


def identifier(name: str, scale: int) -> str:
    """The record's identifier, ``4x-My-Model``: letters, digits and dashes, without the scale a second time."""
    text = re.sub(r'[^a-z0-9]+', '-', name, flags=re.IGNORECASE).strip('-')
    text = re.sub(rf'^(?:(?:{scale}x|x{scale})-?)+', '', text, flags=re.IGNORECASE)
    text = re.sub(rf'(?:-(?:x{scale}|{scale}x))+$', '', text, flags=re.IGNORECASE)
    return f'{scale}x-{text}' if text else f'{scale}x-student'


def user(name: str) -> str:
    """A person's identifier: small letters, digits and dashes."""
    return re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-') or 'unknown'


def left_out(subject: Subject) -> str | None:
    """Why there is no record, a sentence's end; None where there is one."""
    opened = subject.opened
    if len(subject.parts) > 1:
        return "OpenModelDB has no name for ncnn's files"
    if subject.padded:
        return 'OpenModelDB wants the file that is not padded'
    if opened.network is None or opened.family.catalogue(opened.network) is None:
        return f'OpenModelDB has no name for this architecture ({opened.describe()})'
    return None


def record(subject: Subject, description: str) -> dict | None:
    """The record; None where :func:`left_out` says why there is none.

    A student is not trained from its teacher's weights, so ``pretrainedModelG`` is left out and the description names
    the teacher.

    Args:
        subject: The model.
        description: A few sentences, in Markdown.
    """
    if left_out(subject):
        return None
    opened = subject.opened
    named = opened.family.catalogue(opened.network)
    graph = opened.path.suffix == '.onnx'
    kind = 'onnx' if graph else 'safetensors' if opened.path.suffix == '.safetensors' else 'pth'
    address = subject.address(subject.file)
    found = {
        'name': subject.name,
        'author': user(subject.author or (subject.repo or 'unknown').partition('/')[0]),
        'license': subject.license,
        'tags': tags(subject),
        'description': description.strip(),
        'date': datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        'architecture': named[0],
        'size': named[1],
        'scale': opened.scale,
        'inputChannels': 3,
        'outputChannels': 3,
        'resources': [
            {
                'platform': 'onnx' if graph else 'pytorch',
                'type': kind,
                'size': subject.parts[0].size,
                'sha256': subject.sha256,
                'urls': [address] if address else [],
            }
        ],
    }
    known = {
        'trainingIterations': subject.iterations,
        'trainingBatchSize': int(subject.batch) if (subject.batch or '').isdigit() else None,
        'trainingHRSize': subject.crop,
        'trainingOTF': True if subject.degradation == 'realesrgan' else None,
        'dataset': subject.data,
    }
    found |= {key: value for key, value in known.items() if value is not None}
    found['images'] = [
        {
            'type': 'paired',
            'caption': picture.title,
            'LR': subject.address(picture.before) or picture.before,
            'SR': subject.address(picture.after) or picture.after,
        }
        for picture in subject.pictures
    ]
    return found


def tags(subject: Subject) -> list[str]:
    """Of OpenModelDB's tags those that hold: what an official teacher is for, and what the degradation teaches."""
    from sdakd_arch.zoo import MODELS

    officials = [MODELS[name].what for t in [*subject.teachers, subject.facts] if (name := t.get('official')) in MODELS]
    found = {tag for what in officials for word, its in CONTENT.items() if word in what for tag in its}
    found |= set() if 'anime' in found else {'general-upscaler'}
    return sorted(found | set(REALESRGAN if subject.degradation == 'realesrgan' else []))


def text(found: dict) -> str:
    """The file's text, in OpenModelDB's format: indented by four, no line break at the end."""
    return json.dumps(found, indent=4, ensure_ascii=False)
