"""Time Stable Diffusion 1.5 with random weights: eager, by inductor, and accelerated, in turns in one process.

python -m benchmarks.diffusion keeps the seconds per image of each under benchmarks/results. `--tiny` takes a small one,
on the CPU by the reference interpreter.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import functools
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

import torchtrt_bridge as trtb
from benchmarks.measured import RESULTS, keep, memory_in_use, seconds, wait_for_static_engines
from torchtrt_bridge.report.layers import all_engines
from torchtrt_bridge.trt import library as libraries

ROUNDS = 5
STEPS = 20
LENGTH, WIDTH = 77, 768  # of the embedded prompt
UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": WIDTH}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
TINY_UNET: dict[str, Any] = {
    "sample_size": 8,
    "cross_attention_dim": WIDTH,
    "block_out_channels": (8,),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}
TINY_VAE: dict[str, Any] = {"block_out_channels": (8,), "norm_num_groups": 4}
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
OUTPUTS = ("latent", "pil")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a small pipeline on the CPU")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the results")
    arguments = parser.parse_args()
    device = "host" if arguments.tiny else torch.cuda.get_device_name()
    result = {
        "date": datetime.date.today().isoformat(),
        "command": "python -m benchmarks.diffusion" + (" --tiny" if arguments.tiny else ""),
        "device": device,
        "tensorrt": str(libraries.choose("auto")),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "steps": STEPS,
        **measured(arguments.tiny),
    }
    keep(arguments.results, "diffusion", device, result)
    return 0


def measured(tiny: bool) -> dict[str, Any]:
    """Return, for each way, the seconds of the first call and per image, the memory, and the error of the latents."""
    device, dtype = ("cpu", torch.float32) if tiny else ("cuda", torch.float16)
    torch.manual_seed(0)
    pipe = pipeline(tiny).to(device=device, dtype=dtype)
    embeds = torch.randn(2, 1, LENGTH, WIDTH, device=device, dtype=dtype)
    torch.backends.cudnn.allow_tf32 = False
    expected = image(copy.deepcopy(pipe).to(dtype=torch.float32), embeds.float(), "latent")
    ways: dict[str, Callable[[Any], Any]] = {
        "accelerated": lambda pipe: trtb.accelerate(
            pipe, cache_dir="", static_engines=1, engine="reference" if tiny else "auto"
        ),
        "eager": lambda pipe: pipe,
        "inductor reduce-overhead": by_inductor,
    }
    if tiny:
        del ways["inductor reduce-overhead"]  # it would compile for the CPU, for minutes
    pipes: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for way, prepare in ways.items():
        before = memory_in_use()
        pipes[way] = prepare(copy.deepcopy(pipe))
        first = {output: round(seconds(functools.partial(image, pipes[way], embeds, output)), 1) for output in OUTPUTS}
        if way == "accelerated" and not tiny:
            again = functools.partial(image, pipes[way], embeds, "latent")
            wait_for_static_engines(again, pipes[way], part="unet")
        error = (image(pipes[way], embeds, "latent").float() - expected).norm() / expected.norm()
        memory_mb = round((memory_in_use() - before) / 2**20)
        found[way] = {"first_call_s": first, "memory_mb": memory_mb, "error": float(f"{error:.2e}")}
    times: dict[tuple[str, str], list[float]] = {(way, output): [] for way in ways for output in OUTPUTS}
    for _ in range(ROUNDS):
        for way, output in times:
            times[way, output].append(seconds(functools.partial(image, pipes[way], embeds, output)))
    for way in ways:
        found[way]["image_s"] = {output: round(statistics.median(times[way, output]), 4) for output in OUTPUTS}
    report = trtb.report(pipes["accelerated"])
    engines = [
        {"name": each.name, "choice": each.choice, "milliseconds": each.milliseconds}
        for each in all_engines(report.engines)
    ]
    return {"ways": found, "notes": report.notes, "engines": engines, "is_whole": report.is_whole}


def pipeline(tiny: bool) -> Any:
    """Return the pipeline without its text encoder: prompts are random embeddings."""
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(**(TINY_VAE if tiny else VAE)).eval(),
        unet=UNet2DConditionModel(**(TINY_UNET if tiny else UNET)).eval(),
        scheduler=scheduler,
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def by_inductor(pipe: Any) -> Any:
    """Compile what `accelerate` compiles of this pipeline with inductor and its CUDA graphs."""
    pipe.unet.compile(mode="reduce-overhead")
    pipe.vae.decoder.compile(mode="reduce-overhead")
    return pipe


def image(pipe: Any, embeds: torch.Tensor, output: str) -> Any:
    given = {"prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1], "num_inference_steps": STEPS}
    made = pipe(**given, output_type=output, generator=torch.Generator().manual_seed(1)).images
    return made.clone() if isinstance(made, torch.Tensor) else made  # CUDA graphs of inductor write over their results


if __name__ == "__main__":
    sys.exit(main())
