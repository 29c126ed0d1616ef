"""The notebook of the docs, run from its first cell to its last in miniature, as Jupyter does, without network."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FILE = Path(__file__).parents[2] / 'docs/sdakd.ipynb'


def texts(cell):
    """What a cell has printed or shown as text."""
    found = [output.get('text', '') or output.get('data', {}).get('text/plain', '') for output in cell.outputs]
    return ''.join(found)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The notebook after its run, and the folder of the run."""
    folder = tmp_path_factory.mktemp('notebook')
    with pytest.MonkeyPatch.context() as patch:
        for name in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'):
            patch.setenv(name, 'http://127.0.0.1:9')  # nobody answers there
        notebook = nbformat.read(FILE, as_version=4)
        (parameters,) = [cell for cell in notebook.cells if 'parameters' in cell.metadata.get('tags', [])]
        parameters.source = "TIME, ITERS, TEACHER = None, 60, 'realesr-general-x4v3'"
        NotebookClient(notebook, timeout=300, resources={'metadata': {'path': str(folder)}}).execute()
    return notebook, folder


def test_every_cell_runs_and_what_it_makes_is_there(run):
    notebook, folder = run
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    printed = {number: texts(cell) for number, cell in enumerate(code)}
    assert 'cannot be downloaded' in printed[2] and 'demo_teacher_x4' in printed[2]
    assert "dB from the teacher's; bicubic interpolation" in printed[4] and 'Training distill.yml' in printed[4]
    assert 'student' in printed[6] and 'PSNR-Y' in printed[6]
    for name in ('student/student.pth', 'exported/student.onnx', 'exported/student.safetensors', 'card/README.md',
                 'card/4x-student.json'):  # fmt: skip
        assert (folder / name).stat().st_size > 0
    pictures = [o for cell in code for o in cell.outputs if 'image/png' in o.get('data', {})]
    assert len(pictures) == 3
    assert any('text/markdown' in output.get('data', {}) for output in code[-1].outputs)
    assert 'Nothing was sent' in printed[len(code) - 1]


def test_it_is_kept_without_outputs():
    notebook = nbformat.read(FILE, as_version=4)
    nbformat.validate(notebook)
    assert all(cell.execution_count is None and not cell.outputs for cell in notebook.cells if cell.cell_type == 'code')
    assert shutil.which('jupyter') is None or notebook.metadata.kernelspec.name == 'python3'
