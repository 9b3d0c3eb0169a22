# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Lets transformers import a torchvision whose compiled operators do not load, for the peer of bench/serving.py alone.

Knows nothing about servers. Python imports it at start when its folder is on PYTHONPATH. torchvision's wheels on PyPI are built
for CUDA; beside a CPU build of torch their library does not load, and importing torchvision then fails where it registers
shapes for its operators. transformers wants nothing of them for ERNIE-VL but to decode a picture, which Pillow does as well:
the operators get their names and no more (a call fails), and `decode_image` is done with Pillow. A torchvision that works is
left alone.
"""

import importlib.abc
import sys

_OPERATORS = (
    "_ps_roi_align_backward",
    "_ps_roi_pool_backward",
    "_roi_align_backward",
    "_roi_pool_backward",
    "nms",
    "ps_roi_align",
    "ps_roi_pool",
    "qnms",
    "qroi_align",
    "roi_align",
    "roi_pool",
)


def decode_with_pillow(data, mode="RGB", *_args, **_kwargs):
    """A picture's bytes, as a tensor or a path -> uint8 [3, height, width], as torchvision.io.decode_image gives it."""
    import io

    import numpy
    import torch
    from PIL import Image

    source = data if isinstance(data, str) else io.BytesIO(data.numpy().tobytes())
    with Image.open(source) as image:
        return torch.from_numpy(numpy.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Names the operators when torchvision is about to be imported, and replaces its decoder then."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision":
            self._define_operators()
        elif fullname == "torchvision.io":
            sys.meta_path.remove(self)
            import torchvision.io
            import torchvision.io.image

            if not hasattr(sys, "_torchvision_library"):
                return None
            torchvision.io.decode_image = torchvision.io.image.decode_image = decode_with_pillow
            return torchvision.io.__spec__
        return None

    def _define_operators(self):
        import torch

        if hasattr(sys, "_torchvision_library"):
            return  # whoever asks whether torchvision is there looks for it too
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in _OPERATORS:
            if not hasattr(torch.ops.torchvision, name):
                library.define(f"{name}(Tensor x) -> Tensor")
        sys._torchvision_library = library  # as long as the process lives


sys.meta_path.insert(0, _BeforeTorchvision())
