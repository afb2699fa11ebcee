"""Operators that a library needs declared before it can be imported."""

from contextlib import suppress
from typing import Any

import torch

DECLARED: list[Any] = []
"""Libraries of declared operators, which exist as long as these objects."""


def declare_operators() -> None:
    """Make torchvision, which torch-fidelity and transformers import, importable beside a CPU build of PyTorch.

    The torchvision of the package index is built for CUDA; beside PyTorch for CPUs its import fails, because operators of
    its compiled part are not declared. Declaring them is enough: they are never called. Without it nothing is done.
    """
    try:
        with suppress(ImportError):
            import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in "nms", "qnms":
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        DECLARED.append(library)
        import torchvision  # noqa: F401
