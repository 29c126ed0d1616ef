"""Narrow RRDBNets in the real spandrel: by one import, and by the change that docs/spandrel.md proposes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import spandrel
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet
from safetensors.torch import save_file

from sdakd.compat import UserError
from sdakd.files.generators import open_network
from sdakd_arch.esrgan_arch import ESRGAN
from sdakd_arch.families.rrdbnet import modulated

ROOT = Path(__file__).parents[2]
IMAGE = torch.rand(1, 3, 20, 28)


@pytest.fixture(scope='module', autouse=True)
def registered():
    """The one line; afterwards spandrel knows no more than before, for the tests of other modules."""
    before = dict(vars(spandrel.MAIN_REGISTRY))
    import sdakd_arch.spandrel

    sdakd_arch.spandrel.register()
    yield sdakd_arch.spandrel
    vars(spandrel.MAIN_REGISTRY).update(before)


def made(scale=4, features=8, growth=4, blocks=2):
    torch.manual_seed(scale)
    network = RRDBNet(3, 3, scale=scale, num_feat=features, num_block=blocks, num_grow_ch=growth).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        network.conv_last.bias.add_(0.5)
    return network


def opened(network, path):
    save_file(network.state_dict(), path) if path.suffix == '.safetensors' else torch.save(network.state_dict(), path)
    return spandrel.ModelLoader('cpu').load_from_file(str(path))


@pytest.mark.parametrize(('scale', 'features', 'growth'), [(4, 16, 8), (4, 8, 4), (2, 8, 4), (1, 8, 5), (4, 24, 48)])
@pytest.mark.parametrize('ending', ['.safetensors', '.pth'])
def test_spandrel_opens_a_narrow_network_as_it_is(tmp_path, scale, features, growth, ending):
    network = made(scale, features, growth)
    found = opened(network, tmp_path / f'net{ending}')
    assert (found.architecture.id, found.scale, found.input_channels) == ('NarrowESRGAN', scale, 3)
    assert found.tags == [f'{features}nf', '2nb', f'{growth}gc']
    with torch.no_grad():
        wanted = network(IMAGE).clamp(0, 1)
        assert wanted.std() > 0.05 and torch.allclose(found(IMAGE), wanted, atol=1e-6)
        odd = found(IMAGE[..., :19, :27])  # sides that its blocks of pixels do not divide
    assert odd.shape[-2:] == (19 * scale, 27 * scale)


def test_enlargements_by_eight(tmp_path):
    torch.manual_seed(0)
    network = ESRGAN(num_in_ch=3, num_out_ch=3, upscale=8, num_feat=8, num_block=1, num_grow_ch=4).eval()
    found = opened(network, tmp_path / 'net.safetensors')
    with torch.no_grad():
        assert found.scale == 8 and torch.allclose(found(IMAGE), network(IMAGE).clamp(0, 1), atol=1e-6)


def test_half_precision(tmp_path):
    network = made(features=16, growth=8)
    found = opened(network, tmp_path / 'net.safetensors').half()
    with torch.no_grad():
        assert (found(IMAGE.half()).float() - network(IMAGE).clamp(0, 1)).abs().max() < 0.01


def test_what_spandrel_knows_stays_its_own(tmp_path, registered):
    assert opened(made(features=16, growth=32), tmp_path / 'wide.pth').architecture.id == 'ESRGAN'
    registry = spandrel.MAIN_REGISTRY
    before = len(registry)
    registered.register()
    assert len(registry) == before
    order = [each.architecture.id for each in registry.architectures('detection')]
    assert order.index('NarrowESRGAN') < order.index('ESRGAN')


def test_a_network_that_does_modulate_is_not_taken_for_one_that_does_not(tmp_path):
    network = made()
    state = {key: tensor.clone() for key, tensor in modulated(network.state_dict()).items()}
    save_file(state, tmp_path / 'zero.safetensors')
    assert spandrel.ModelLoader('cpu').load_from_file(str(tmp_path / 'zero.safetensors')).architecture.id == 'MMRealSR'
    assert open_network(tmp_path / 'zero.safetensors').network['num_grow_ch'] == 4
    state['am_list.1.fc.4.bias'] += 0.5
    save_file(state, tmp_path / 'some.safetensors')
    with pytest.raises(UserError, match='MMRealSR'):
        open_network(tmp_path / 'some.safetensors')
    opened = open_network(tmp_path / 'some.safetensors', foreign=True)
    with torch.no_grad():
        assert (
            opened.module.kind == 'MMRealSR' and (opened.module(IMAGE) - network(IMAGE).clamp(0, 1)).abs().max() > 0.01
        )


# torchvision may have been built for another torch; spandrel wants no more of it than that it can be imported
BEGIN = """
import sys, torch
if not hasattr(torch.ops.torchvision, 'nms'):
    library = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
        library.define(f'{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor')
"""


def run(script, *arguments, paths=()):
    """A process that knows nothing of this project."""
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, paths))}
    line = [sys.executable, '-W', 'ignore', '-c', BEGIN + script, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env=environment, cwd=arguments[-1])


def test_the_file_works_alone(tmp_path):
    """As ComfyUI imports what lies in custom_nodes: by its path, under any name."""
    network = made()
    save_file(network.state_dict(), tmp_path / 'net.safetensors')
    with torch.no_grad():
        torch.save((IMAGE, network(IMAGE).clamp(0, 1)), tmp_path / 'images.pt')
    shutil.copy(ROOT / 'sdakd_arch/spandrel.py', tmp_path / 'narrow_esrgan.py')
    done = run(
        """
import importlib.util
spec = importlib.util.spec_from_file_location('custom_nodes_narrow', 'narrow_esrgan.py')
module = importlib.util.module_from_spec(spec)
sys.modules['custom_nodes_narrow'] = module
spec.loader.exec_module(module)
import spandrel
image, wanted = torch.load('images.pt')
found = spandrel.ModelLoader('cpu').load_from_file('net.safetensors')
assert torch.allclose(found(image), wanted, atol=1e-6) and module.NODE_CLASS_MAPPINGS == {}
assert not {'basicsr', 'sdakd', 'sdakd_arch'} & set(sys.modules), sorted(sys.modules)
print('equal')
""",
        tmp_path,
    )
    assert done.stdout == 'equal\n', done.stderr[-2000:]


def test_the_change_for_spandrel_itself(tmp_path):
    """The patch of docs/spandrel.md, applied to a copy of the installed spandrel, with its own test lines."""
    text = (ROOT / 'docs/spandrel.md').read_text(encoding='utf-8')
    (tmp_path / 'change.patch').write_text(re.search(r'```diff\n(.*?)```', text, re.DOTALL)[1], encoding='utf-8')
    copy = tmp_path / 'site/spandrel'
    shutil.copytree(Path(spandrel.__file__).parent, copy, ignore=shutil.ignore_patterns('__pycache__'))
    if shutil.which('patch') is None:
        pytest.skip('there is no program patch')
    applied = subprocess.run(
        ['patch', '-p1', '--no-backup-if-mismatch', '-i', tmp_path / 'change.patch'],
        cwd=tmp_path / 'site', capture_output=True, text=True,
    )  # fmt: skip
    assert applied.returncode == 0 and 'fuzz' not in applied.stdout, applied.stdout + applied.stderr
    cases = {'narrow': made(), 'half': made(2, 16, 16), 'wide': made(4, 16, 32)}
    for name, network in cases.items():
        save_file(network.state_dict(), tmp_path / f'{name}.safetensors')
        with torch.no_grad():
            torch.save((IMAGE, network(IMAGE).clamp(0, 1)), tmp_path / f'{name}.pt')
    # the lines that its tests need, as the page has them
    test = re.search(r'```python\n(def test_load.*?)```', text, re.DOTALL)[1]
    helper = """
import sys
from spandrel.architectures.ESRGAN import ESRGAN, ESRGANArch

def assert_loads_correctly(arch, *models):
    for make in models:
        model = make()
        loaded = arch.load(model.state_dict()).model
        assert type(loaded) is type(model) and loaded.hyperparameters == model.hyperparameters

"""
    script = """
import spandrel
assert spandrel.__file__.startswith(sys.argv[1] + '/site')
for name in ('narrow', 'half', 'wide'):
    image, wanted = torch.load(f'{name}.pt')
    found = spandrel.ModelLoader('cpu').load_from_file(f'{name}.safetensors')
    assert found.architecture.id == 'ESRGAN' and torch.allclose(found(image), wanted, atol=1e-6)
    print(name, *found.tags)
test_load()
print('passed')
"""
    done = run(helper + test + script, tmp_path, paths=[tmp_path / 'site'])
    lines = ['narrow 8nf 2nb 4gc', 'half 16nf 2nb 16gc unshuffle', 'wide 16nf 2nb', 'passed']
    assert done.stdout.splitlines() == lines, done.stderr[-2000:]
    names: dict = {}
    exec(helper + test, names)
    with pytest.raises(TypeError, match='num_grow_ch'):  # without the change
        names['test_load']()
