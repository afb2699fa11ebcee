"""The card of a model on the Hub: what it draws, how it was trained and from what, its scores, and how it is used."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from justimage.disk import printable
from justimage.evaluation.report import scores_table
from justimage.recipe import Recipe

SHOWN_CLASSES = 20
CARD = """---
{header}
---
# {name}

A diffusion Transformer on raw pixels (JiT, [arXiv 2511.13720](https://arxiv.org/abs/2511.13720)) for images of {width} x
{height} with {channels} channel(s): {parameters:.3g} M parameters, patches of {patch} x {patch}, {prediction}-prediction.

![Samples](samples.png)

## What it draws

{draws}

## Training

{training}

{scores}## Use

```bash
pip install 'justimage[hub]'
justimage sample --from {address} --out grid.png
justimage train --data photos/ --init {address}
```

```python
import justimage

model = justimage.load("{address}")
images = justimage.sample(model, {classes}, seeds=[0, 1])  # uint8, {steps} steps of {solver}, guidance {guidance:g}
```

<details><summary>recipe</summary>

```json
{recipe}
```

</details>
"""


@dataclass(frozen=True)
class About:
    """Facts of a model that its recipe does not have."""

    repository: str
    address: str
    """where others find it"""
    parameters: int
    images_seen: int
    license: str
    data: str
    """a word about the data"""
    report: dict[str, Any] | None
    """of an evaluation"""


def model_card(recipe: Recipe, about: About) -> str:
    """The card in Markdown, with the fields that the Hub reads in front."""
    a, s = recipe.model, recipe.sampling
    header = {
        "license": about.license,
        "library_name": "justimage",
        "pipeline_tag": "text-to-image" if a.text_length else "unconditional-image-generation",
        "tags": ["diffusion", "pixel-space", "jit"],
    }
    return CARD.format(
        header="\n".join(f"{name}: {json.dumps(value)}" for name, value in header.items()),
        name=about.repository.rpartition("/")[2], address=about.address, height=a.size[0], width=a.size[1],
        channels=a.channels, parameters=about.parameters / 1e6, patch=a.patch_size, prediction=recipe.diffusion.prediction,
        draws=what_it_draws(recipe), training=how_it_was_trained(recipe, about),
        scores=scores(about.report) if about.report else "", classes="[0, 1]" if a.classes else "None",
        steps=s.steps, solver=s.solver, guidance=s.guidance, recipe=json.dumps(asdict(recipe), indent=1),
    )  # fmt: skip


def what_it_draws(recipe: Recipe) -> str:
    a, names = recipe.model, [printable(name, 60) for name in recipe.class_names]
    listed = ", ".join(names[:SHOWN_CLASSES]) + (
        f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
    )
    lines = [f"{a.classes} classes{f': {listed}' if names else ''}." if a.classes else "Images of no classes."]
    if recipe.training.task:
        lines.append(f"It is told an image: task `{recipe.training.task}`.")
    elif a.image_channels:
        lines.append(f"It is told an image of {a.image_channels} channel(s).")
    if a.text_length:
        lines.append(f"It is told words{f', as {recipe.told.encoder} reads them' if recipe.told.encoder else ''}.")
    if recipe.told.columns:
        lines.append(f"It is told numbers: {', '.join(printable(name, 60) for name in recipe.told.columns)}.")
    return "\n".join(lines)


def how_it_was_trained(recipe: Recipe, about: About) -> str:
    t = recipe.training
    lines = [
        f"- data: {about.data or 'not said'}",
        f"- {about.images_seen:,} images seen, in batches of {t.batch:,}, at a learning rate of {t.learning_rate:g}",
        f"- averages of the weights: {', '.join(f'{value:g}' for value in t.ema) or 'none'}; sampled with {t.sample_ema:g}",
    ]
    return "\n".join([*lines, f"- first weights: {printable(recipe.origin)}"] if recipe.origin else lines)


def scores(report: dict[str, Any]) -> str:
    """A section of scores with their protocol."""
    p, s = report["protocol"], report["sampling"]
    how = s["sampling"]
    return (
        f"## Scores\n\n{scores_table(report)}\n\nOf {p['images']:,} images of the average {s['ema']:g}, "
        f"{how['steps']} steps of {how['solver']}, guidance {how['guidance']:g}; labels: {p['as']}; features: "
        f"{report['features']['name']}; real images: {Path(report['reference']['path']).name}. After ± is the standard "
        "deviation over other samples of the same size.\n\n"
    )
