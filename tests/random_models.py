"""Models of other libraries with random weights, saved as the real ones are: what reads those reads these."""

from pathlib import Path
from typing import Any

import torch

from justimage.operators import declare_operators


def save_encoder(place: Path) -> str:
    """A small T5 that reads bytes, saved as on the Hub; its path."""
    declare_operators()
    import transformers

    torch.manual_seed(0)
    sizes = dict(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=384, **sizes)).save_pretrained(str(place))
    transformers.ByT5Tokenizer().save_pretrained(str(place))
    return str(place)


def save_inception(path: Path) -> Path:
    """Inception-v3 in torch-fidelity's format, initialised so that features vary."""
    declare_operators()
    import torch_fidelity.feature_extractor_inceptionv3 as module

    fidelity: Any = module
    fidelity.load_state_dict_from_url, original = None, fidelity.load_state_dict_from_url
    try:
        torch.manual_seed(0)
        net = fidelity.FeatureExtractorInceptionV3.__new__(fidelity.FeatureExtractorInceptionV3)
        net.load_state_dict = lambda state: None
        fidelity.load_state_dict_from_url = lambda *_, **__: {}
        net.__init__("inception-v3-compat", ["2048"])
        del net.load_state_dict
    finally:
        fidelity.load_state_dict_from_url = original
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    torch.nn.init.normal_(net.fc.weight, std=0.05)
    torch.save(net.state_dict(), path)
    return path
