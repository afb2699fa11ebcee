"""Editing: what is known stays known, whatever the model; and the way to noise and back is exact."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from justimage import editing
from justimage.cli.edit import read_mask
from justimage.cli.photographs import read_photo
from justimage.conditions import Condition
from justimage.diffusion import Diffusion
from justimage.editing import Measurement, averages, blur, grey, known_pixels
from justimage.sampling import Denoiser, Sampling
from justimage.transformer import JiT
from tests.test_cli import justimage

SIZE = 16
MASK = (torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(0)) < 0.5).float()
MEASUREMENTS: dict[str, Callable[[], Measurement]] = {
    "known pixels": lambda: known_pixels(MASK),
    "averages": lambda: averages(4),
    "grey": lambda: grey(3),
    "blur": lambda: blur(1.0, (SIZE, SIZE)),
}
SDE = Sampling("sde", 8, "logsnr", interval=(0.1, 1.0), t_clip=0.0)


def model() -> Denoiser:
    """A network of random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = JiT("T/4", image_size=SIZE, channels=3, classes=2, width=32, heads=2)
        for p in net.parameters():
            nn.init.normal_(p, std=0.1)
    return Denoiser(net.eval(), Diffusion(noise_scale=0.5))


class GaussianNet(nn.Module):
    """The best prediction of x where data are independent normal numbers of some deviation: its field is known."""

    def __init__(self, deviation: float, scale: float) -> None:
        super().__init__()
        self.deviation, self.scale, self.shape = deviation, scale, (3, SIZE, SIZE)
        self.none = nn.Parameter(torch.zeros(()))

    def forward(self, z: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        t = t.view(-1, 1, 1, 1)
        variance = (t * self.deviation) ** 2 + ((1 - t) * self.scale) ** 2
        return t * self.deviation**2 / variance * z


def gaussian() -> Denoiser:
    return Denoiser(GaussianNet(0.4, 0.5), Diffusion(noise_scale=0.5))


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_projection_has_the_measurement_and_is_the_nearest_that_has(name: str) -> None:
    known, x, other = MEASUREMENTS[name](), images(3), images(6)[3:]
    y = known.forward(x)
    projected = known.project(other, y)
    exactness = 5e-3 if name == "blur" else 1e-5  # of a blur, frequencies of which less than 1e-3 is left are not known
    assert (known.forward(projected) - y).abs().max() < exactness
    change = projected - other
    assert torch.allclose(known.project(projected, y), projected, atol=exactness)
    # the change is orthogonal to all images whose measurement is 0
    null = images(9)[6:]
    null = known.project(null, torch.zeros_like(y))
    assert (change * null).sum().abs() < 1e-3 * change.norm() * null.norm()


@pytest.mark.parametrize("name", MEASUREMENTS)
@pytest.mark.parametrize(("solver", "repeats"), [("sde", 1), ("unipc", 1), ("heun", 1), ("sde", 3)])
def test_what_is_known_stays_known_whatever_the_model(name: str, solver: str, repeats: int) -> None:
    denoiser, known, x = model(), MEASUREMENTS[name](), images(2)
    sampling = Sampling(solver, 8, "logsnr", guidance=1.5, interval=(0.1, 1.0), t_clip=0.0)
    y = known.forward(x)
    *steps, found = editing.complete(denoiser, known, y, torch.tensor([0, 1]), [0, 1], sampling, repeats=repeats)
    pixels = denoiser.normalization.denormalize(found)
    error = known.forward(denoiser.normalization.normalize(pixels)) - y
    assert error.square().mean().sqrt() * 127.5 <= 1
    if name == "known pixels":
        assert torch.equal(pixels * MASK, denoiser.normalization.denormalize(x) * MASK)
    assert len(steps) >= 8 * repeats - repeats and (found - x).abs().max() > 0.1


def test_an_answer_is_a_function_of_its_seed() -> None:
    denoiser, known, y = gaussian(), averages(4), averages(4).forward(images(1))
    together = list(editing.complete(denoiser, known, y.expand(3, -1, -1, -1), None, [5, 6, 7], SDE))[-1]
    alone = list(editing.complete(denoiser, known, y, None, [6], SDE))[-1]
    assert torch.allclose(together[1:2], alone, atol=1e-5) and not torch.allclose(together[0], together[1], atol=0.1)


def test_every_noise_is_another_one() -> None:
    velocity = editing.ProjectedVelocity(averages(4), torch.zeros(()), gaussian(), None, SDE, None, [0, 1])
    first, second = velocity.noise(0), velocity.noise(0)
    assert (first * second).mean().abs() < 0.01 and 0.45 < first.std() < 0.55


def test_a_variation_begins_at_its_image_and_ends_away_from_it() -> None:
    denoiser, x = gaussian(), images(2)
    sampling = Sampling("unipc", 12, "logsnr", t_clip=0.0)
    slight, strong = (list(editing.vary(denoiser, x, strength, None, [0, 1], sampling)) for strength in (0.1, 1.0))
    assert len(slight) < len(strong) and (slight[-1] - x).abs().mean() < (strong[-1] - x).abs().mean()


def test_inversion_leads_to_the_noise_of_the_exact_field() -> None:
    """There z is z_0 sqrt(variance) / scale, so an image x of deviation s has the noise scale / s x."""
    denoiser = Denoiser(GaussianNet(0.4, 0.5).double(), Diffusion(noise_scale=0.5))
    x = 0.4 * torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    a, b = (1 / (1 + torch.exp(torch.tensor(sign * editing.MAX_LEVEL, dtype=torch.float64))) for sign in (-1, 1))
    exact = x * a * 0.5 / ((a * 0.4) ** 2 + (b * 0.5) ** 2) ** 0.5
    errors = []
    for steps in (25, 50, 100):
        noise = editing.to_noise(denoiser, x, None, steps)
        errors.append(((noise - exact).square().mean().sqrt() / exact.std()).item())
        back = editing.from_noise(denoiser, noise, None, steps)
        assert (back - x).square().mean().sqrt() < 40 * errors[-1] + 1e-3
    assert errors[2] < 5e-3 and errors[0] > errors[1] > errors[2]


def test_there_and_back_is_exact_to_a_level_of_255() -> None:
    denoiser, x, y = model(), images(2), torch.tensor([0, 1])
    error = {n: editing.from_noise(denoiser, editing.to_noise(denoiser, x, y, n), y, n) - x for n in (12, 24, 100)}
    rms = {n: 127.5 * e.square().mean().sqrt().item() for n, e in error.items()}
    assert rms[100] <= 1 and rms[100] < rms[24] < rms[12]
    other, guided = (editing.from_noise(denoiser, editing.to_noise(denoiser, x, y, 24), 1 - y, 24, g) for g in (1.0, 3.0))
    assert (other - x).abs().max() > 0.05 and (guided - other).abs().max() > 0.05


def test_the_way_between_two_noises_has_no_jumps() -> None:
    first, second = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3)).unbind(0)
    path = editing.between(first, second, 9)
    assert torch.allclose(path[0], first, atol=1e-5) and torch.allclose(path[-1], second, atol=1e-5)
    assert torch.allclose(editing.between(first, first, 3), first.expand(3, -1, -1, -1), atol=1e-6)
    steps = path.diff(dim=0).flatten(1).norm(dim=1)
    assert steps.max() <= 1.05 * steps.median() and path.flatten(1).norm(dim=1).min() > 0.95 * first.norm().min(second.norm())


# the command ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (96, 64), (33, 47)])
def test_a_mask_of_the_photographs_size_is_cropped_like_it(tmp_path: Path, size: tuple[int, int]) -> None:
    """Where the mask is white a photograph that is white there, too, is not black."""
    photo = Image.new("L", size, 0)
    photo.paste(255, (size[0] // 2 - 11, size[1] // 2 - 12, size[0] // 2 + 11, size[1] // 2 + 13))
    photo.save(tmp_path / "photo.png")
    mask = read_mask(tmp_path / "photo.png", (16, 16), (size[1], size[0]))
    seen = read_photo(tmp_path / "photo.png", (1, 16, 16), any_size=True)[0, 0]
    assert mask.shape == seen.shape and set(mask.unique().tolist()) == {0.0, 1.0}
    assert bool((mask[seen > 0] == 1).all()) and mask.sum() < 2 * (seen > 0).sum()


def test_a_mask_of_another_size_is_one_line(tmp_path: Path) -> None:
    Image.new("L", (30, 10), 255).save(tmp_path / "mask.png")
    with pytest.raises(
        ValueError, match=r"mask.png is 30 x 10; allowed: the photograph's 64 x 32, or the shape of the model's 16 x 16"
    ):
        read_mask(tmp_path / "mask.png", (16, 16), (32, 64))


@pytest.fixture
def home(run: Path, tmp_path: Path) -> Path:
    (tmp_path / "run").symlink_to(run)
    Image.new("L", (40, 32), 200).save(tmp_path / "photo.png")
    Image.new("L", (8, 8), 200).save(tmp_path / "small.png")
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (8, 8, 24, 24))
    mask.save(tmp_path / "mask.png")
    return tmp_path


@pytest.mark.full
@pytest.mark.parametrize(
    "words",
    [
        "photo.png --strength 0.5 --class 3",
        "photo.png --mask mask.png --answers 2",
        "small.png --upscale 4",
        "photo.png --deblur 1",
        "photo.png --invert",
        "photo.png --class 3 --to-class 5",
        "photo.png --between mask.png --out edit.gif",
    ],
)
def test_each_task_makes_a_picture(home: Path, words: str) -> None:
    done = justimage("edit", *words.split(), "--from", "run", "--steps", "4", cwd=home)
    assert done.returncode == 0, done.stderr
    picture = home / ("edit.gif" if "gif" in words else "edit.png")
    assert min(Image.open(picture).size) >= 32 and f"in {picture.name}" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("photo.png", "no task: give one of --strength, --mask"),
        ("photo.png --invert --deblur 1", "--deblur and --invert: give one of"),
        ("photo.png --strength 1.5", "strength is 1.5; allowed: above 0 to 1"),
        ("photo.png --strength 0", "strength is 0; allowed: above 0 to 1"),
        ("photo.png --between mask.png --guidance 2", "--between goes to noise and back without guidance"),
        ("small.png --invert", "small.png is 8 x 8, far smaller than 32 x 32; justimage edit --upscale 4 enlarges it"),
        ("photo.png --upscale 5", "upscale is 5; the model's images are 32 x 32, allowed: 2, 4, 8, 16, 32"),
        ("photo.png --colourise", "draws images of 1 channel; colours need 3"),
        ("photo.png --mask photo.png", "photo.png has grey tones; a mask is black where"),
        ("missing.png --invert", "missing.png"),
        ("photo.png --to-class ten", "class 'ten' is not one of this model's"),
        ("photo.png --invert --out edit.txt", "edit.txt has no picture's name"),
    ],
)
def test_a_mistake_is_one_line(home: Path, words: str, message: str) -> None:
    done = justimage("edit", *words.split(), "--from", "run", cwd=home)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not (home / "edit.png").exists()
