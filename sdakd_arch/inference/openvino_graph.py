"""OpenVINO's graphs: written from ONNX, marked for bfloat16, compiled for a processor."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino

SLICES = ('Slice', 'StridedSlice')  # as OpenVINO calls them


def keep_sums_precise(path: Path) -> None:
    """Marks layers of an OpenVINO model (``.xml``) that stay in float32 at any inference precision.

    These are the sums of a residual network's trunk, which would be rounded again at every one of them, and all that
    follows an interpolation, which is few layers. The trunk's sums are additions of two computed tensors of which none
    is a slice of another. The attribute is the one that OpenVINO's own converters use (``precise``, read by its
    processor plug-in).
    """
    tree = ET.parse(path)
    layers = {layer.get('id'): layer for layer in tree.getroot().find('layers')}
    inputs: dict[str, list[str]] = {}
    followers: dict[str, list[str]] = {}
    for edge in sorted(tree.getroot().find('edges'), key=lambda edge: int(edge.get('to-port'))):
        inputs.setdefault(edge.get('to-layer'), []).append(edge.get('from-layer'))
        followers.setdefault(edge.get('from-layer'), []).append(edge.get('to-layer'))

    def computed(key: str) -> bool:
        """Whether a layer's output is a feature map: no bias, whose shape is computed, and no slice."""
        kind = layers[key].get('type')
        return computed(inputs[key][0]) if kind == 'Reshape' else kind not in ('Const', *SLICES)

    marked = {
        key
        for key, layer in layers.items()
        if layer.get('type') == 'Add' and all(computed(source) for source in inputs[key])
    }
    reached = [key for key, layer in layers.items() if layer.get('type') == 'Interpolate']
    behind: set[str] = set()
    while reached:
        key = reached.pop()
        if key not in behind:
            behind.add(key)
            reached.extend(followers.get(key, []))
    for key in marked | behind:
        layer = layers[key]
        if layer.get('type') != 'Result':
            info = layer.find('rt_info')
            if info is None:
                info = ET.Element('rt_info')
                layer.insert(0 if layer.find('data') is None else 1, info)
            ET.SubElement(info, 'attribute', {'name': 'precise', 'version': '0', 'value': ''})
    tree.write(path)


def own_slopes(model: openvino.Model) -> None:
    """Gives every PRelu slopes of its own: OpenVINO computes it with a convolution only if nothing shares them."""
    from openvino import opset8

    for layer in model.get_ops():
        if layer.get_type_name() == 'PRelu':
            slopes = layer.input_value(1).get_node()
            if slopes.get_type_name() == 'Constant':
                layer.input(1).replace_source_output(opset8.constant(slopes.get_data()).output(0))


def save(graph: bytes, path: Path, half: bool = False) -> None:
    """Writes an ONNX graph as OpenVINO's ``path`` (``.xml``) and the ``.bin`` beside it.

    Args:
        graph: The ONNX file; what it says of itself becomes the model's information about its ``framework``.
        path: The file to write.
        half: Store weights in float16; they are computed with as the runtime likes.
    """
    import openvino

    model = openvino.Core().read_model(graph)
    own_slopes(model)
    openvino.save_model(model, str(path), compress_to_fp16=half)
    keep_sums_precise(path)


def settings(bf16: bool, threads: int) -> dict:
    """How a graph is compiled for one image at a time; ``threads`` 0 leaves the choice to OpenVINO."""
    hints = {'INFERENCE_PRECISION_HINT': 'bf16' if bf16 else 'f32', 'PERFORMANCE_HINT': 'LATENCY'}
    return {**hints, 'INFERENCE_NUM_THREADS': threads}
