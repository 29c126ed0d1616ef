"""Ways to run a generator, as `sdakd bench` measures them: backends and precisions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sdakd.compat import UserError

if TYPE_CHECKING:
    from sdakd.files.generators import Opened

Runner = Callable[[], torch.Tensor]
RANDOM = 'random:'
DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def open_model(source: str, threads: int = 0) -> Opened:
    """Opens a generator by file or name, or makes one with random weights: ``random:TYPE`` or ``random:TYPE:WIDTH``.

    ``random:RRDBNet:1/4`` is BasicSR's RRDBNet with its default options and a quarter of the channels, ``GCFSR512`` is
    GCFSR at 512 pixels, and any other registered architecture goes by its name; the weights are the architecture's own
    initial ones, seed 0.

    Raises:
        UserError: See :func:`sdakd.files.generators.open_network`; or an unknown architecture or width.
    """
    from sdakd.files.generators import FaceNetwork, Opened, open_network
    from sdakd.files.named import model_file
    from sdakd_arch.families import example_of
    from sdakd_arch.width import build, scale_of, student_of

    if not source.startswith(RANDOM):
        return open_network(model_file(source), '-m', threads, faces=True, foreign=True)
    kind, _, width = source.removeprefix(RANDOM).partition(':')
    try:
        network = example_of(kind)
    except UserError as error:
        raise error.at(f'-m: {source}') from None
    try:
        ratio = float(Fraction(width or '1'))
    except (ValueError, ZeroDivisionError):
        raise UserError(f'-m: {source}', f'{width!r} is no width; write for example {RANDOM}{kind}:1/4.') from None
    network = student_of(network, ratio)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build(network, '-m').eval().requires_grad_(False)
    if hasattr(module, 'example_inputs'):
        return Opened(source.removeprefix(RANDOM), Path(source), FaceNetwork(module).eval(), None, network)
    scale = scale_of(build(network, '-m'), '-m')
    return Opened(source.removeprefix(RANDOM), Path(source), module, scale, network)


def noise(size: int, device: str = 'cpu') -> torch.Tensor:
    """The image that is measured with: ``(1, 3, size, size)``, uniform in [0, 1), always the same."""
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)


# ----------------------------------------------------- backends ------------------------------------------------------


def _eager(opened: Opened, image: torch.Tensor, dtype: torch.dtype) -> Runner:
    network = copy.deepcopy(opened.module).to(image.device, dtype)
    image = image.to(dtype)
    return lambda: network(image)


def _channels_last(opened: Opened, image: torch.Tensor, dtype: torch.dtype) -> Runner:
    network = copy.deepcopy(opened.module).to(image.device, dtype, memory_format=torch.channels_last)
    image = image.to(dtype, memory_format=torch.channels_last)
    return lambda: network(image)


def _fast(opened: Opened, image: torch.Tensor, dtype: torch.dtype) -> Runner:
    from sdakd_arch.inference.fast import Plain, accelerate

    network = accelerate(opened.module, dtype)
    if isinstance(network, Plain):
        raise UserError(f'this torch or processor offers nothing faster than channels_last for {opened.describe()}.')
    return lambda: network(image)


def _compile(opened: Opened, image: torch.Tensor, dtype: torch.dtype) -> Runner:
    network = copy.deepcopy(opened.module).to(image.device, dtype, memory_format=torch.channels_last)
    image = image.to(dtype, memory_format=torch.channels_last)
    compiled = torch.compile(network)
    with torch.no_grad():
        compiled(image)
    return lambda: compiled(image)


def _onnxruntime(graph: Path, image: torch.Tensor, dtype: torch.dtype, threads: int) -> Runner:
    from sdakd_arch.inference.onnx_network import OnnxNetwork

    network = OnnxNetwork(graph, 'onnxruntime', threads)
    if image.device.type == 'cuda' and 'CUDAExecutionProvider' not in network.session.get_providers():
        raise UserError('this ONNX Runtime cannot use the GPU: pip install onnxruntime-gpu.')
    return lambda: network(image)


def _openvino(graph: Path, image: torch.Tensor, dtype: torch.dtype, threads: int) -> Runner:
    try:
        import openvino
    except ImportError:
        raise UserError('the package openvino is not installed: pip install openvino.') from None
    from sdakd_arch.inference.openvino_graph import keep_sums_precise, settings

    core = openvino.Core()
    if dtype == torch.bfloat16 and 'BF16' not in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        raise UserError('OpenVINO has no bfloat16 on this processor.')
    model = core.read_model(graph)
    model.reshape(list(image.shape))
    if dtype == torch.bfloat16 and graph.suffix == '.onnx':  # of someone else; a .xml is marked
        path = graph.with_name(f'{graph.stem}_{image.shape[-1]}.xml')
        openvino.serialize(model, str(path))
        keep_sums_precise(path)
        model = core.read_model(path)
    request = core.compile_model(model, 'CPU', settings(dtype == torch.bfloat16, threads)).create_infer_request()
    array = image.numpy()
    return lambda: torch.from_numpy(request.infer({0: array})[0])


PLAIN = ('eager', 'channels_last', 'compile')  # for any network; the others know some architectures only
TORCH = {'eager': _eager, 'channels_last': _channels_last, 'fast': _fast, 'compile': _compile}
GRAPHS = {'onnxruntime': _onnxruntime, 'openvino': _openvino}
BACKENDS = (*TORCH, *GRAPHS)


def possible_precisions(backend: str, device: str) -> tuple[str, ...]:
    """At which precisions a backend can run on ``cpu`` or ``cuda``; none where it does not exist."""
    if device == 'cpu':
        return ('fp32',) if backend == 'onnxruntime' else ('fp32', 'bf16')  # its processor kernels know no bfloat16
    return () if backend in ('openvino', 'fast') else ('fp32', 'fp16')  # on a GPU, fast is channels_last


def start(
    backend: str, precision: str, opened: Opened | None, graph: Path | None, image: torch.Tensor, threads: int
) -> Runner:
    """Prepares a backend; the runner it returns runs it once on ``image`` ``(N, 3, h, w)``.

    Args:
        opened: For backends of PyTorch.
        graph: The ONNX file, or OpenVINO's ``.xml``, for the others.

    Raises:
        UserError: The backend is not available here.
    """
    if backend in TORCH:
        return TORCH[backend](opened, image, DTYPES[precision])
    return GRAPHS[backend](graph, image, DTYPES[precision], threads)
