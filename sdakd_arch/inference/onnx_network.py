"""ONNX graphs as modules."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from sdakd.compat import UserError


class OnnxNetwork(nn.Module):
    """An ONNX graph run by ONNX Runtime, called as any other generator.

    Args:
        path: The file; its input is ``(N, 3, h, w)`` with dynamic height and width.
        threads: How many threads ONNX Runtime may use; 0 leaves the choice to it.

    Raises:
        UserError: ONNX Runtime is not installed, or the file is no ONNX graph that takes one image.
    """

    def __init__(self, path: Path, where: str, threads: int = 0) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise UserError(f'{where}: {path} needs ONNX Runtime: pip install onnxruntime.') from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        wanted = ['CUDAExecutionProvider', 'CPUExecutionProvider']
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # its exceptions share no base class
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(f'{where}: {path} cannot be read as an ONNX graph ({reason}).') from None
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[1] != 3:
            shapes = [entry.shape for entry in inputs]
            raise UserError(f'{where}: {path} takes {shapes}, not one RGB image (N, 3, height, width).')
        self.input = inputs[0].name
        self.dtype = torch.float16 if 'float16' in inputs[0].type else torch.float32

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        array = image.detach().to('cpu', self.dtype).contiguous().numpy()
        output = self.session.run(None, {self.input: array})[0]
        return torch.from_numpy(output).to(image.device, image.dtype)
