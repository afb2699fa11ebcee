"""JiT, a plain Transformer on the pixels of an image, as a model of diffusers (arXiv 2511.13720)."""

from typing import Any, ClassVar, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from justimage.architectures import Architecture
from justimage.conditions import Condition
from justimage.transformer import JiT


class JiTModel(ModelMixin, ConfigMixin):
    """A JiT whose configuration is its `Architecture`, where each entry is explained. Its weights are those of `net`."""

    _no_split_modules: ClassVar = ["Block"]
    _repeated_blocks: ClassVar = ["Block"]

    @register_to_config
    def __init__(
        self,
        image_size: int | tuple[int, int] = 256,
        patch_size: int = 16,
        channels: int = 3,
        classes: int = 1000,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        bottleneck: int | None = 128,
        context_tokens: int = 32,
        context_start: int = 4,
        dropout: float = 0.0,
        rope: bool = True,
        qk_norm: bool = True,
        mlp: Literal["swiglu", "gelu"] = "swiglu",
        norm: Literal["rms", "layer"] = "rms",
        aux_classifier: bool = False,
        image_channels: int = 0,
        vector: int = 0,
        text_length: int = 0,
        text_features: int = 0,
        augmented: bool = False,
    ) -> None:
        super().__init__()
        size = image_size if isinstance(image_size, int) else (image_size[0], image_size[1])  # JSON has no tuples
        self.net = JiT(
            Architecture(
                size, patch_size, channels, classes, width, depth, heads, bottleneck, context_tokens, context_start, dropout,
                rope, qk_norm, mlp, norm, aux_classifier, image_channels, vector, text_length, text_features, augmented,
            )
        )  # fmt: skip
        self.shape, self.classes = self.net.shape, self.net.classes
        if self.net.class_table.weight.is_meta and not self.net.positions.is_meta:  # weights follow; tables are in no file
            self.net.init_tables()

    def forward(
        self, sample: Tensor, timestep: Tensor | float, class_labels: Condition = None, return_dict: bool = True
    ) -> Transformer2DModelOutput | tuple[Any, ...]:
        """The prediction, like sample (b, channels, height, width), at times in [0, 1], 0 for noise: (b,), or one for all.

        class_labels: (b,) numbers, -1 for no class; or a dict of what else the network takes: classes, image, vector, text.
        """
        t = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).expand(len(sample))
        output = self.net(sample, t, class_labels)
        output = output[0] if isinstance(output, tuple) else output
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)
