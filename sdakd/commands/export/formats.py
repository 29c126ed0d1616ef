"""Formats of `sdakd export`: writers, and each format's own runtime to read the file back.

A writer takes a generator, the path to write and whether to use float16; a reader takes the path and returns a function
of ``(N, 3, h, w)``. This module does not rename, compare or delete files: the package does.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import io
import json
import re
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from sdakd.compat import UserError, reserve
from sdakd.files.images import write
from sdakd.progress import say
from sdakd_arch.weights import save_whole

if TYPE_CHECKING:
    from sdakd.files.generators import Opened

Runner = Callable[[torch.Tensor], torch.Tensor]
Writer = Callable[['Opened', Path, bool], None]
Reader = Callable[[Path], Runner]

OPSET = 17  # of ONNX: the newest that older runtimes and both of torch's exporters have in common
TRACED, TRACED_TOO = (16, 24), (20, 40)  # sizes that graphs are traced at; pnnx learns from two of them what varies


class Portable(nn.Module):
    """A generator as exported graphs hold it.

    Its operators are those that exporters know (:meth:`sdakd_arch.families.Family.portable`). Where the generator wants
    sides that are multiples of a number, ``pad`` puts padding by reflection in front of it and cuts the output, as
    :func:`sdakd_arch.inference.tiling.run_tiled` does; sides of at least this number of pixels are needed then.

    Args:
        opened: The generator.
        half: Compute in float16; input and output stay float32.
        pad: Take sides that are no multiples.
    """

    def __init__(self, opened: Opened, half: bool = False, pad: bool = True) -> None:
        super().__init__()
        module = copy.deepcopy(opened.module).half() if half else opened.module
        self.scale, self.half_precision = opened.scale, half
        self.multiple = opened.multiple if pad else 1
        self.module = opened.family.portable(module)
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Maps ``(N, 3, h, w)`` in [0, 1] to ``(N, 3, h * scale, w * scale)``, float32 both."""
        height, width = image.shape[-2:]
        if self.half_precision:
            image = image.half()
        if self.multiple > 1:
            image = F.pad(image, (0, -width % self.multiple, 0, -height % self.multiple), mode='reflect')
        output = self.module(image)
        if self.multiple > 1:
            output = output[..., : height * self.scale, : width * self.scale]
        return output.float() if self.half_precision else output


def texts(opened: Opened) -> dict[str, str]:
    """What an exported file says of itself: the keys of :data:`sdakd.files.generators.METADATA` as JSON texts."""
    from sdakd.files.generators import METADATA

    facts = {**opened.metadata, 'network': opened.network, 'scale': opened.scale}
    keys = [key for key in METADATA if key != 'quantization' or key in facts]  # other files are not quantised
    return {key: json.dumps(facts.get(key), default=str) for key in keys}


def _write_texts(opened: Opened, path: Path) -> None:
    """``NAME.json`` beside a file that cannot say anything of itself, with the digest of its values."""
    from sdakd.files.training import values_of

    facts = {key: json.loads(text) for key, text in texts(opened).items()}
    facts |= {'values': values} if (values := values_of(path)) else {}
    write(path.with_suffix('.json'), (json.dumps(facts, indent=2) + '\n').encode())


def _refusal(format_name: str, opened: Opened, error: BaseException) -> UserError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(f'--to {format_name}', f'{opened.path} cannot be written in this format ({lines[0][:200]}).')


def _trace(opened: Opened, half: bool, pad: bool = True) -> torch.jit.ScriptModule:
    with torch.no_grad():
        return torch.jit.trace(Portable(opened, half, pad), torch.zeros(1, 3, *TRACED), check_trace=False)


# ------------------------------------------------------- ONNX --------------------------------------------------------


def _onnx_graph(opened: Opened, half: bool, name: str, runtime: str | None) -> bytes:
    """The file of :func:`to_onnx`, regrouped for a runtime, or for None not; errors name the format ``name``."""
    try:
        import onnx
    except ImportError:
        raise UserError(f'--to {name}', f'the package onnx is not installed: pip install onnx {runtime}.') from None
    if opened.network is None:
        raise UserError(f'--to {name}', f'{opened.path} holds {opened.describe()}, whose graph is not known here.')

    axes = {'input': {0: 'batch', 2: 'height', 3: 'width'}}
    axes['output'] = {0: 'batch', 2: 'output_height', 3: 'output_width'}
    names = {'input_names': ['input'], 'output_names': ['output'], 'dynamic_axes': axes}
    if 'dynamo' in inspect.signature(torch.onnx.export).parameters:
        names['dynamo'] = False
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')  # that there is another exporter
        try:
            if runtime is not None:
                opened = dataclasses.replace(opened, module=opened.family.regrouped(opened.module, runtime))
            data = io.BytesIO()
            torch.onnx.export(Portable(opened, half), (torch.zeros(1, 3, *TRACED),), data, opset_version=OPSET, **names)
        except Exception as error:  # exporter and operators each raise their own
            raise _refusal(name, opened, error) from None
    model = onnx.load_from_string(data.getvalue())
    onnx.helper.set_model_props(model, texts(opened))
    return model.SerializeToString()


def to_onnx(opened: Opened, path: Path, half: bool = False) -> None:
    """Writes an ONNX graph of opset 17 with the input ``input`` and the output ``output``, both float32.

    Batch, height and width are dynamic; any height and width will do, from the number of pixels on that a generator
    wants multiples of. Operators are regrouped where ONNX Runtime computes them faster so. TorchScript's
    exporter is used: for RRDBNet-23 it takes 1 s where torch.export's takes 35 s, it is in every torch since 2.1, and
    its graphs are of opset 17, where the other one's begin at 18.

    Args:
        opened: The generator.
        path: The file to write.
        half: Weights and computation in float16.

    Raises:
        UserError: The package onnx is missing, or the architecture cannot be exported.
    """
    write(path, _onnx_graph(opened, half, 'onnx', 'onnxruntime'))


def run_onnx(path: Path) -> Runner:
    """ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    return lambda image: torch.from_numpy(session.run(['output'], {'input': image.numpy()})[0])


# ----------------------------------------------------- OpenVINO -----------------------------------------------------


def to_openvino(opened: Opened, path: Path, half: bool = False) -> None:
    """Writes OpenVINO's ``path`` (``.xml``) and the ``.bin`` beside it; inputs, outputs and sizes as :func:`to_onnx`.

    Operators are regrouped where OpenVINO computes them faster so, and what must stay in float32 is marked, for the
    hint ``INFERENCE_PRECISION_HINT: bf16``.

    Args:
        opened: The generator.
        path: The file to write.
        half: Store weights in float16; OpenVINO computes with them in float32.

    Raises:
        UserError: The package openvino is missing, or the architecture cannot be exported.
    """
    from sdakd_arch.inference.openvino_graph import save

    try:
        import openvino  # noqa: F401
    except ImportError:
        raise UserError('--to openvino', 'the package openvino is not installed: pip install openvino.') from None
    graph = _onnx_graph(opened, False, 'openvino', 'openvino')
    reserve(path, len(graph))  # OpenVINO itself does not see that the disk is full
    try:
        save(graph, path, half)
    except Exception as error:  # the converter raises its own
        raise _refusal('openvino', opened, error) from None


def run_openvino(path: Path) -> Runner:
    """OpenVINO on the CPU, computing in float32."""
    import openvino

    from sdakd_arch.inference.openvino_graph import settings

    model = openvino.Core().compile_model(str(path), 'CPU', settings(False, torch.get_num_threads()))
    return lambda image: torch.from_numpy(model(image.numpy())[0].copy())


# ---------------------------------------------------- TorchScript ----------------------------------------------------


def to_torchscript(opened: Opened, path: Path, half: bool = False) -> None:
    """Writes a traced graph for any height and width; what the file says of itself lies in it as extra files.

    Raises:
        UserError: The architecture cannot be traced.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            data = _trace(opened, half).save_to_buffer(_extra_files=texts(opened))
        except Exception as error:
            raise _refusal('torchscript', opened, error) from None
    write(path, data)


def run_torchscript(path: Path) -> Runner:
    """The file by itself, without the code of its architecture."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return torch.jit.load(str(path), map_location='cpu')


# ------------------------------------------------------- ncnn --------------------------------------------------------


def to_ncnn(opened: Opened, path: Path, half: bool = False) -> None:
    """Writes ``path`` (``.param``) and the ``.bin`` beside it through pnnx, with the blobs ``data`` and ``output``.

    Sides must be multiples of what the generator wants: ncnn's graph has no padding that depends on them.

    Raises:
        UserError: pnnx fails.
    """
    import pnnx

    # pnnx's time and memory double with every block of a chain of residual additions, to 113 s and gigabytes for
    # RRDBNet-23. A copy between two blocks stops that, and pnnx removes it from the result.
    steps = opened.family.trunk(opened.module) or ()
    blocks = [block for block in map(opened.module.get_submodule, steps) if next(block.children(), None) is not None]
    hooks = [block.register_forward_hook(lambda module, inputs, output: output.clone()) for block in blocks]
    work = path.parent / 'pnnx'
    work.mkdir()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            data = _trace(opened, half=False, pad=False).save_to_buffer()
    except Exception as error:
        raise _refusal('ncnn', opened, error) from None
    finally:
        for hook in hooks:
            hook.remove()
    reserve(path, 4 * len(data))  # pnnx itself does not see that the disk is full
    write(work / 'model.pt', data)
    shapes = ['inputshape=[1,3,{},{}]f32'.format(*TRACED), 'inputshape2=[1,3,{},{}]f32'.format(*TRACED_TOO)]
    command = [pnnx.EXEC_PATH, 'model.pt', *shapes, f'fp16={int(half)}']
    pipes = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.PIPE, 'encoding': 'utf-8', 'errors': 'replace'}
    done = subprocess.run(command, cwd=work, check=False, **pipes)
    graph, weights = work / 'model.ncnn.param', work / 'model.ncnn.bin'
    if done.returncode or not (graph.is_file() and weights.is_file()):
        last = (done.stderr.strip().splitlines() or ['without a word'])[-1]
        raise _refusal('ncnn', opened, RuntimeError(f'pnnx ended with status {done.returncode}: {last}'))
    text = graph.read_text(encoding='utf-8')
    for name, wanted in (('in0', 'data'), ('out0', 'output')):
        text = re.sub(rf'(?<!\S){name}(?!\S)', wanted, text)
    write(path, text.encode())
    weights.replace(path.with_suffix('.bin'))
    _write_texts(opened, path)


def run_ncnn(path: Path) -> Runner:
    """ncnn on the CPU, computing in float32."""
    import ncnn
    import numpy as np

    net = ncnn.Net()
    net.opt.num_threads = torch.get_num_threads()
    net.opt.use_vulkan_compute = False
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    if net.load_param(str(path)) or net.load_model(str(path.with_suffix('.bin'))):
        raise RuntimeError('ncnn does not know all of its layers')

    def run(images: torch.Tensor) -> torch.Tensor:
        outputs = []
        for image in images.numpy():
            array = np.ascontiguousarray(image)  # ncnn looks into this memory
            extractor = net.create_extractor()
            extractor.input('data', ncnn.Mat(array))
            status, output = extractor.extract('output')
            if status:
                raise RuntimeError(f'ncnn ended with status {status}')
            outputs.append(torch.from_numpy(np.array(output)))
        return torch.stack(outputs)

    return run


# --------------------------------------------------- weights alone ---------------------------------------------------


def to_safetensors(opened: Opened, path: Path, half: bool = False) -> None:
    """Writes the bare state dict, which spandrel reads, with what the file says of itself in its header.

    What spandrel knows by other names or with other layers gets these (:meth:`sdakd_arch.families.Family.common`).
    """
    _save_state(opened, opened.network, opened.module.state_dict(), path, half)


def _save_state(opened: Opened, network: dict, state: dict[str, torch.Tensor], path: Path, half: bool) -> None:
    opened = copy.copy(opened)
    opened.network, state = opened.family.common(network, state)
    state = {key: _stored(tensor, half) for key, tensor in state.items()}
    if path.suffix == '.pth':
        save_whole({'params_ema': state}, path)
        _write_texts(opened, path)
        return
    from safetensors.torch import save

    state = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in state.items()}
    write(path, save(state, metadata=texts(opened)))  # its own way to write a file hides it from other users


def _stored(tensor: torch.Tensor, half: bool) -> torch.Tensor:
    """A tensor as it is saved; one that repeats a single number stays one number in memory."""
    tensor = tensor.detach()
    if repeats := tensor.numel() > 1 and not any(tensor.stride()):
        shape, tensor = tensor.shape, tensor[(slice(1),) * tensor.ndim].clone()
    tensor = tensor.half() if half and tensor.is_floating_point() else tensor
    return tensor.expand(shape) if repeats else tensor.contiguous()


def run_weights(path: Path) -> Runner:
    """BasicSR's architecture with the file's weights."""
    from sdakd.files.generators import open_network

    return Portable(open_network(path))


def check_padded(opened: Opened) -> None:
    """Before anything is written.

    Raises:
        UserError: There is nothing to pad.
    """
    try:
        opened.family.padded(opened.network, opened.module.state_dict())
    except ValueError as error:
        raise UserError('--to padded', f'{opened.path} {error}.') from None


def to_padded(opened: Opened, path: Path, half: bool = False) -> None:
    """Writes a generator as ``.safetensors`` or ``.pth`` in the sizes that spandrel takes for granted."""
    _save_state(opened, *opened.family.padded(opened.network, opened.module.state_dict()), path, half)


def run_spandrel(path: Path) -> Runner:
    """spandrel, which chaiNNer and ComfyUI open models with; BasicSR's architecture where it is not installed."""
    try:
        import spandrel
    except ImportError:
        say('spandrel is not installed (pip install spandrel): read back by BasicSR instead.')
        return run_weights(path)
    network = spandrel.ModelLoader('cpu').load_from_file(str(path)).model.eval().float()

    def run(image: torch.Tensor) -> torch.Tensor:
        output = network(image)
        return output[0] if isinstance(output, tuple) else output  # MM-RealSR gives what it estimates as well

    return run
