"""A network as an ONNX graph."""

import torch
from mmengine.utils import digit_version
from mmpretrain.models.utils import ShiftWindowMSA
from torch import Tensor, nn

from kd_mm.installation import import_optional


def require_onnx() -> None:
    """Raise ImportError if a package that the export takes is missing or too old."""
    import_optional('--format onnx', 'onnx', 'onnxscript', 'onnxruntime')
    if digit_version(torch.__version__) < digit_version('2.6'):
        raise ImportError(f'--format onnx needs torch>=2.6, but found {torch.__version__}')


def onnx_graph(network: nn.Module, images: Tensor) -> bytes:
    """Return the network as an ONNX file: ``images`` (N, C, H, W) to ``logits`` (N, K), any N."""
    for module in network.modules():
        if isinstance(module, ShiftWindowMSA):
            module.window_reverse = _reverse_windows
    try:
        program = torch.onnx.export(
            network,
            (images,),
            input_names=['images'],
            output_names=['logits'],
            dynamic_shapes=({0: 'batch'},),
            dynamo=True,
            verbose=False,
        )
    except RuntimeError as error:  # torch's own errors of export are such
        raise ValueError(
            f'torch {torch.__version__} cannot write this network as ONNX; nothing was written. '
            f'({str(error).strip().partition(chr(10))[0]})'
        ) from error
    return program.model_proto.SerializeToString()


def _reverse_windows(windows: Tensor, height: int, width: int, size: int) -> Tensor:
    """Put windows (n, size, size, C) of Swin back together, into (N, height, width, C).

    As mmpretrain's, which divides by the number of windows and so fixes N in a graph.
    """
    rows, columns, channels = height // size, width // size, windows.shape[-1]
    maps = windows.view(-1, rows, columns, size, size, channels).permute(0, 1, 3, 2, 4, 5)
    return maps.contiguous().view(-1, height, width, channels)


def run_onnx(graph: bytes, images: Tensor) -> Tensor:
    """Return the logits (N, K) that ONNX Runtime computes on a CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=['CPUExecutionProvider'])
    return torch.from_numpy(session.run(['logits'], {'images': images.numpy()})[0])
