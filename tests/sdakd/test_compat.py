"""BasicSR on Pythons and torchvisions that are newer than it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Python 3.12 and newer without setuptools: nobody finds distutils
CODE = """
import sys
from importlib.machinery import PathFinder

found = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.split('.')[0] == 'distutils' else found(name, *rest)
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != 'DistutilsMetaFinder']
for name in [name for name in sys.modules if name.split('.')[0] == 'distutils']:
    del sys.modules[name]
try:
    import distutils
except ModuleNotFoundError:
    pass
else:
    raise SystemExit('it is there')
from sdakd import compat

compat.import_basicsr()
from basicsr.archs.arch_util import LooseVersion

assert LooseVersion('0.9.1') < LooseVersion('0.13.0') <= LooseVersion('0.13.0') < LooseVersion('0.28.0+cpu')
"""


def test_basicsr_without_distutils(tmp_path):
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-c', CODE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
