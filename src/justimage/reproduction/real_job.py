"""A job that trains nothing: real images of a resolution, scaled to another or as they are, and scored."""

from dataclasses import dataclass

from justimage import data, progress, randomness
from justimage.evaluation.feature_sampler import resize
from justimage.evaluation.reference import CHUNK
from justimage.evaluation.scores import fid
from justimage.progress import Progress
from justimage.reproduction import Lab, Result, hash_of, scoring
from justimage.reproduction.training_job import SHOWN, store_samples


@dataclass(frozen=True)
class RealImages:
    """The FID of some real images of one side against all of another, to which they are scaled."""

    side: int
    resize: int
    count: int

    def group(self, lab: Lab) -> str:
        return self.key(lab)

    @property
    def title(self) -> str:
        return f"real images of {self.side}" + (f", scaled to {self.resize}" if self.resize != self.side else "")

    def key(self, lab: Lab) -> str:
        s = lab.scale
        return hash_of(self.title, "chosen at random", lab.environment_key, self.count, s.features, s.reference, s.classifier)

    def run(self, lab: Lab) -> progress.Job[Result]:
        extractor = scoring.extractor(lab, self.resize, self.resize)
        reference = yield from scoring.reference(lab, extractor, self.resize, lab.scale.channels)
        source = data.open_source(lab.scale.data.replace("{size}", str(self.side)), scoring.crop(lab.scale, self.side))
        indices = randomness.subset(len(source), self.count)
        features = []
        for first in range(0, len(indices), CHUNK):
            images = resize(source.batch(indices[first : first + CHUNK])[0], (self.resize, self.resize))
            if not first:
                store_samples(lab, self, images[:SHOWN], [])
            features.append(extractor.extract(images)[0])
            yield Progress(self.title, first + len(images), len(indices))
        score, _ = fid(features, reference.statistics)
        return {"fid": score.value, "deviations": {"fid": score.std}, "images_scored": len(indices)}
