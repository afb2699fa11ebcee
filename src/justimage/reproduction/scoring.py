"""The space in which an experiment's samples are compared with real images: by default a classifier of the same data."""

from dataclasses import replace
from pathlib import Path

import torch

from justimage import data, disk, progress
from justimage.evaluation.feature_sampler import resize
from justimage.evaluation.reference import Reference, open_reference
from justimage.features import Extractor, open_features
from justimage.features.classifier import ClassifierShape, ClassifierTrainer
from justimage.progress import Progress
from justimage.recipe import normalization_of
from justimage.reproduction import Lab, hash_of
from justimage.reproduction.scales import Scale


def crop(scale: Scale, side: int) -> data.Crop:
    """How images of a side are read: as by the scale's trainings, small ones scaled up."""
    return data.Crop((side, side), scale.channels, upscale=True, decode=scale.recipe("B/16").training.decode)


def fingerprint_of_data(scale: Scale) -> str:
    """A hash of the images, and of the files that scores are computed from; ValueError for images without classes."""
    side = scale.recipe("B/16").model.size[0]
    source = data.open_source(scale.data.replace("{size}", str(side)), crop(scale, side))
    if len(source.class_names) < 2:
        raise ValueError(
            f"{scale.data} has no classes, which these experiments need: one sub-folder a class, or an archive of such"
        )
    files = [Path(word).expanduser() for word in (scale.features, scale.reference)]
    return hash_of(source.fingerprint, [disk.sha256(file) for file in files if file.is_file()])


def extractor(lab: Lab, side: int, feature_size: int) -> Extractor:
    """The extractor for images of a side, which scales them to its own input size, feature_size, first."""
    found = open_features(lab.scale.features or str(classifier_path(lab, feature_size)), torch.device(lab.device))
    if side == feature_size:
        return found
    size = feature_size, feature_size
    return replace(
        found,
        name=f"{found.name}, of images scaled to {feature_size} x {feature_size}",
        fingerprint=f"{found.fingerprint} at {feature_size}",
        extract=lambda images: found.extract(resize(images, size)),
    )


def reference(lab: Lab, extractor: Extractor, side: int, channels: int) -> progress.Job[Reference]:
    """The real images of a side."""
    word = (lab.scale.reference or lab.scale.data).replace("{size}", str(side))
    return open_reference(word, extractor, replace(crop(lab.scale, side), channels=channels))


def classifier_path(lab: Lab, side: int) -> Path:
    key = hash_of(lab.environment_key, lab.scale.channels, lab.scale.classifier)[:8]
    return lab.root / "features" / f"classifier-{side}-{key}.safetensors"


def ensure_classifier(lab: Lab, side: int) -> progress.Job[float | None]:
    """Train the classifier that extracts features of images of a side; returns its accuracy, or None where none is needed or
    there is one."""
    path = classifier_path(lab, side)
    if lab.scale.features or path.exists():
        return None
    s, c = lab.scale, lab.scale.classifier
    title = f"a classifier of {side} x {side}"
    yield Progress(title, 0, c["images"])
    source = yield from data.cache_in_ram(data.open_source(s.data.replace("{size}", str(side)), crop(s, side)))
    shape = ClassifierShape(s.channels, (side, side), len(source.class_names), c["width"], c["features"])
    device, normalization = torch.device(lab.device), normalization_of(source)
    trainer = ClassifierTrainer(source, shape, normalization, c["images"], c["batch"], device=device)
    for step in trainer.steps(path):
        yield Progress(title, min(step.images_seen, c["images"]), c["images"])
    accuracy = trainer.accuracy()
    trainer.save(path, accuracy)
    return accuracy
