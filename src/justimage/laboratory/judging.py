"""The space in which images of an experiment are compared: a classifier of the same data, unless another is asked for."""

from collections.abc import Callable
from pathlib import Path

import torch

from justimage import data
from justimage.evaluation.reference import Reference, open_reference
from justimage.features import Extractor
from justimage.features.classifier import Shape, Trainer
from justimage.laboratory import Lab, hashed
from justimage.process import Units


def reference(lab: Lab, side: int, channels: int, extractor: Extractor, stop: Callable[[], bool]) -> Reference:
    word = (lab.scale.reference or lab.scale.data).replace("{size}", str(side))
    return open_reference(word, extractor, (channels, side, side), enlarge=True, stop=stop)


def features(lab: Lab, side: int) -> str:
    """The space of scores for images of that side: what was asked for, or the classifier that `learn_to_read` has made."""
    return lab.scale.features or str(classifier_place(lab, side))


def classifier_place(lab: Lab, side: int) -> Path:
    facts = hashed(lab.scale.data, lab.scale.channels, lab.scale.classifier)[:8]
    return lab.place / "features" / f"classifier-{side}-{facts}.safetensors"


def learn_to_read(lab: Lab, side: int, progress: Callable[[int, int], object]) -> float | None:
    """Train the classifier in whose space images of that side are compared; its accuracy, or None where it is there."""
    path = classifier_place(lab, side)
    if lab.scale.features or path.exists():
        return None
    s, c = lab.scale, lab.scale.classifier
    source = data.open_source(s.data.replace("{size}", str(side)), (side, side), s.channels, enlarge=True)
    shape = Shape(s.channels, (side, side), len(source.class_names), c["width"], c["features"])
    units = Units(*source.statistics) if isinstance(source, data.Store) and source.floats else Units()
    trainer = Trainer(data.in_memory(source), shape, units, c["images"], c["batch"], device=torch.device(lab.device))
    for step in trainer.steps():
        progress(min(step.images_seen, c["images"]), c["images"])
    accuracy = trainer.accuracy()
    trainer.save(path, accuracy)
    return accuracy
