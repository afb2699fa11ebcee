"""Scores equal closed forms, independent computations and torch-fidelity; their std is that over repeated samples."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor

from justimage import features
from justimage.evaluation import scores
from justimage.evaluation.scores import Gaussian, gaussian
from justimage.features import inception
from justimage.operators import declare_operators
from tests.random_models import save_inception


def cloud(count: int, dimension: int = 16, seed: int = 0, shift: float = 0.0, spread: float = 1.0) -> Tensor:
    """Features that are correlated and not normally distributed."""
    rng = np.random.RandomState(seed)
    mixed = rng.standard_normal((count, dimension)) @ np.random.RandomState(99).standard_normal((dimension, dimension))
    return torch.from_numpy(np.maximum(mixed * spread + shift, -0.5)).float()


def test_the_distance_of_two_gaussians_is_the_closed_form() -> None:
    """For commuting covariances, |m1 - m2|^2 + sum (s1 - s2)^2."""
    basis = torch.linalg.qr(torch.from_numpy(np.random.RandomState(0).standard_normal((5, 5))))[0]
    s1, s2 = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0]).double(), torch.tensor([1.0, 0.0, 1.0, 4.0, 0.1]).double()
    m1, m2 = torch.arange(5).double(), torch.ones(5).double()
    a, b = (Gaussian(m, (basis * s**2) @ basis.T) for m, s in ((m1, s1), (m2, s2)))
    assert scores.frechet(a, b) == pytest.approx(float((m1 - m2).square().sum() + (s1 - s2).square().sum()), rel=1e-7)
    assert scores.frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_fid_equals_scipy_and_does_not_depend_on_the_chunks() -> None:
    x, y = cloud(700, seed=1, shift=0.3), cloud(900, seed=2)
    mu, nu = (q.double().numpy().mean(0) for q in (x, y))
    c, d = (np.cov(q.double().numpy(), rowvar=False) for q in (x, y))
    wanted = ((mu - nu) ** 2).sum() + np.trace(c + d - 2 * linalg.sqrtm(c @ d).real)
    real = gaussian([y])
    assert scores.fid([x], real)[0].value == pytest.approx(wanted, rel=1e-9)
    assert scores.fid(x.split(64), gaussian(y.split(100)))[0].value == pytest.approx(wanted, rel=1e-9)


def test_kid_is_the_unbiased_estimate_of_all_pairs() -> None:
    """With subsets of all images: the sum over pairs, written out."""
    x, y = cloud(40, 4, 1, 0.3), cloud(40, 4, 2)
    kernel = lambda a, b: (float(a.double() @ b.double()) / 4 + 1) ** 3
    within = sum(kernel(q[i], q[j]) for q in (x, y) for i in range(40) for j in range(40) if i != j) / (40 * 39)
    between = sum(kernel(x[i], y[j]) for i in range(40) for j in range(40)) / 40**2
    found = scores.kid(x, y, subsets=3, size=40)
    assert found.value == pytest.approx(within - 2 * between, rel=1e-9)
    assert found.split_std is not None and found.split_std < 1e-9 * abs(found.value) < found.std


def test_precision_and_recall_equal_the_comparison_of_all_pairs() -> None:
    x, y = cloud(150, 6, 1, 0.5), cloud(130, 6, 2)
    far = lambda a, b: torch.tensor([[math.dist(p, q) for q in b.tolist()] for p in a.tolist()], dtype=torch.float64)
    radii_x, radii_y = (far(q, q).sort(1).values[:, 3] for q in (x, y))
    d = far(x, y)
    precise, covered = (d <= radii_y).any(1), (d <= radii_x[:, None]).any(0)
    precision, recall = scores.precision_recall(x, y)
    assert precision.value == precise.double().mean() and recall.value == covered.double().mean()


def test_the_inception_score_equals_its_definition() -> None:
    logits = cloud(203, 7, 3) * 2
    p = np.exp(logits.double().numpy())
    p = (p / p.sum(1, keepdims=True))[np.random.RandomState(scores.SEED).permutation(203)]
    splits = [p[i * 203 // 10 : (i + 1) * 203 // 10] for i in range(10)]
    wanted = [np.exp(np.mean([(q * np.log(q / split.mean(0))).sum() for q in split])) for split in splits]
    found = scores.inception_score(logits)
    assert found.value == pytest.approx(np.mean(wanted), rel=1e-9)
    assert found.split_std == pytest.approx(np.std(wanted), rel=1e-9)
    assert scores.inception_score(logits[:5]).value >= 1


def test_class_accuracy_counts() -> None:
    found = scores.class_accuracy(torch.eye(4).repeat(25, 1), torch.tensor([0, 1, 2, 0]).repeat(25))
    assert found.value == 0.75 and found.std == pytest.approx(math.sqrt(0.75 * 0.25 / 99))


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_the_std_of_fid_is_that_over_other_samples(shift: float) -> None:
    """Over 200 samples of 1,000 images: the mean estimate is within 15 % of the true std; where FID consists only of the bias
    of finite samples, it is at least the true std and less than twice that."""
    real = gaussian([cloud(20_000, 8, 1000)])
    found = [scores.fid([cloud(1000, 8, seed, shift)], real)[0] for seed in range(200)]
    true = float(torch.tensor([f.value for f in found]).std())
    stated = float(torch.tensor([f.std for f in found]).mean())
    assert true < stated < 2 * true if not shift else stated == pytest.approx(true, rel=0.15)


def test_the_std_of_a_paired_difference_is_that_over_other_samples() -> None:
    """The same sample, slightly changed: the std of the difference is that over repetitions, less than each score's."""
    real, differences, stated, alone = gaussian([cloud(20_000, 8, 1000)]), [], [], []
    for seed in range(100):
        x = cloud(1000, 8, seed)
        a, b = (scores.fid([q], real) for q in (x, 1.05 * x))
        differences.append(b[0].value - a[0].value)
        stated.append(scores.standard_error(b[1] - a[1]))
        alone.append(b[0].std)
    true = float(torch.tensor(differences).std())
    assert np.mean(stated) == pytest.approx(true, rel=0.2) and true < np.mean(alone)


def test_is_is_torch_fidelitys_for_samples_whose_classes_take_turns() -> None:
    """Ten images of each of 20 classes: splits in order would have as many of each."""
    declare_operators()
    metric = pytest.importorskip("torch_fidelity.metric_isc", reason="torch-fidelity is not installed")
    random = torch.Generator().manual_seed(0)
    logits = 5 * torch.nn.functional.one_hot(torch.arange(200) % 20, 20) + torch.randn(200, 20, generator=random)
    ours, theirs = scores.inception_score(logits), metric.isc_features_to_metric(logits)
    assert ours.value == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert ours.split_std == pytest.approx(theirs["inception_score_std"], rel=1e-6)
    in_order = metric.isc_features_to_metric(logits, shuffle=False)["inception_score_mean"]
    assert in_order > 1.05 * ours.value


def test_the_std_of_precision_is_that_over_other_samples_where_classes_take_turns() -> None:
    """Ten classes, some of which are drawn well: a split of every tenth image would hold one class alone."""
    classes = torch.arange(1000) % 10
    centres = 20 * cloud(10, 6, 1)

    def drawn(seed: int, spread: Tensor) -> Tensor:
        noise = torch.randn(1000, 6, generator=torch.Generator().manual_seed(seed))
        return centres[classes] + spread[classes, None] * noise

    even, uneven = torch.ones(10), torch.linspace(1, 4, 10)
    found = [scores.precision_recall(drawn(seed, uneven), drawn(100 + seed, even))[0] for seed in range(20)]
    true = float(torch.tensor([f.value for f in found]).std())
    assert np.mean([f.std for f in found]) == pytest.approx(true, rel=0.5)


@pytest.mark.full
def test_the_std_of_is_and_kid_is_that_over_other_samples() -> None:
    """Over 100 samples of 1,000 images: the mean estimate is within 40 % of the true std."""
    real = cloud(1000, 6, 1000)
    for score in (lambda x: scores.inception_score(x), lambda x: scores.kid(x, real, subsets=2, size=1000)):
        found = [score(cloud(1000, 6, seed, 0.3)) for seed in range(100)]
        true = float(torch.tensor([f.value for f in found]).std())
        assert np.mean([f.std for f in found]) == pytest.approx(true, rel=0.4)


def test_copies_of_real_images_are_detected_though_some_real_ones_are_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    from justimage.evaluation import report
    from justimage.evaluation.reference import Reference

    real = cloud(400, 8, 1)
    real[1:40:2] = real[0:40:2]
    found = Reference({}, gaussian([real]))
    monkeypatch.setattr(Reference, "iter_features", lambda self: iter([real]))
    monkeypatch.setattr(Reference, "subsample", lambda self, most: (torch.arange(400), real))
    assert report.memorization(real[:50], found).value == 1 and report.memorization(cloud(200, 8, 2), found).value < 0.05


def test_nearest_finds_the_nearest_row_other_than_itself() -> None:
    x = cloud(300, 4, 5)
    d = torch.cdist(x.double(), x.double())
    apart, which = scores.nearest(x[:50], x.split(77))
    assert which.tolist() == list(range(50)) and float(apart.max()) < 1e-6
    apart, which = scores.nearest(x[:50], x.split(77), torch.arange(50))
    d.fill_diagonal_(torch.inf)
    assert which.tolist() == d[:50].argmin(1).tolist() and torch.allclose(apart, d[:50].min(1).values)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    declare_operators()
    pytest.importorskip("torch_fidelity")
    return save_inception(tmp_path_factory.mktemp("weights") / "random.pth")


def smooth_images(count: int, seed: int, brightness: float) -> Tensor:
    rng = np.random.RandomState(seed)
    coarse = torch.from_numpy(rng.standard_normal((count, 3, 4, 4))).float()
    smooth = torch.nn.functional.interpolate(coarse, (24, 24), mode="bilinear")
    return (smooth * 50 + brightness).clamp(0, 255).to(torch.uint8)


class Images(torch.utils.data.Dataset):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@pytest.mark.full
@pytest.mark.timeout(600)
def test_scores_equal_torch_fidelity_with_the_same_images_and_weights(weights: Path) -> None:
    """End to end: FID, IS, KID, precision and recall, to 1e-4."""
    import hashlib

    import torch_fidelity

    x, y = smooth_images(32, 1, 120), smooth_images(36, 2, 140)
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(x), input2=Images(y), cuda=False, isc=True, fid=True, kid=True, prc=True, verbose=False, cache=False,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(weights), kid_subset_size=24, kid_subsets=5,
        batch_size=16, prc_neighborhood=3,
    )  # fmt: skip
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    extractor = inception.open_weights(weights, torch.device("cpu"), digest)
    ours = [extractor.extract(q) for q in (x, y)]
    (a, logits), (b, _) = ours
    assert extractor.dimension == a.shape[1] == 2048 and logits is not None
    kid = scores.kid(a, b, subsets=5, size=24)
    precision, recall = scores.precision_recall(a, b)
    inception_score = scores.inception_score(logits)
    wanted = {
        "frechet_inception_distance": scores.fid([a], gaussian([b]))[0].value,
        "inception_score_mean": inception_score.value,
        "inception_score_std": inception_score.split_std,
        "kernel_inception_distance_mean": kid.value,
        "kernel_inception_distance_std": kid.split_std,
        "precision": precision.value,
        "recall": recall.value,
    }
    assert theirs.keys() >= wanted.keys()
    for name, value in wanted.items():
        assert value == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name


def test_weights_of_another_hash_are_refused_before_unpickling(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was unpickled"))
    with pytest.raises(ValueError, match=r"SHA-256 .*not 6726825d0af5f729"):
        features.open_features(str(weights), torch.device("cpu"))


def test_missing_weights_are_one_line_with_the_file_and_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError) as caught:
        features.open_features("inception", torch.device("cpu"))
    message = str(caught.value)
    assert f"{tmp_path}/checkpoints/{inception.FILE}" in message and "6726825d0af5f729" in message and "\n" not in message


def test_a_grey_image_has_the_features_of_its_colour_version(weights: Path) -> None:
    import hashlib

    extractor = inception.open_weights(weights, torch.device("cpu"), hashlib.sha256(weights.read_bytes()).hexdigest())
    grey = smooth_images(2, 3, 128)[:, :1]
    assert torch.equal(extractor.extract(grey)[0], extractor.extract(grey.expand(-1, 3, -1, -1))[0])
    with pytest.raises(ValueError, match="1 or 3 channels"):
        extractor.extract(torch.zeros(2, 5, 8, 8, dtype=torch.uint8))
    assert "torchvision" in sys.modules
