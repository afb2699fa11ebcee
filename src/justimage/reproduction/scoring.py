"""The space in which images of an experiment are compared: a classifier of the same data, unless another is asked for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from justimage import data, disk
from justimage.evaluation.feature_sampler import resize
from justimage.evaluation.reference import Reference, open_reference
from justimage.features import Extractor, open_features
from justimage.features.classifier import ClassifierShape, ClassifierTrainer
from justimage.progress import finish
from justimage.recipe import normalization_of
from justimage.reproduction import Lab, hash_of
from justimage.reproduction.scales import Scale

Progress = Callable[[int, int], object]


def no_progress(done: int, total: int) -> None:
    """Progress that nobody looks at."""


def crop(scale: Scale, side: int) -> data.Crop:
    """How images of a side are read: as by the scale's trainings, the small ones scaled up."""
    return data.Crop((side, side), scale.channels, upscale=True, decode=scale.recipe("B/16").training.decode)


def fingerprint(scale: Scale) -> str:
    """Of the images of an experiment, and of what they are compared with and by; ValueError for images without classes."""
    side = scale.recipe("B/16").model.size[0]
    source = data.open_source(scale.data.replace("{size}", str(side)), crop(scale, side))
    if len(source.class_names) < 2:
        raise ValueError(
            f"{scale.data} has no classes, and these experiments need them: one sub-folder a class, or an archive of such"
        )
    files = [Path(word).expanduser() for word in (scale.features, scale.reference)]
    return hash_of(source.fingerprint, [disk.sha256(file) for file in files if file.is_file()])


def extractor(lab: Lab, compared: int, read: int) -> Extractor:
    """The network that reads images of one side, scaled to another first where it was made for that."""
    found = open_features(lab.scale.features or str(classifier_path(lab, read)), torch.device(lab.device))
    if compared == read:
        return found
    name, identity = f"{found.name}, of images scaled to {read} x {read}", f"{found.fingerprint} at {read}"
    return replace(found, name=name, identity=identity, extract=lambda images: found.extract(resize(images, (read, read))))


def reference(
    lab: Lab, extractor: Extractor, side: int, channels: int, progress: Progress = no_progress, stop: Callable[[], bool] = bool
) -> Reference:
    """Real images of that side."""
    word = (lab.scale.reference or lab.scale.data).replace("{size}", str(side))
    return open_reference(word, extractor, replace(crop(lab.scale, side), channels=channels), progress, stop)


def classifier_path(lab: Lab, side: int) -> Path:
    facts = hash_of(lab.environment_key, lab.scale.channels, lab.scale.classifier)[:8]
    return lab.root / "features" / f"classifier-{side}-{facts}.safetensors"


def train_classifier(lab: Lab, side: int, progress: Progress) -> float | None:
    """Train the classifier in whose space images of that side are compared; its accuracy, or None where it is there."""
    path = classifier_path(lab, side)
    if lab.scale.features or path.exists():
        return None
    s, c = lab.scale, lab.scale.classifier
    source = data.open_source(s.data.replace("{size}", str(side)), crop(s, side))
    shape = ClassifierShape(s.channels, (side, side), len(source.class_names), c["width"], c["features"])
    units = normalization_of(source)
    trainer = ClassifierTrainer(
        finish(data.cache_in_ram(source)), shape, units, c["images"], c["batch"], device=torch.device(lab.device)
    )
    for step in trainer.steps():
        progress(min(step.images_seen, c["images"]), c["images"])
    accuracy = trainer.accuracy()
    trainer.save(path, accuracy)
    return accuracy
