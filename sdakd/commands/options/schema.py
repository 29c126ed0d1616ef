"""The JSON schema of option files: ``sdakd options --schema > options/schema.json``.

It comes from the types by which option files are read, and from the registries. It describes files as they are written:
nothing is required, because ``extends`` may provide it, and a null may stand anywhere, because it takes away what is
inherited. Types that are not known here are legal where ``imports`` or a plug-in may bring them.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from msgspec import Struct
from msgspec.json import schema_components

import sdakd_models  # noqa: F401  registers everything
from sdakd.commands.compare.config import Config
from sdakd.commands.prepare.synthesis import PUBLISHED
from sdakd_models.basicsr_options import DATASETS, OptionFile
from sdakd_models.options import NUMBER
from sdakd_models.reference import first, own_terms
from sdakd_models.stages import Stage


def schema() -> dict[str, Any]:
    """The schema, in draft 7, which YAML extensions of editors know."""
    definitions = _types(OptionFile, Stage, Config, *DATASETS.values())
    terms = own_terms()
    run, train, comparison = (definitions[name]['properties'] for name in ('OptionFile', 'Train', 'Config'))
    definitions['network'] = _by_type(ARCH_REGISTRY, {'width': WIDTH})
    definitions['loss'] = _by_type(LOSS_REGISTRY, {'share': SHARE}, *(_options(cls) for cls in terms.values()))
    definitions['loss']['not'] = BOTH
    loss, network = {'$ref': '#/definitions/loss'}, {'$ref': '#/definitions/network'}

    student = definitions['StudentBlock']['properties']
    others = (definitions[name]['properties'] for name in ('TeacherBlock', 'DiscriminatorBlock'))
    for block in (run, student, *others):
        for key in {'network', 'network_g', 'network_d'} & block.keys():
            block[key] = {'description': block[key]['description'], **_null(network)}
    definitions['DiscriminatorBlock']['properties']['gan_opt'].update(_null(loss))
    for key, name in (('train', 'Train'), ('path', 'Paths')):
        student[key] = {'description': student[key]['description'], **_null({'$ref': f'#/definitions/{name}'})}
    student['discriminators']['additionalProperties'] = _null({'$ref': '#/definitions/DiscriminatorBlock'})
    student['width'] = {**WIDTH, 'description': student['width']['description']}
    train['stages']['additionalProperties'] = _null({'$ref': '#/definitions/Stage'})
    for term, cls in terms.items():
        own = _options(cls)
        block = {'allOf': [loss], 'properties': own} if own else loss
        train[f'{term}_opt'] = {'description': first(cls), **_null(block)}
    train['gan_opt'] = {'description': 'The GAN loss of all discriminators that have none of their own.', **_null(loss)}
    definitions['Train']['patternProperties'] = {'_opt$': _null(loss)}  # of terms that plug-ins bring
    definitions['Stage']['properties']['terms']['items'] = _known([*terms, 'gan'])

    models = [name for name in _names(MODEL_REGISTRY) if name.startswith('SDAKD')]
    definitions['Dataset'] = _datasets(definitions)
    dataset = definitions['Dataset']['properties']
    for block, key, names in ((run, 'model_type', models), (dataset, 'type', _names(DATASET_REGISTRY))):
        block[key] = {'description': block[key]['description'], **_null(_known(names))}
    metric = {'type': 'object', 'properties': {'type': _known(_names(METRIC_REGISTRY))}}
    definitions['Validation']['properties']['metrics']['additionalProperties'] = _null(metric)
    for key, value in PUBLISHED.items():
        (run if key in run else dataset)[key]['default'] = value
    comparison['extends'] = run['extends']
    return {
        '$schema': 'http://json-schema.org/draft-07/schema#',
        'title': 'Option files of sdakd',
        'if': {'anyOf': [{'required': [key]} for key in sorted(comparison.keys() - run.keys())]},
        'then': {'$ref': '#/definitions/Config'},
        'else': {'$ref': '#/definitions/OptionFile'},
        'definitions': definitions,
    }


def text() -> str:
    """The schema as it is printed."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + '\n'


WIDTH = {
    'description': 'Share of the channels of the network that is written or, without a type, of the teacher.',
    'anyOf': [{'type': 'number', 'exclusiveMinimum': 0}, {'type': 'string', 'pattern': r'^\d+/\d+$|^\d*\.?\d+$'}],
}
SHARE = {
    'description': "The term's part of the gradient, in the place of a weight.",
    'type': ['number', 'null'],
    'exclusiveMinimum': 0,
    'exclusiveMaximum': 1,
}
BOTH = {  # a share and a weight; a null takes an inherited one away
    'required': ['share', 'loss_weight'],
    'properties': {'share': {'type': 'number'}, 'loss_weight': {'type': 'number'}},
}


def _datasets(definitions: dict[str, Any]) -> dict[str, Any]:
    """One definition of all data sets: of a type that is known here, the keys of this type."""
    whole, cases = definitions['Dataset'], []
    for name in DATASETS:
        properties = definitions.pop(name)['properties']
        whole['properties'] |= {key: value for key, value in properties.items() if key not in whole['properties']}
        case = {'properties': {'type': {'const': name}}, 'required': ['type']}
        cases.append({'if': case, 'then': {'propertyNames': {'enum': list(properties)}}})
    return {key: value for key, value in whole.items() if key != 'additionalProperties'} | {'allOf': cases}


def _types(*structs: type[Struct]) -> dict[str, Any]:
    """Definitions of types and of those within them."""
    found = schema_components(structs, ref_template='#/definitions/{name}')[1]
    return {name: _written(definition) for name, definition in found.items()}


def _options(cls: type) -> dict[str, Any]:
    """Properties of a term's own options."""
    (definition,) = _types(cls.Options).values()
    return definition['properties']


def _written(node: Any) -> Any:
    """A generated schema, for files as they are written instead of options as they are read."""
    if isinstance(node, list):
        return [_written(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    node = {key: value for key, value in node.items() if key not in ('title', 'required', 'discriminator')}
    for key in node.keys() & {'anyOf', 'items', 'additionalProperties'}:
        node[key] = _written(node[key])
    if node.get('default', '') is None:
        del node['default']
    if '$ref' in node and len(node) > 1:  # whatever stands beside a reference is not read
        node['anyOf'] = [{'$ref': node.pop('$ref')}]
    if 'properties' in node:
        node['properties'] = {key: _null(_written(value)) for key, value in node['properties'].items()}
    if isinstance(node.get('additionalProperties'), dict):
        node['additionalProperties'] = _null(node['additionalProperties'])
    if 'description' in node:
        node['description'] = ' '.join(node['description'].partition('\n\n')[0].split()).replace('``', '`')
    if node.get('type') in ('number', 'integer'):
        node |= {'type': [node['type'], 'string'], 'pattern': NUMBER, 'patternErrorMessage': 'Write a number.'}
    return node


def _null(node: dict[str, Any]) -> dict[str, Any]:
    """The same, or a null."""
    if 'anyOf' in node:
        return node if {'type': 'null'} in node['anyOf'] else {**node, 'anyOf': [*node['anyOf'], {'type': 'null'}]}
    if 'enum' in node:
        return {**node, 'enum': [*node['enum'], None]}
    if isinstance(node.get('type'), str | list):
        kinds = [node['type']] if isinstance(node['type'], str) else node['type']
        return {**node, 'type': [*kinds, 'null']}
    return {'anyOf': [node, {'type': 'null'}]} if node else node


def _known(names: Iterable[str]) -> dict[str, Any]:
    """A name that editors suggest, or another one."""
    return {'anyOf': [{'enum': list(names)}, {'type': 'string'}]}


def _classes(registry: Iterable) -> dict[str, type]:
    """What BasicSR and this project register, by name: not what a plug-in of this machine does."""
    ours = {name: cls for name, cls in registry if cls.__module__.partition('.')[0].startswith(('basicsr', 'sdakd'))}
    return {name.removesuffix('_basicsr'): ours[name] for name in sorted(ours)}


def _names(registry: Iterable) -> list[str]:
    return list(_classes(registry))


def _by_type(registry: Iterable, more: Mapping[str, Any], *others: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with a type of a registry, and the arguments that this type takes.

    Args:
        more: Properties that all types have.
        others: Further ones that may stand beside the arguments.
    """
    cases = []
    for name, cls in _classes(registry).items():
        parameters = dict(list(inspect.signature(cls.__init__).parameters.items())[1:])
        if any(each.kind in (each.VAR_KEYWORD, each.VAR_POSITIONAL) for each in parameters.values()):
            continue
        arguments = {key: _argument(each) for key, each in parameters.items()}
        known = dict.fromkeys(['type', *arguments, *more, *(key for other in others for key in other)])
        then = {'properties': arguments, 'propertyNames': {'enum': list(known)}}
        cases.append({'if': {'properties': {'type': {'const': name}}, 'required': ['type']}, 'then': then})
    kind = {'description': 'Its class; one of a package of your own may be named, too.', **_known(_names(registry))}
    return {'type': 'object', 'properties': {'type': kind, **more}, 'allOf': cases}


def _argument(parameter: inspect.Parameter) -> dict[str, Any]:
    default = parameter.default
    found = {'type': ['number', 'null']} if isinstance(default, float) else {}
    if isinstance(default, str | int | float | list | tuple):
        found['default'] = default
    return found
