"""Feature extractors: a trained classifier, exported networks, and every unusable file refused in one line."""

import json
import pickle
import re
import zipfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from justimage import data, features
from justimage.features import classifier
from justimage.features.classifier import ClassifierShape, ClassifierTrainer
from justimage.normalization import Normalization

CPU = torch.device("cpu")


@pytest.mark.full
def test_a_classifier_from_its_file_recognises_digits_whatever_the_batch(digits_classifier: Path) -> None:
    extractor = features.open_features(str(digits_classifier), CPU)
    digits = data.digits()
    values, logits = extractor.extract(digits.images[:300])
    assert values.shape == (300, 32) and extractor.dimension == 32 and extractor.class_names == tuple("0123456789")
    assert logits is not None and float((logits.argmax(1) == digits.labels[:300]).float().mean()) > 0.97
    singles = torch.cat([extractor.extract(image[None])[0] for image in digits.images[:5]])
    assert torch.allclose(singles, values[:5], atol=1e-5)


def test_training_a_classifier_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in "a", "b":
        trainer = ClassifierTrainer(data.digits(), ClassifierShape(1, (32, 32), 10, width=4, features=8), images=320)
        assert len(list(trainer.steps())) == 5 and not set(trainer.held_out_indices) & set(trainer.train_indices)
        trainer.save(tmp_path / f"{name}.safetensors", 0.5)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_killed_training_of_a_classifier_resumes_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored after each update; one with other settings, beside it, begins anew."""
    monkeypatch.setattr(classifier, "SAVE_EVERY", 0.0)

    def trainer(seed: int = 0) -> ClassifierTrainer:
        return ClassifierTrainer(data.digits(), ClassifierShape(1, (32, 32), 10, width=4, features=8), images=320, seed=seed)

    whole, resumed = tmp_path / "whole.safetensors", tmp_path / "resumed.safetensors"
    first = trainer()
    assert [step.images_seen for step in first.steps(whole)] == [64, 128, 192, 256, 320]
    first.save(whole, 0.5)
    assert [step.images_seen for step in islice(trainer().steps(resumed), 2)] == [64, 128]
    assert next(trainer(seed=1).steps(tmp_path / "other.safetensors")).images_seen == 64
    again = trainer()
    assert [step.images_seen for step in again.steps(resumed)] == [192, 256, 320]
    again.save(resumed, 0.5)
    assert resumed.read_bytes() == whole.read_bytes()
    unfinished = tmp_path / "other.safetensors.unfinished"
    assert list(tmp_path.glob("*.unfinished")) == [unfinished]
    assert next(trainer().steps(tmp_path / "other.safetensors")).images_seen == 64
    unfinished.write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"other\.safetensors\.unfinished is a damaged unfinished training; remove it"):
        next(trainer().steps(tmp_path / "other.safetensors"))


def test_a_classifier_of_floats_of_five_channels_normalizes_them(tmp_path: Path) -> None:
    """Two classes of spectra far from zero."""
    rng = np.random.RandomState(0)
    labels = np.arange(400) % 2
    arrays = rng.standard_normal((400, 5, 12, 20)).astype(np.float32) * 3 + 500
    arrays[labels == 1, 2] += 4
    source = data.ArraySource(torch.from_numpy(arrays), torch.from_numpy(labels), ["a", "b"], "spectra")
    normalization = Normalization(tuple(arrays.mean((0, 2, 3)).tolist()), tuple(arrays.std((0, 2, 3)).tolist()))
    shape = ClassifierShape(5, (12, 20), 2, width=8, features=8)
    trainer = ClassifierTrainer(source, shape, normalization, images=3200, batch=32)
    for _ in trainer.steps():
        pass
    assert trainer.accuracy() > 0.95
    trainer.save(tmp_path / "s.safetensors", trainer.accuracy())
    extractor = features.open_features(str(tmp_path / "s.safetensors"), CPU)
    logits = extractor.extract(source.images)[1]
    assert logits is not None and float((logits.argmax(1) == source.labels).float().mean()) > 0.95
    with pytest.raises(ValueError, match=r"trained on images of 5 x 12 x 20, and these are 1 x 12 x 20"):
        extractor.extract(source.images[:, :1])


class Halves(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.float().mean(1)
        return x.mean(1), x.mean(2)


def test_an_exported_network_computes_what_the_network_does(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    dynamic = {"images": {0: torch.export.Dim("n", min=1, max=512)}}
    torch.export.save(torch.export.export(Halves(), (images,), dynamic_shapes=dynamic), tmp_path / "net.pt2")
    extractor = features.open_features(str(tmp_path / "net.pt2"), CPU)
    values, logits = extractor.extract(images[:5])
    wanted = Halves()(images[:5])
    assert logits is not None and torch.equal(values, wanted[0]) and torch.equal(logits, wanted[1])
    with pytest.raises(ValueError, match="does not take images of") as caught:
        extractor.extract(images[:, :1])
    assert "\n" not in str(caught.value)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("EVIL",)


def test_pickles_in_an_exported_network_are_not_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pickle in place of the example inputs, which torch.export.load would unpickle."""
    dynamic = {"images": {0: torch.export.Dim("n", min=1, max=512)}}
    exported = torch.export.export(Halves(), (torch.zeros(2, 3, 8, 8, dtype=torch.uint8),), dynamic_shapes=dynamic)
    torch.export.save(exported, tmp_path / "good.pt2")
    replaced = 0
    with zipfile.ZipFile(tmp_path / "good.pt2") as good, zipfile.ZipFile(tmp_path / "evil.pt2", "w") as evil:
        for entry in good.infolist():
            content = good.read(entry)
            if "sample_inputs" in entry.filename:
                replaced, content = replaced + 1, pickle.dumps(Evil())
            evil.writestr(entry.filename, content)
    assert replaced
    with pytest.raises(ValueError, match=r"is not a network that torch.export saved"):
        features.open_features(str(tmp_path / "evil.pt2"), CPU)
    assert "EVIL" not in capsys.readouterr().out
    pickle.loads(pickle.dumps(Evil()))
    assert "EVIL" in capsys.readouterr().out


BAD_FEATURES = {
    "nothing.safetensors": (None, "does not exist; to train a classifier of your data"),
    "words.txt": (b"features", "allowed: inception, or a file"),
    "text.safetensors": (b"not at all", "is not a .safetensors file"),
    "text.pt2": (b"not at all", "is not a network that torch.export saved"),
    "text.pth": (b"not at all", "has SHA-256"),
}


@pytest.mark.parametrize("name", BAD_FEATURES)
def test_unusable_features_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    content, message = BAD_FEATURES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=re.escape(message)) as caught:
        features.open_features(str(tmp_path / name), CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["shape", "normalization", "channels", "names", "tensor", "wide", "older", "other"])
def test_a_damaged_or_older_classifier_is_refused_in_one_line(change: str, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    ClassifierTrainer(data.digits(), ClassifierShape(1, (32, 32), 10, width=4)).save(tmp_path / "good.safetensors", 0.5)
    assert features.open_features(str(tmp_path / "good.safetensors"), CPU).class_names == tuple("0123456789")
    with safe_open(tmp_path / "good.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["justimage"])
        tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    message = "is a damaged classifier"
    match change:
        case "shape":
            del metadata["shape"]["width"], metadata["shape"]["classes"]
        case "normalization":
            metadata["normalization"] = {"mean": [1.0], "std": []}
        case "channels":
            metadata["normalization"] = {"mean": [1.0] * 5, "std": [1.0] * 5}
        case "names":
            metadata["class_names"] = 7
        case "tensor":
            tensors["head.weight"] = tensors["head.weight"][:5].contiguous()
        case "wide":
            metadata["shape"]["width"] = 2**40
        case "older":
            metadata["kind"], message = "justimage classifier 1", "this version reads justimage classifier 2; train it again"
        case _:
            metadata["kind"], message = "another", "holds no classifier that justimage feature-space train has made"
    save_file(tensors, tmp_path / "bad.safetensors", {"justimage": json.dumps(metadata)})
    with pytest.raises(ValueError, match=message) as caught:
        features.open_features(str(tmp_path / "bad.safetensors"), CPU)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
