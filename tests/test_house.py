"""The house: imports point one way, nothing imports itself in a circle, wheels hold all. Read from the sources."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# a package may import those behind it
ORDER = ['sdakd', 'sdakd_models', 'sdakd_data', 'sdakd_metrics', 'sdakd_losses', 'sdakd_arch']
# imported before torch and BasicSR
GROUND_FLOOR = {
    f'sdakd.{name}'
    for name in ('compat', 'shipped', 'option_files', 'progress', 'lock', 'machine', 'stops', 'decoding', 'tiff')
}


def modules():
    """The source file of every module, by name."""
    files = [path for package in ORDER for path in (ROOT / package).rglob('*.py')]
    return {'.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path for path in files}


def imports(source, name, known, package=False):
    """The modules of this project that a source names in imports anywhere: in functions, and for type checkers only."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                parents = name.split('.')[: len(name.split('.')) - node.level + package]
                base = '.'.join([*parents, *([base] if base else [])])
            found |= {f'{base}.{alias.name}' if f'{base}.{alias.name}' in known else base for alias in node.names}
    return {each for each in found & known if each != name}


def graph():
    found = modules()
    return {
        name: imports(path.read_text(encoding='utf-8'), name, set(found), path.name == '__init__.py')
        for name, path in found.items()
    }


def circle(edges):
    """The names of one circle, or None."""
    state, trail = {}, []

    def visit(name):
        state[name] = 'open'
        trail.append(name)
        for other in sorted(edges[name]):
            if state.get(other) == 'open':
                return trail[trail.index(other) :]
            if other not in state and (found := visit(other)):
                return found
        state[name] = 'done'
        trail.pop()
        return None

    return next((found for name in sorted(edges) if name not in state and (found := visit(name))), None)


def against_the_order(edges):
    """Imports that do not point from a package to one behind it; whoever stands on the ground floor may be imported."""
    rank = {package: number for number, package in enumerate(ORDER)}
    return [
        (name, other)
        for name, others in edges.items()
        for other in others
        if other not in GROUND_FLOOR and rank[other.partition('.')[0]] < rank[name.partition('.')[0]]
    ]


def test_no_module_imports_itself_in_a_circle():
    assert circle(graph()) is None


def test_imports_point_one_way():
    assert against_the_order(graph()) == []


def test_the_ground_floor_imports_nothing():
    assert all(graph()[name] <= GROUND_FLOOR for name in GROUND_FLOOR)


def test_a_wheel_holds_every_package():
    text = (ROOT / 'pyproject.toml').read_text(encoding='utf-8')
    listed = ast.literal_eval(re.search(r'^packages = (\[.*?^\])', text, re.MULTILINE | re.DOTALL)[1])
    folders = {path.parent for package in ORDER for path in (ROOT / package).rglob('__init__.py')}
    packages = {'.'.join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(listed) == packages | {'sdakd.options'}


@pytest.mark.parametrize(
    'source',
    [
        'from sdakd_models import b',
        'from sdakd_models.b import thing',
        'import sdakd_models.b',
        'from . import b',
        'from .b import thing',
        'if TYPE_CHECKING:\n    from sdakd_models.b import thing',
        'def later():\n    from sdakd_models.b import thing',
    ],
)
def test_every_way_to_import_is_seen(source):
    known = {'sdakd_models', 'sdakd_models.a', 'sdakd_models.b'}
    edges = {'sdakd_models': set(), 'sdakd_models.b': {'sdakd_models.a'}}
    assert circle({**edges, 'sdakd_models.a': set()}) is None
    edges['sdakd_models.a'] = imports(source, 'sdakd_models.a', known)
    assert edges['sdakd_models.a'] == {'sdakd_models.b'}
    assert set(circle(edges)) == {'sdakd_models.a', 'sdakd_models.b'}


def test_an_import_upwards_is_seen():
    edges = {'sdakd_losses.a': {'sdakd_arch.taps', 'sdakd_models.cast', *GROUND_FLOOR}}
    assert against_the_order(edges) == [('sdakd_losses.a', 'sdakd_models.cast')]
