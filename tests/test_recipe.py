"""Recipes: Table 9, and that a recipe survives being stored."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from justimage import recipe as recipes
from justimage.recipe import IMAGENET, PRESETS, Recipe, from_json, incompatibilities, preset, resized, to_json, with_values

TABLE_9 = {  # depth, hidden dim, heads, bottleneck, dropout, in-context start block
    "b": (12, 768, 12, 128, 0.0, 4),
    "l": (24, 1024, 16, 128, 0.0, 8),
    "h": (32, 1280, 16, 256, 0.2, 10),
    "g": (40, 1664, 16, 256, 0.2, 10),
}


@pytest.mark.parametrize("size", TABLE_9)
@pytest.mark.parametrize(("patch", "image"), [(16, 256), (32, 512), (64, 1024)])
def test_the_papers_presets_are_table_9(size: str, patch: int, image: int) -> None:
    r = preset(f"jit-{size}{patch}-{image}")
    a, p, t, s = r.model, r.diffusion, r.training, r.sampling
    assert (a.depth, a.width, a.heads, a.bottleneck, a.dropout, a.context_start) == TABLE_9[size]
    assert (a.size, a.patch_size, a.context_tokens, a.channels) == ((image, image), image // 16, 32, 3)
    assert (t.total_images, t.warmup, t.batch) == (600 * IMAGENET, 5 * IMAGENET, 1024)
    assert (t.learning_rate, t.betas, t.lr_schedule, t.gradient_clip) == (2e-4, (0.9, 0.95), "constant", None)
    assert t.ema == (0.9996, 0.9998, 0.9999) and t.ema_ramp == 0
    assert (p.prediction, p.loss_space, p.interpolant, p.mu, p.sigma) == ("x", "v", "linear", -0.8, 0.8)
    assert (p.noise_scale, p.t_clip, s.t_clip, p.label_drop) == (image / 256, 0.05, 0.05, 0.1)
    assert (s.solver, s.steps, s.interval) == ("heun", 50, (0.1, 1.0))


def test_the_default_recipe_is_b16() -> None:
    assert replace(preset("jit-b16-256"), sampling=Recipe().sampling) == Recipe()


def test_b4_at_64_has_the_same_sequence() -> None:
    a = preset("jit-b4-64").model
    assert (a.size, a.patch_size, a.grid, a.width) == ((64, 64), 4, (16, 16), 768)


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_survives_json(name: str) -> None:
    assert from_json(json.loads(json.dumps(to_json(preset(name))))) == preset(name)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("training", "bach"), 3, "unknown entry 'bach'; perhaps batch"),
        (("training", "batch"), "many", "recipe.training.batch is 'many'"),
        (("diffusion", "prediction"), "noise", "recipe.diffusion.prediction is 'noise'"),
        (("model", "rope"), 1, "recipe.model.rope is 1"),
        (("training", "betas"), [0.9], "recipe.training.betas"),
        (("diffusion", "sigma"), -1.0, "sigma is -1.0"),
    ],
)
def test_a_wrong_entry_is_named(place, value, message) -> None:
    stored = to_json(preset("digits"))
    stored[place[0]][place[1]] = value
    with pytest.raises(ValueError) as caught:
        from_json(stored)
    assert message in str(caught.value)


def test_a_misspelt_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="perhaps jit-b16-256"):
        preset("jit-b16-255")


def test_another_image_size_keeps_the_papers_proportions() -> None:
    assert resized(preset("jit-l16-256"), 512).model == preset("jit-l32-512").model
    assert resized(preset("jit-l16-256"), 512).diffusion == preset("jit-l32-512").diffusion


def test_a_patch_divides_both_sides_and_is_the_nearest_to_proportional() -> None:
    for size, patch in ((96, 6), ((24, 40), 2), ((96, 160), 8), ((72, 120), 4), (97, 1)):
        assert resized(preset("folder-64"), size).model.patch_size == patch


def test_a_recipe_of_another_version_is_refused_in_one_line() -> None:
    stored = to_json(preset("digits"))
    for changed in {n: v for n, v in stored.items() if n != "version"}, stored | {"version": 1}, stored | {"version": "2"}:
        with pytest.raises(ValueError, match=r"the recipe is of version (1|'2'); this justimage reads version 2: "):
            from_json(changed)


def test_a_value_is_changed_by_its_name_or_with_its_section() -> None:
    r = with_values(preset("digits"), t_clip=0.1, sampling_t_clip=0.2, every=7, features="x", bottleneck=None)
    assert (r.diffusion.t_clip, r.sampling.t_clip, r.model.bottleneck) == (0.1, 0.2, None)
    assert (r.evaluation.every, r.evaluation.features) == (7, "x")
    with pytest.raises(ValueError, match="nothing called bach"):
        with_values(r, bach=3)


def test_only_what_changes_the_training_contradicts_it() -> None:
    r = preset("jit-b16-256")
    harmless = replace(
        r, data="elsewhere", training=replace(r.training, total_images=7), checkpoint=replace(r.checkpoint, keep_checkpoints=9)
    )
    assert incompatibilities(harmless, r) == []
    assert incompatibilities(replace(r, training=replace(r.training, batch=8)), r) == ["batch is 8, was 1024"]
    d = preset("digits")  # a cosine rate depends on the end
    assert incompatibilities(replace(d, training=replace(d.training, total_images=7)), d) == ["total_images is 7, was 50000"]
    minute, two = (with_values(d, budget=60.0 * n, total_images=100 * n) for n in (1, 2))
    assert incompatibilities(with_values(minute, total_images=7), minute) == []  # which follows
    assert incompatibilities(two, minute) == ["budget is 120.0, was 60.0"]  # by a cosine, so the rates so far would be others
    assert incompatibilities(*(with_values(r, lr_schedule="constant") for r in (two, minute))) == []


def test_an_average_that_is_not_kept_cannot_be_sampled() -> None:
    with pytest.raises(ValueError, match=r"0\.9999"):
        recipes.Recipe(training=recipes.Training(ema=(0.9996,)))


def test_what_is_given_away_names_no_place_of_this_machine(tmp_path: Path) -> None:
    home = (tmp_path / "alice").as_posix()
    recipe = with_values(
        preset("digits"), classes=10, data=f"{home}/photos", condition=f"{home}/texts.csv", init=f"{home}/runs/first",
        origin=f"{home}/runs/first after 500 images, average 100, 0123", encoder=f"{home}/encoder", every=1000,
        features=f"{home}/f.safetensors", reference=f"{home}/real",
    )  # fmt: skip
    shared = recipe.shared((5000.0,))
    assert "alice" in json.dumps(to_json(recipe)) and "alice" not in json.dumps(to_json(shared))
    assert shared.origin == "first after 500 images, average 100, 0123" and shared.told.encoder == "./encoder"
    kept = with_values(recipe, origin="hf://me/first, average 100, 0123", encoder="google/t5").shared((5000.0,))
    assert kept.origin == "hf://me/first, average 100, 0123" and kept.told.encoder == "google/t5"
