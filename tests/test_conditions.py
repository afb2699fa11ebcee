"""Conditions: what lies beside the images is matched, told and sampled from as it was given, and a run that is told resumes."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from justimage import checkpoint, data, run as runs, sample
from justimage.cli.evaluate import main as evaluate_command
from justimage.cli.photographs import read_photo
from justimage.cli.prepare import main as prepare_command
from justimage.cli.sample import main as sample_command
from justimage.conditions import NULL_CLASS, null_like, text_bytes, text_of
from justimage.data import encoded
from justimage.data.encoded import encode_texts, load_encoder, same_encoder
from justimage.data.matching import match
from justimage.evaluation import answers
from justimage.generate import ImageGenerator
from justimage.given import Given, OfImages
from justimage.inference import suit_cpu
from justimage.operators import declare_operators
from justimage.recipe import from_json, to_json
from justimage.transformer import JiT
from justimage.web.drawing import frames, plan_drawing
from justimage.web.models import Models
from tests.random_models import save_encoder
from tests.test_training import digest, equal, finish, resumed, small

NAMES = [f"{kind}/{i}.png" for kind in ("dark", "light") for i in range(6)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 8 x 8 in two classes, `images`; the same mirrored, `inputs`; and tables of what they are."""
    root = tmp_path_factory.mktemp("conditions")
    chance = np.random.default_rng(0)
    rows = ["file,text,tone,height"]
    for i, name in enumerate(NAMES):
        tone = 40 * (i % 6) + chance.integers(20)
        pixels = (chance.random((8, 8)) * 30 + tone).astype(np.uint8)
        for folder, shown in ("images", pixels), ("inputs", pixels[:, ::-1]):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(shown).save(root / folder / name)
        rows.append(f"{name},tone {tone},{tone},{'' if i == 3 else i}")
    (root / "table.csv").write_text("\n".join(rows))
    return root


def told(place: Path, condition: str, total_images: int = 48 * 8, **changes: Any) -> Any:
    """A small recipe that is told what lies beside the images."""
    options = dict(image_size=8, patch_size=2, classes=None, flip=False) | changes
    return small(total_images, data=str(place / "images"), condition=str(place / condition) if condition else "", **options)


def sampled(place: Path, *words: str) -> int:
    """The exit code of a picture from the run in a place, in two steps."""
    common = ["--from", str(place / "run"), "--steps", "2", "--device", "cpu", "--out", str(place / "a.png")]
    return sample_command([*common, *words])


# what is read -------------------------------------------------------------------------------------------------------------


@given(st.text(max_size=20))
@settings(max_examples=50, deadline=None)
def test_a_text_comes_back_from_its_bytes(text: str) -> None:
    assert text_of(text_bytes(text, 100)) == text


def test_a_text_has_its_length() -> None:
    assert text_bytes("ab", 4).tolist() == [97, 98, NULL_CLASS, NULL_CLASS]
    with pytest.raises(ValueError, match="a text of 5 bytes is too long; allowed: up to 4"):
        text_bytes("abcde", 4)


@pytest.mark.parametrize(
    ("wanted", "given_", "expected"),
    [
        (["a/1.png", "b/1.png"], ["b/1.png", "a/1.png"], [1, 0]),
        (["a/1.jpg", "b/1.jpg"], ["b/1.png", "a/1.png"], [1, 0]),
        (["train/a/1.jpg", "train/b/2.jpg"], ["b/2.jpg", "a/1.jpg"], [1, 0]),
        (["a/1.jpg", "b/2.jpg"], ["2.png", "1.png", "3.png"], [1, 0]),
        (["a\\1.jpg", "b\\2.jpg"], ["a/1", "b/2"], [0, 1]),
    ],
)
def test_names_are_matched_by_the_strictest_spelling(wanted: list[str], given_: list[str], expected: list[int]) -> None:
    assert match(wanted, given_, "there").tolist() == expected


@pytest.mark.parametrize(
    ("wanted", "given_", "message"),
    [
        (["1.png", "2.png", "3.png"], ["1.png"], r"there has nothing for 2.png \(and 1 more\)"),
        (["a/1.png", "c/2.png"], ["1.png", "b/1.png", "2.png"], "there has more than one called 1; give each image its own"),
    ],
)
def test_names_that_do_not_match_are_one_line(wanted: list[str], given_: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        match(wanted, given_, "there")


def test_a_table_tells_words_and_numbers(place: Path) -> None:
    source = data.tell(
        data.open_source(str(place / "images"), data.Crop((8, 8), 1)), str(place / "table.csv"), data.Crop((8, 8), 1)
    )
    image, condition = source[4]
    assert image.shape == (1, 8, 8) and set(condition) == {"classes", "text", "vector"} and int(condition["classes"]) == 0
    tones = [float(line.split(",")[2]) for line in (place / "table.csv").read_text().split("\n")[1:]]
    assert text_of(condition["text"]) == f"tone {tones[4]:g}"
    tone, height, *known = condition["vector"].tolist()
    assert tone == pytest.approx((tones[4] - np.mean(tones)) / np.std(tones), abs=1e-5) and known == [1, 1]
    assert source[3][1]["vector"].tolist()[1::2] == [0, 0] and source.told.vector({}).tolist() == [0] * 4
    assert source.batch(np.array([4, 3]))[1]["vector"][0].tolist() == [tone, height, *known]


def test_others_are_told_by_the_numbers_of_the_training(place: Path, tmp_path: Path) -> None:
    crop = data.Crop((8, 8), 1)
    images = data.open_source(str(place / "images"), crop)
    first = data.tell(images, str(place / "table.csv"), crop)
    before = data.ToldBefore(first.told, 0, 12)
    rows = [line.split(",") for line in (place / "table.csv").read_text().split("\n")[1:]]
    other = [
        "height,more,tone,text,file",
        *(f"{height},7,{float(tone) + 50},{text},{file}" for file, text, tone, height in rows),
    ]
    (tmp_path / "other.csv").write_text("\n".join(other))
    found = data.tell(images, str(tmp_path / "other.csv"), crop, before=before)
    shifted, known = found[4][1]["vector"], first[4][1]["vector"]
    assert shifted[0] - known[0] == pytest.approx(50 / first.told.std[0], abs=1e-5) and torch.equal(shifted[1:], known[1:])
    assert len(found[4][1]["text"]) == 12
    (tmp_path / "less.csv").write_text("file,tone\n" + "\n".join(f"{row[0]},{row[2]}" for row in rows))
    with pytest.raises(ValueError, match="has no column 'height', which the model is told: file, tone"):
        data.tell(images, str(tmp_path / "less.csv"), crop, before=before)


def test_a_column_of_one_number_says_nothing() -> None:
    told_number = data.Told(("n",), (0.1,), (1.4e-17,))
    assert told_number.vector({"n": 0.2}).tolist() == pytest.approx([0.1, 1.0])


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"depth": torch.zeros(3)}, "has the entry 'depth'; a JiT is told classes, vector, image, text"),
        ({"image": torch.zeros(3, 8, 9)}, r"allowed: floats \(channels, 8, 8\)"),
        ({"text": torch.tensor([50_256, 5])}, "has 50256; bytes are 0 to 255"),
        ({"vector": torch.zeros(2, 2)}, r"allowed: floats \(n,\)"),
    ],
)
def test_an_entry_that_a_network_has_no_use_for_is_one_line(condition: dict[str, Any], message: str, tmp_path: Path) -> None:
    images = [(torch.zeros(1, 8, 8), condition)] * 4
    recipe = small(8 * 8, image_size=8, patch_size=2, classes=0)
    with pytest.raises(ValueError, match=message):
        runs.open_run(recipe, tmp_path / "run", "cpu", data=images)
    assert not (tmp_path / "run").exists()


def test_images_tell_images_of_their_names(place: Path) -> None:
    crop = data.Crop((8, 8), 1)
    source = data.tell(data.open_source(str(place / "images"), crop), str(place / "inputs"), crop)
    image, condition = source[7]
    assert torch.allclose(condition["image"].flip(-1), image / 127.5 - 1, atol=1e-6)


TABLES = {
    "no rows": ("file,text\n", "has no rows; a table has a header"),
    "header": ("file,,text\na,b,c\n", "each column needs a name of its own"),
    "cells": ("file,text\nx.png\n", "row 2 has 1 cells; the header has 2"),
    "number": ("file,tone\n" + "\n".join(f"{name},loud" for name in NAMES), "column 'tone' has 'loud'; a number, or nothing"),
    "empty": ("file,tone\n" + "\n".join(f"{name}," for name in NAMES), "column 'tone' has no number"),
    "missing": ("file,text\ndark/0.png,a\n", r"has nothing for dark/1.png \(and 10 more\)"),
    "count": ("text\na\nb\n", "has 2 rows for 12 images; there must be one for each"),
    "nothing told": ("file\n" + "\n".join(NAMES), "has no column but 'file'"),
    "long": (
        "file,text\n" + "\n".join(f"{name},{'a' * 600}" for name in NAMES),
        "longest text has 600 bytes; allowed: 1 to 512",
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_that_does_not_fit_is_one_line(case: str, place: Path, tmp_path: Path) -> None:
    content, message = TABLES[case]
    (tmp_path / "table.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        runs.open_run(told(place, str(tmp_path / "table.csv")), tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


def test_images_that_do_not_fit_are_one_line(place: Path, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / "wide" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 8)).save(tmp_path / "wide" / name)
    with pytest.raises(ValueError, match=r"dark/0.png is 8 x 8 and what is told of it 16 x 8: shapes must agree"):
        runs.open_run(told(place, str(tmp_path / "wide")), tmp_path / "run", "cpu")
    with pytest.raises(ValueError, match="told images of the data already; task edges does not go with them"):
        runs.open_run(told(place, "inputs", task="edges"), tmp_path / "run", "cpu")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    declare_operators()
    pytest.importorskip("transformers")
    return save_encoder(tmp_path_factory.mktemp("encoder"))


def test_texts_are_encoded_once_and_prompts_alike(place: Path, encoder: str, tmp_path: Path) -> None:
    encoded = tmp_path / "texts.safetensors"
    assert prepare_command([str(place / "table.csv"), str(encoded), "--encoder", encoder, "--max-tokens", "20"]) == 0
    recipe = told(place, str(encoded), 16 * 8, save_every=8 * 8)
    run = runs.open_run(recipe, tmp_path / "run", "cpu")
    assert run.recipe.told.encoder == encoder and run.recipe.model.text_features == 16
    index, length = 4, run.recipe.model.text_length
    text = next(line for line in (place / "table.csv").read_text().split("\n") if line.startswith(NAMES[index])).split(",")[1]
    assert torch.allclose(run.source[index][1]["text"], run.recipe.told.text([text], length)[0], atol=2e-3)
    finish(run)
    assert equal(digest(run.state), digest(resumed(recipe, tmp_path / "cut", at=8 * 8).state))
    assert sampled(tmp_path, "--prompt", text) == 0


def test_texts_begin_at_the_first_token_whichever_side_a_tokenizer_fills_up(encoder: str) -> None:
    """As those of many language models do, on the left."""
    texts = ["tone 5", "a tone of 99"]
    found = encode_texts(encoder, texts, 20)
    load_encoder(encoder)[0].padding_side = "left"
    assert torch.equal(encode_texts(encoder, texts, 20), found) and found[:, 0].any(-1).all()


def test_an_encoder_that_lies_elsewhere_is_known_by_its_folders_name(tmp_path: Path) -> None:
    folder = str(tmp_path / "t5")
    assert same_encoder(folder, "./t5") and same_encoder("google/t5", "google/t5")
    assert not same_encoder(folder, "t5") and not same_encoder("./t5", "./bert")


def test_texts_without_a_token_are_refused(encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.csv").write_text("file,text\na.png,one\n")
    monkeypatch.setattr(encoded, "encode_texts", lambda *_: torch.zeros(1, 20, 16))
    with pytest.raises(ValueError, match="finds no token in any text"):
        list(encoded.encode_table(tmp_path / "t.csv", tmp_path / "t.safetensors", encoder))
    assert not (tmp_path / "t.safetensors").exists()


def test_an_encoder_that_is_not_there_is_one_line(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    words = [str(place / "table.csv"), str(tmp_path / "texts.safetensors"), "--encoder", str(tmp_path / "nothing")]
    with pytest.raises(ValueError, match="nothing is no encoder that could be loaded"):
        prepare_command(words)
    with pytest.raises(ValueError, match="is a table; to encode its texts say with what: --encoder"):
        prepare_command(words[:2])
    (tmp_path / "texts.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"texts.safetensors holds no encoded texts"):
        runs.open_run(told(place, str(tmp_path / "texts.safetensors")), tmp_path / "run", "cpu")


# what a network makes of it -------------------------------------------------------------------------------------------------


def test_what_is_not_told_is_nothing() -> None:
    net = JiT("T/4", image_size=8, classes=3, vector=4, text_length=5, image_channels=1).eval()
    for linear in net.head.linear, net.head.modulation, net.embed_vector, *(block.modulation for block in net.blocks):
        torch.nn.init.normal_(linear.weight, std=0.1)  # pyright: ignore[reportArgumentType]
    z, t = torch.randn(4, 3, 8, 8), torch.rand(4)
    text = torch.stack([text_bytes(word, 5) for word in ("a", "b", "ab", "ba")])
    everything = {"classes": torch.tensor([0, 1, 2, 0]), "vector": torch.randn(4, 4), "text": text}
    everything["image"] = torch.randn(4, 1, 8, 8)
    for linear in net.embed_vector, net.embed_image.expand:  # learnt
        torch.nn.init.normal_(linear.bias, std=0.1)  # pyright: ignore[reportArgumentType]
    nothing = net(z, t, null_like(everything))
    assert torch.allclose(nothing, net(z, t), atol=1e-6)
    for name in "classes", "vector", "text":
        assert not torch.allclose(net(z, t, {name: everything[name]}), nothing, atol=1e-4)
    told_two = {"text": text[[0, 0, 0, 0]]}, {"text": text[[0, 1, 2, 3]]}
    first, second = (net(z, t, condition) for condition in told_two)
    assert torch.allclose(first[0], second[0], atol=1e-6) and not torch.allclose(first[1:], second[1:], atol=1e-4)


def test_a_network_rewritten_for_a_cpu_is_told_alike() -> None:
    net = JiT("T/4", image_size=8, classes=3, vector=4, text_length=5).eval()
    for linear in net.head.linear, net.head.modulation, net.embed_vector, *(block.modulation for block in net.blocks):
        torch.nn.init.normal_(linear.weight, std=0.1)  # pyright: ignore[reportArgumentType]
    text = torch.stack([text_bytes(word, 5) for word in ("a", "b")])
    told_both = {"classes": torch.tensor([0, 2]), "vector": torch.randn(2, 4), "text": text}
    z, t = torch.randn(2, 3, 8, 8), torch.rand(2)
    expected = net(z, t, told_both)
    suit_cpu(net)
    assert torch.allclose(net(z, t, told_both), expected, atol=1e-5)


def test_a_recipe_keeps_what_was_told(place: Path, tmp_path: Path) -> None:
    run = runs.open_run(told(place, "table.csv"), tmp_path / "run", "cpu")
    recipe = from_json(to_json(run.recipe))
    assert recipe == run.recipe and recipe.told.columns == ("tone", "height") and recipe.model.vector == 4
    assert recipe.model.text_length == len("tone 200") and recipe.model.classes == 2
    run.close()


@pytest.mark.parametrize("condition", ["table.csv", "inputs"])
def test_a_training_that_is_told_resumes_exactly(condition: str, place: Path, tmp_path: Path) -> None:
    recipe = told(place, condition, save_every=24 * 8, preview_every=20 * 8)
    straight = runs.open_run(recipe, tmp_path / "straight", "cpu")
    finish(straight)
    assert equal(digest(straight.state), digest(resumed(recipe, tmp_path / "cut", at=24 * 8).state))
    assert len(list((tmp_path / "cut" / "samples").glob("*-grid.png"))) == 3


# what is sampled ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told_run(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that is told words and numbers."""
    out = tmp_path_factory.mktemp("told") / "run"
    finish(runs.open_run(told(place, "table.csv", learning_rate=3e-3), out, "cpu"))
    return out


def test_samples_depend_on_what_is_told_and_on_nothing_else(told_run: Path) -> None:
    model = checkpoint.load(told_run, device="cpu")
    length = model.net.architecture.text_length
    texts = torch.stack([text_bytes(text, length) for text in ("tone 5", "tone 210", "tone 120", "")])
    images = sample(model, {"text": texts}, seeds=[0] * 4, batch=4)
    assert (images[0] != images[1]).any()
    again = sample(model, {"text": texts.flip(0)}, seeds=[0] * 4, batch=4).flip(0)
    assert torch.equal(images, again)


def test_the_page_draws_from_words_as_the_command_does(told_run: Path, tmp_path: Path) -> None:
    models = Models([told_run], torch.device("cpu"))
    drawing = plan_drawing(models, str(told_run), count=3, seed=4, prompt="tone 5\ntone 210\n", guidance=1)
    *_, last = frames(drawing, models)
    words = shlex.split(drawing.command(files=False))
    assert drawing.python() == "" and words[:2] == ["justimage", "sample"]
    assert sample_command([*words[2:], "--folder", str(tmp_path / "images"), "--out", str(tmp_path / "grid.png")]) == 0
    for i, image in enumerate(last.x):
        with Image.open(tmp_path / "images" / f"{i:06d}.png") as drawn:
            assert np.array_equal(np.asarray(drawn), image.movedim(0, -1).squeeze(-1).numpy())
    with pytest.raises(ValueError, match="is too long"):
        plan_drawing(models, str(told_run), prompt="a text that is too long")


def test_a_job_is_sampled_from_what_is_given_over_and_over(told_run: Path) -> None:
    generator = ImageGenerator(told_run, torch.device("cpu"))
    plain = generator.make_job()
    generator.conditions = Given({"text": torch.stack([text_bytes(text, 8) for text in ("tone 5", "tone 210")])})
    job = generator.make_job(classes=[-1], seed=3)
    assert "conditions" not in plain.describe() and job.describe()["conditions"] == generator.conditions.fingerprint
    found = generator.condition(job, [0, 1, 2])
    assert isinstance(found, dict) and text_of(found["text"][2]) == "tone 5" and found["classes"].tolist() == [-1] * 3
    assert len(Given({"text": torch.zeros(3, 8), "image": torch.zeros(2, 1, 8, 8), "vector": torch.zeros(1, 2)})) == 6


def test_conditions_of_images_go_through_all_of_them(place: Path, told_run: Path) -> None:
    recipe = checkpoint.read_recipe(checkpoint.resolve(told_run))
    source = data.tell(data.open_source(str(place / "images"), recipe.crop), str(place / "table.csv"), recipe.crop)
    real = OfImages(source, recipe)
    assert sorted(real.place(i) for i in range(12)) == list(range(12)) and real.place(12) == real.place(0)
    assert torch.equal(real.at([5])["text"][0], source[real.place(5)][1]["text"])
    assert torch.equal(real.truth([5])[0], source[real.place(5)][0] / 127.5 - 1)


def test_conditions_of_other_images_under_the_same_names_have_another_fingerprint(told_run: Path, tmp_path: Path) -> None:
    """A .bmp is as long whatever it shows."""
    recipe = checkpoint.read_recipe(checkpoint.resolve(told_run))

    def fingerprint(tone: int) -> str:
        for i in range(3):
            Image.new("RGB", recipe.shape[:0:-1], (tone, i, 0)).save(tmp_path / f"{i}.bmp")
        return OfImages(data.open_source(str(tmp_path), recipe.crop), recipe).fingerprint

    assert fingerprint(5) != fingerprint(6) != fingerprint(5) == fingerprint(5)


def test_sampling_by_words_numbers_and_images(
    told_run: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--from", str(told_run), "--device", "cpu", "--steps", "2"]
    assert sample_command([*common, "--prompt", "tone 5", "tone 99", "--answers", "2", "--out", str(tmp_path / "a.png")]) == 0
    assert "4 images in" in capsys.readouterr().out
    assert sample_command([*common, "--numbers", "tone=5", "--npz", str(tmp_path / "b.npz")]) == 0
    with np.load(tmp_path / "b.npz") as found:
        assert found["arr_0"].shape == (4, 8, 8, 1)
    for words, message in (
        (["--prompt", "a text that is too long"], "a text of 23 bytes is too long; allowed: up to 8"),
        (["--numbers", "tune=5"], "this model is not told 'tune'; allowed: tone, height"),
        (["--numbers", "tone"], "numbers has 'tone'; allowed: NAME=VALUE"),
        (["--numbers", "tone=nan"], "numbers has 'tone=nan'; allowed: NAME=VALUE"),
        (["--numbers", "tone=1", "tone=2"], "numbers has tone=1 tone=2; each name once"),
        (["--prompt", "tone 5", "--balanced"], "--balanced is for classes alone"),
        (["--condition", str(place / "inputs" / NAMES[0])], "is an image, and this model is not told any"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            sample_command([*common, *words, "--out", str(tmp_path / "c.png")])
        assert not (tmp_path / "c.png").exists()


def test_a_model_without_classes_is_sampled_with_nothing_told(place: Path, tmp_path: Path) -> None:
    finish(runs.open_run(told(place, "table.csv", 8 * 8, classes=0, guidance=1.5), tmp_path / "run", "cpu"))
    assert sampled(tmp_path, "--count", "2") == 0


def test_sampling_by_images(place: Path, tmp_path: Path) -> None:
    finish(runs.open_run(told(place, "inputs", 8 * 8), tmp_path / "run", "cpu"))
    common = ["--from", str(tmp_path / "run"), "--device", "cpu", "--steps", "2"]
    given_ = [str(place / "inputs" / name) for name in NAMES[:3]]
    assert sample_command([*common, "--condition", *given_, "--answers", "2", "--out", str(tmp_path / "a.png")]) == 0
    Image.new("L", (3, 3)).save(tmp_path / "tiny.png")
    with pytest.raises(ValueError, match=r"tiny.png is 3 x 3, far smaller than 8 x 8; justimage edit --upscale"):
        read_photo(tmp_path / "tiny.png", (1, 8, 8))
    assert sample_command([*common, "--condition", str(tmp_path / "tiny.png"), "--out", str(tmp_path / "b.png")]) == 0
    with pytest.raises(ValueError, match=r"this model is not told words; it has classes, images \(--condition\)"):
        sample_command([*common, "--prompt", "words", "--out", str(tmp_path / "b.png")])


# what is scored -------------------------------------------------------------------------------------------------------------

SCORED = "--count", "12", "--steps", "2", "--batch", "5", "--device", "cpu", "--resize", "32"


def test_answers_are_scored_against_the_true_images(place: Path, digits_classifier: Path, tmp_path: Path) -> None:
    recipe = told(place, "", 8 * 8, image_size=16, patch_size=4, task="upscale:2", classes=0, upscale=True)
    finish(runs.open_run(recipe, tmp_path / "run", "cpu"))
    words = [str(tmp_path / "run"), *SCORED, "--features", str(digits_classifier), "--out", str(tmp_path / "out")]
    assert evaluate_command([*words, "--answers", "6"]) == 0
    (report,) = (json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/report.json"))
    assert report["answers_each"] == 6
    found = {name: score["value"] for name, score in report["answers"].items()}
    source = data.open_source(str(place / "images"), data.Crop((16, 16), 1, upscale=True))
    x = torch.stack([source[i][0] for i in range(12)]) / 127.5 - 1
    small_ones = torch.nn.functional.avg_pool2d(x, 2)
    bicubic = torch.nn.functional.interpolate(small_ones, size=(16, 16), mode="bicubic").clamp(-1, 1)
    expected = (10 * torch.log10(4 / (bicubic - x).square().mean((1, 2, 3)))).mean().item()
    assert found["psnr_simplest"] == pytest.approx(expected, abs=1e-4)
    assert found["psnr"] < found["psnr_mean"] and found["spread"] > 1 and found["misfit"] > 1 and found["ssim"] < 1
    assert len(list((tmp_path / "out").glob("*/answers.png"))) == 1


def test_a_true_image_is_a_perfect_answer() -> None:
    x = torch.rand(3, 3, 16, 16) * 2 - 1
    assert answers.ssim(x, x).tolist() == pytest.approx([1, 1, 1])
    assert answers.psnr(x + 0.02, x)[0] < 40.1 and answers.psnr(x, x).min() > 100
    assert answers.psnr(0.9 * x + 0.02, 0.9 * x).tolist() == pytest.approx([40, 40, 40], abs=1e-3)


def test_scores_of_what_is_told_need_to_know_it(place: Path, digits_classifier: Path, tmp_path: Path) -> None:
    finish(runs.open_run(told(place, "table.csv", 8 * 8, classes=0), tmp_path / "run", "cpu"))
    words = [str(tmp_path / "run"), *SCORED, "--features", str(digits_classifier), "--out", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="told what lay beside its images; say where that is for these: --condition"):
        evaluate_command([*words, "--reference", str(place / "inputs")])
    assert evaluate_command(words) == 0
    assert "answers" not in json.loads(next((tmp_path / "out").glob("*/report.json")).read_text())
