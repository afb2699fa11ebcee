"""From noise to images by a JiT, as a pipeline of diffusers.

pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
images = pipe(["cat", "dog"], seeds=[0, 1]).images
"""

import inspect
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Tensor

from justimage.conditions import NULL_CLASS, Condition, text_bytes, with_entry
from justimage.normalization import Normalization
from justimage.randomness import image_noise
from justimage.sample_arguments import complete_arguments

ClassLabels = int | str | Sequence[int | str] | None


class JiTPipeline(DiffusionPipeline):
    """Sample images of classes, or from what else the transformer takes, by the scheduler.

    id2label: the names of the classes, by their number. normalization: mean and std of each channel, of data that is floats in
    its own units rather than pixels. recipe: the rest of what justimage needs to take the folder back. (Each is a dict or None;
    older versions of diffusers stumble over that as an annotation.)
    """

    model_cpu_offload_seq = "transformer"
    _callback_tensor_inputs = ("latents",)

    def __init__(self, transformer: Any, scheduler: Any, id2label=None, normalization=None, recipe=None) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.register_to_config(id2label=id2label, normalization=normalization, recipe=recipe)
        self.labels = {name: int(number) for number, name in (id2label or {}).items()}
        statistics = normalization or {"mean": (), "std": ()}
        self.normalization = Normalization(tuple(statistics["mean"]), tuple(statistics["std"]))

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabels = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        solver: str | None = None,
        times: str | Sequence[float] | None = None,
        seeds: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt: str | Sequence[str] | None = None,
        condition: dict[str, Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Images: as many as there are class labels, prompts, seeds or latents, where one of a kind counts for all.

        class_labels: numbers or names, one for all or one an image, -1 for no class; None for no class at all.
        num_inference_steps, guidance_scale (1 for none), guidance_interval (times between which it applies, from 0, noise, to
        1), solver (heun, euler, adams, dpm2, dpm3, unipc, sde) and times (linear, cosine, logsnr, shifted, or a list from 0 to
        1): by default as the scheduler's configuration says. seeds: image i depends on seeds[i] alone, and is the one that
        justimage draws; an integer counts on. generator: draws the seeds. latents: standard normal noise instead. prompt: of a
        transformer that reads bytes; condition: dict of tensors (n, ...), what else it takes. output_type: pil; pt (n,
        channels, height, width) and np (n, height, width, channels), floats in [0, 1], or in the data's units; latent, as the
        solver ends.
        callback_on_step_end: called as f(pipe, step, t, {"latents": z}) after each step, to watch; what it returns is not used.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type is {output_type!r}; allowed: pil, np, pt, latent")
        if wrong := [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]:
            raise ValueError(f"a callback cannot see {wrong[0]!r}; allowed: latents")
        asked = dict(solver=solver, times=times, guidance=guidance_scale, interval=guidance_interval)
        scheduler = type(self.scheduler).from_config(
            self.scheduler.config, **{name: value for name, value in asked.items() if value is not None}
        )
        scheduler.set_timesteps(num_inference_steps)
        given = self.condition_of(class_labels, prompt, condition)
        if seeds is None and latents is None:
            seeds = self.draw_seeds(generator, complete_arguments(given, None, None, 1)[2])
        given, each_seed, n = complete_arguments(given, seeds, latents, 1)  # pyright: ignore[reportArgumentType]
        device, shape = self._execution_device, self.transformer.shape
        z = torch.stack([image_noise(seed, shape) for seed in each_seed]) if latents is None else latents.float()
        if tuple(z.shape) != (n, *shape):
            raise ValueError(f"latents are {tuple(z.shape)}; they must be {(n, *shape)}")
        z = z.to(device) * scheduler.init_noise_sigma
        given = {k: v.to(device) for k, v in given.items()} if isinstance(given, dict) else given.to(device)  # pyright: ignore

        points = scheduler.trajectory(self.transformer, z, given, scheduler.current, each_seed)
        with self.progress_bar(total=scheduler.num_inference_steps) as bar:  # pyright: ignore[reportCallIssue]
            for number, point in enumerate(points):
                z = point.z
                if number:  # the first point is the noise
                    bar.update()
                    if callback_on_step_end is not None:
                        callback_on_step_end(self, number - 1, point.t, {"latents": z})
        images = self.to_images(z, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        """The numbers of classes given by name."""
        names = [label] if isinstance(label, str) else list(label)
        if unknown := [name for name in names if name not in self.labels]:
            known = ", ".join(list(self.labels)[:20]) or "none, they have no names"
            raise ValueError(f"class {unknown[0]!r} is not one of this model's; it has {known}")
        return [self.labels[name] for name in names]

    def condition_of(
        self, class_labels: ClassLabels, prompt: str | Sequence[str] | None, condition: dict[str, Tensor] | None
    ) -> Any:
        """The condition of the network: class numbers, or a dict with them."""
        labels: Any = class_labels if class_labels is not None else NULL_CLASS
        if isinstance(labels, str):
            labels = self.get_label_ids(labels)[0]
        elif isinstance(labels, list | tuple):
            labels = [self.get_label_ids(one)[0] if isinstance(one, str) else one for one in labels]
        if prompt is None and condition is None:
            return labels
        told: Condition = torch.as_tensor(labels).reshape(-1) if self.transformer.classes else {}
        for name, tensor in (condition or {}).items():
            self.check_told(name, tensor)
            told = with_entry(told, name, tensor)
        if prompt is not None:
            length = self.transformer.config.text_length
            if not length or self.transformer.config.text_features:
                raise ValueError("this transformer reads no bytes of a prompt; condition= takes what it is told")
            words = [prompt] if isinstance(prompt, str) else prompt
            told = with_entry(told, "text", torch.stack([text_bytes(one, length) for one in words]))
        return told

    def check_told(self, name: str, tensor: Tensor) -> None:
        """ValueError for what the transformer is not told, or in another shape."""
        a = self.transformer.net.architecture
        text = (a.text_length, a.text_features) if a.text_features else (a.text_length,)
        shapes = {"image": (a.image_channels, *a.size), "vector": (a.vector,), "text": text}
        known = {entry: shape for entry, shape in shapes.items() if shape[0]}
        if name not in known:
            raise ValueError(f"condition has {name!r}; this transformer is told {', '.join(known) or 'class_labels alone'}")
        if tuple(tensor.shape[1:]) != known[name]:
            raise ValueError(f"condition {name!r} is {tuple(tensor.shape)}; allowed: (n, {', '.join(map(str, known[name]))})")

    def draw_seeds(self, generator: torch.Generator | Sequence[torch.Generator] | None, n: int) -> list[int]:
        """A seed for each image, from a generator, one an image, or PyTorch's own."""
        several = isinstance(generator, list | tuple)
        if several and len(generator) != n:
            raise ValueError(f"there are {len(generator)} generators for {n} images; give one each, or one for all")
        each = generator if several else [generator] * n
        return [int(torch.randint(2**62, (), generator=g, device=g.device if g else "cpu")) for g in each]  # pyright: ignore

    def to_images(self, z: Tensor, output_type: str) -> Any:
        """The sample as images."""
        if output_type == "latent":
            return z
        floats = self.normalization.denormalize(z) if self.normalization.mean else (z / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return floats
        if output_type == "np":
            return floats.movedim(1, -1).cpu().numpy()
        pixels = self.normalization.to_uint8(self.normalization.denormalize(z)).cpu()
        shown = pixels if pixels.shape[1] in (1, 3, 4) else pixels[:, :1]
        return [Image.fromarray(image.movedim(0, -1).squeeze(-1).numpy()) for image in shown]

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save as any pipeline, with the code of its parts, which diffusers leaves behind."""
        if kwargs.get("push_to_hub"):
            raise ValueError("diffusers would upload before the code is there; use pipe.push_to_hub(name)")
        super().save_pretrained(save_directory, *args, **kwargs)
        folder = Path(save_directory)
        index = json.loads((folder / self.config_name).read_text())
        for name, part in ("_class_name", self), ("transformer", self.transformer), ("scheduler", self.scheduler):
            code = Path(inspect.getfile(type(part)))
            shutil.copyfile(code, folder / ("" if part is self else name) / code.name)
            index[name] = [code.stem, type(part).__name__]
        (folder / self.config_name).write_text(json.dumps(index, indent=2) + "\n")
