"""A process with diffusers and without justimage: runs a folder, as somebody would who never heard of us.

    python diffusers_alone.py FOLDER JOBS.json OUT.npz

JOBS: {name: {"call": arguments of the pipeline, "loop": whether by the scheduler's steps, "pipe": plain, bf16 or again}}; to
OUT goes each sample.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch


class NoJustimage:
    """Refuses to import the package, wherever it is installed."""

    def find_spec(self, name: str, path=None, target=None) -> None:
        if name.partition(".")[0] == "justimage":
            raise ImportError("justimage is not here")


sys.meta_path.insert(0, NoJustimage())  # pyright: ignore[reportArgumentType]
try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):  # one for CUDA beside a PyTorch for CPUs: its operators are declared, and never called
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in "nms", "qnms":
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from diffusers import DiffusionPipeline  # noqa: E402  # pyright: ignore[reportPrivateImportUsage]
from diffusers.models.embeddings import get_2d_sincos_pos_embed  # noqa: E402


def by_pipeline(pipe, call: dict) -> np.ndarray:
    """The sample at the end, watched: float32 after every step."""
    seen = []

    def watch(pipe, step, t, tensors):
        seen.append((step, t, tensors["latents"].dtype))

    z = pipe(**call, output_type="latent", callback_on_step_end=watch).images
    assert [step for step, _, _ in seen] == list(range(len(seen))) and seen[-1][1] == 1
    assert {dtype for *_, dtype in seen} == {torch.float32}
    return z.numpy()


def by_step(pipe, call: dict) -> np.ndarray:
    """The same by a loop over the steps of the scheduler, without guidance."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, solver=call["solver"])
    scheduler.set_timesteps(call["num_inference_steps"])
    z = call["latents"] * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            z = scheduler.step(pipe.transformer(z, t, torch.tensor(call["class_labels"])).sample, t, z).prev_sample
    return z.numpy()


def main(folder: str, jobs: str, out: str) -> None:
    plain = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    half = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True).to(torch.bfloat16)
    plain.save_pretrained(Path(out).parent / "again", max_shard_size="20KB")
    again = DiffusionPipeline.from_pretrained(Path(out).parent / "again", trust_remote_code=True)
    pipes = {"plain": plain, "bf16": half, "again": again}
    found = {}
    for name, job in json.loads(Path(jobs).read_text()).items():
        call, pipe = job["call"], pipes[job.get("pipe", "plain")]
        if "latents" in call:
            call["latents"] = torch.tensor(call["latents"])
        if "condition" in call:
            call["condition"] = {name: torch.tensor(values) for name, values in call["condition"].items()}
        pipe.set_progress_bar_config(disable=True)
        found[name] = (by_step if job.get("loop") else by_pipeline)(pipe, call)
    found["bf16 weights"] = np.array(half.transformer.dtype == torch.bfloat16)
    found["pixels"] = np.stack([np.asarray(image) for image in plain(seeds=[5, 6], class_labels=1).images])
    same = [plain(class_labels=[1], generator=torch.Generator().manual_seed(s), output_type="np").images for s in (3, 3, 4)]
    found["by generator"] = np.stack(same)
    wrong = {
        "class": dict(class_labels="cta"),
        "entry": dict(condition={"picture": torch.zeros(1, 3, 32, 32)}),
        "shape": dict(condition={"vector": torch.zeros(1, 3)}),
    }
    for name, call in wrong.items():
        try:
            plain(**call)
        except ValueError as error:
            found[f"wrong {name}"] = np.array(str(error))
    grid = plain.transformer.config.image_size
    if isinstance(grid, int):
        side = grid // plain.transformer.config.patch_size
        width = plain.transformer.config.width
        table = get_2d_sincos_pos_embed(embed_dim=width, grid_size=side, base_size=side, output_type="pt")
        found["pos_embed"] = table.float()[None].numpy()
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
