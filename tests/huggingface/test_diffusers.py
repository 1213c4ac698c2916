"""Pipelines and models of diffusers, accelerated in place: PyTorch's images, by engines of any resolution."""

from __future__ import annotations

import copy
import importlib.util
import io
from pathlib import Path
from typing import Any

import pytest
import torch

import torchtrt_bridge as trtb

pytest.importorskip("transformers")
if importlib.util.find_spec("diffusers") is None:  # its import takes seconds, so the tests import it
    pytest.skip("no diffusers: pip install '.[diffusers]'", allow_module_level=True)

from tests.huggingface import diffusion_models as models
from tests.huggingface.diffusion_models import generated

STRICT: dict[str, Any] = {"engine": "reference", "fallback": "error"}


@pytest.fixture
def pipe() -> Any:
    return models.stable_diffusion(levels=1)


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def engines(target: Any) -> list[str]:
    """Return the modules that have engines, one name for each engine."""
    names = [engine.name.removeprefix("graph_").rpartition(".")[0] for engine in trtb.report(target).engines]
    return sorted(name.lstrip("0123456789").lstrip(".") for name in names)


# Pipelines ---------------------------------------------------------------------------------------------------


def test_one_engine_of_each_module_makes_images_of_every_size(pipe: Any, engine_calls: list[list[int]]) -> None:
    expected = {size: generated(pipe, size) for size in (32, 48, (32, 64))}
    assert trtb.accelerate(pipe, **STRICT) is pipe
    assert_near(generated(pipe), expected[32])
    assert trtb.report(pipe).is_whole
    assert engines(pipe) == ["text_encoder", "unet", "vae.decoder", "vae.post_quant_conv"]
    made = trtb.report(pipe).graphs
    engine_calls.clear()
    assert_near(generated(pipe, 48), expected[48])
    assert_near(generated(pipe, (32, 64)), expected[32, 64])
    assert trtb.report(pipe).graphs == made
    # The text and its negative, two steps of the denoiser for both, the two parts of the decoder.
    text, latents = [1, models.LENGTH], [4, 48, 48]
    assert engine_calls[:6] == [text, text, [2, *latents], [2, *latents], [1, *latents], [1, *latents]]
    assert trtb.restore(pipe) is pipe
    engine_calls.clear()
    assert torch.equal(generated(pipe), expected[32])
    assert engine_calls == []
    assert trtb.report(pipe).engines == []


@pytest.mark.full
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (models.stable_diffusion, ["text_encoder", "unet", "vae.decoder", "vae.post_quant_conv"]),
        (models.sdxl, ["text_encoder", "text_encoder_2", "unet", "vae.decoder", "vae.post_quant_conv"]),
        (
            models.stable_diffusion_3,
            ["text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae.decoder"],
        ),
        (models.flux, ["text_encoder", "text_encoder_2", "transformer", "vae.decoder"]),
    ],
    ids=["sd", "sdxl", "sd3", "flux"],
)
def test_kinds(make: Any, names: list[str]) -> None:
    pipe = make()
    expected = {size: generated(pipe, size) for size in (32, (48, 32))}
    trtb.accelerate(pipe, **STRICT)
    for size, images in expected.items():
        assert_near(generated(pipe, size), images)
    assert trtb.report(pipe).is_whole
    assert engines(pipe) == names


@pytest.mark.full
def test_half_precision_is_as_near_as_pytorchs(pipe: Any) -> None:
    half = copy.deepcopy(pipe).to(torch.float16)
    expected = generated(pipe, output_type="latent")
    error_of_pytorch = (generated(half, output_type="latent").float() - expected).norm()
    trtb.accelerate(pipe, precision="fp16", **STRICT)
    error = (generated(pipe, output_type="latent") - expected).norm()
    assert 0 < error <= 2 * error_of_pytorch
    assert "float16" in trtb.report(pipe).engines[1].dtypes


@pytest.mark.full
def test_batches_beside_a_single_image_have_engines_of_their_own(pipe: Any) -> None:
    expected = {n: generated(pipe, num_images_per_prompt=n) for n in (1, 2, 3)}
    trtb.accelerate(pipe, **STRICT)
    for number, images in expected.items():
        assert_near(generated(pipe, num_images_per_prompt=number), images)
    decoders = ["vae.decoder", "vae.decoder", "vae.post_quant_conv", "vae.post_quant_conv"]
    assert engines(pipe) == ["text_encoder", "unet", *decoders]
    # Without guidance the denoiser computes a batch of one.
    unguided = generated(trtb.restore(pipe), guidance_scale=1.0)
    trtb.accelerate(pipe, **STRICT)
    assert_near(generated(pipe, guidance_scale=1.0), unguided)


@pytest.mark.full
def test_callbacks_and_embeddings(pipe: Any, engine_calls: list[list[int]]) -> None:
    def halve(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        pipe._guidance_scale = 2.0
        return {"latents": tensors["latents"] / 2}

    steps: list[int] = []
    embeds, negative = torch.randn(1, 5, 16), torch.randn(1, 5, 16)
    given = {"prompt": None, "prompt_embeds": embeds, "negative_prompt_embeds": negative, "num_inference_steps": 3}
    expected = generated(pipe, callback_on_step_end=halve, **given)
    assert not torch.equal(generated(pipe, **given), expected)
    trtb.accelerate(pipe, **STRICT)
    steps.clear()
    assert_near(generated(pipe, callback_on_step_end=halve, **given), expected)
    assert steps == [0, 1, 2]
    assert len(engine_calls) == 3 + 2


@pytest.mark.full
def test_pipelines_of_the_same_models_share_engines(pipe: Any) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline

    image, mask = torch.rand(1, 3, 32, 32), torch.arange(32).expand(1, 1, 32, 32) / 31
    change = models.quiet(StableDiffusionImg2ImgPipeline.from_pipe(pipe))
    paint = models.quiet(StableDiffusionInpaintPipeline.from_pipe(pipe))
    calls = [(change, None, {"image": image, "strength": 0.7}), (paint, 32, {"image": image, "mask_image": mask})]
    expected = [generated(each, size, **settings) for each, size, settings in calls]
    trtb.accelerate(pipe, **STRICT)
    generated(pipe)
    for (each, size, settings), images in zip(calls, expected, strict=True):
        assert_near(generated(each, size, **settings), images)
    decoder, encoder = ["vae.decoder", "vae.post_quant_conv"], ["vae.encoder", "vae.quant_conv"]
    assert engines(paint) == sorted(["text_encoder", "unet", *decoder, *encoder])
    assert trtb.report(paint).is_whole


@pytest.mark.full
def test_a_controlnet(pipe: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Its strength changes from call to call and from step to step, and is no constant of an engine."""
    from diffusers import StableDiffusionControlNetPipeline

    controlled = models.quiet(StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=models.controlnet()))
    image = torch.rand(1, 3, 32, 32)
    calls = [{}, {"controlnet_conditioning_scale": 0.5}, {"control_guidance_end": 0.4}]
    expected = [generated(controlled, None, image=image, num_inference_steps=3, **settings) for settings in calls]
    trtb.accelerate(pipe, engine="reference")
    trtb.accelerate(controlled, engine="reference")  # compiles what is not compiled yet
    for settings, images in zip(calls, expected, strict=True):
        assert_near(generated(controlled, None, image=image, num_inference_steps=3, **settings), images)
    assert engines(controlled) == ["controlnet", "text_encoder", "unet", "vae.decoder", "vae.post_quant_conv"]
    assert trtb.report(controlled).is_whole
    assert "changed since the engines were built" not in caplog.text


@pytest.mark.full
def test_slices_and_tiles(pipe: Any) -> None:
    pipe.enable_attention_slicing()
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 24, 24
    expected = generated(pipe, 40, num_images_per_prompt=2)
    trtb.accelerate(pipe, engine="reference")
    assert_near(generated(pipe, 40, num_images_per_prompt=2), expected)
    assert engines(pipe).count("vae.decoder") == 1


def test_errors_are_those_of_diffusers(pipe: Any) -> None:
    trtb.accelerate(pipe, **STRICT)
    with pytest.raises(ValueError, match="`height` and `width` have to be divisible by 8 but are 33 and 32"):
        generated(pipe, (33, 32))
    assert trtb.report(pipe).graphs == 0


@pytest.mark.full
def test_a_pipeline_on_the_cpu_is_pytorchs(pipe: Any) -> None:
    expected = generated(pipe, num_inference_steps=1)
    trtb.accelerate(pipe, precision="fp16")
    assert torch.equal(generated(pipe, num_inference_steps=1), expected)
    notes = trtb.report(pipe).notes
    assert [note.partition(":")[0] for note in notes] == ["text_encoder", "unet", "vae.post_quant_conv", "vae.decoder"]
    assert all("its tensors are on cpu, and engines run on cuda" in note for note in notes)


# Parts that change -------------------------------------------------------------------------------------------


@pytest.mark.full
def test_adapters_are_followed(pipe: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    plain = copy.deepcopy(pipe)
    trtb.accelerate(pipe.unet, **STRICT)
    folders = [models.lora(plain.unet, str(tmp_path / name), seed) for seed, name in enumerate("ab")]
    steps = [
        lambda pipe: None,
        lambda pipe: pipe.load_lora_weights(folders[0], adapter_name="a"),
        lambda pipe: pipe.set_adapters("a", 0.5),
        lambda pipe: pipe.load_lora_weights(folders[1], adapter_name="b"),
        lambda pipe: pipe.set_adapters(["a", "b"], [0.3, 0.8]),
        lambda pipe: pipe.disable_lora(),
        lambda pipe: pipe.enable_lora(),
        lambda pipe: pipe.unload_lora_weights(),
    ]
    before = None
    for step in steps:
        step(plain)
        step(pipe)
        expected = generated(plain, num_inference_steps=3)
        assert before is None or (expected - before).abs().max() > 1e-2
        assert_near(generated(pipe, num_inference_steps=3), expected)
        before = expected
    assert trtb.report(pipe.unet).is_whole


@pytest.mark.full
def test_fused_weights_are_followed(pipe: Any, tmp_path: Path) -> None:
    """Peft edits weights without autograd's knowledge: after all of it they are the same tensors of one version."""
    pytest.importorskip("peft")
    plain = copy.deepcopy(pipe)
    trtb.accelerate(pipe.unet, **STRICT)
    folder = models.lora(plain.unet, str(tmp_path))
    assert_near(generated(pipe), generated(plain))
    for scale in (1.0, 0.3):
        for each in (plain, pipe):
            each.load_lora_weights(folder, adapter_name="a")
            each.fuse_lora(components=["unet"], lora_scale=scale)
            each.unload_lora_weights()
        assert_near(generated(pipe), generated(plain))
    assert trtb.report(pipe.unet).graphs <= 2  # torch 2.14 makes another graph for weights that peft has frozen
    trtb.restore(pipe.unet)
    assert "fuse_lora" not in vars(pipe.unet)


@pytest.mark.full
def test_adapters_that_are_swapped_in_place_are_followed(pipe: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    plain = copy.deepcopy(pipe)
    trtb.accelerate(pipe.unet, **STRICT)
    first, second = (models.lora(plain.unet, str(tmp_path / name), seed) for seed, name in enumerate("ab"))
    for folder, is_swapped in ((first, False), (second, True)):
        for each in (plain, pipe):
            each.load_lora_weights(folder, adapter_name="a", hotswap=is_swapped)
        assert_near(generated(pipe), generated(plain))
    assert trtb.report(pipe.unet).graphs == 1


@pytest.mark.full
def test_a_text_encoder_with_adapters_is_pytorchs(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft")
    trtb.accelerate(pipe, engine="reference")
    # transformers may ask for a newer peft than there is.
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda **_: None)
    pipe.text_encoder.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    expected = pipe.text_encoder.forward(torch.tensor([[1, 3, 4, 0]])).last_hidden_state
    assert torch.equal(pipe.text_encoder(torch.tensor([[1, 3, 4, 0]])).last_hidden_state, expected)
    assert any("text_encoder: PyTorch runs calls: a LoRA was loaded" in note for note in trtb.report(pipe).notes)


def test_replaced_parts(pipe: Any) -> None:
    trtb.accelerate(pipe, **STRICT)
    first = pipe.unet
    pipe.unet = models.unet(levels=1)
    assert trtb.report(pipe).notes == ["unet: PyTorch runs it: it is not accelerated"]
    with pytest.raises(trtb.OptionsError, match="of this StableDiffusionPipeline is accelerated with other options"):
        trtb.accelerate(pipe, precision="fp16", **STRICT)
    trtb.accelerate(pipe, **STRICT)
    assert trtb.report(pipe).notes == []
    trtb.restore(pipe)
    with pytest.raises(trtb.OptionsError, match="This StableDiffusionPipeline is not accelerated"):
        trtb.restore(pipe)
    assert trtb.restore(first) is first


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_hooks_that_move_weights(part: str, pipe: Any) -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    latents = torch.randn(2, 4, 8, 8)
    model: Any = getattr(pipe, part)
    call = {
        "unet": lambda: model(latents, 3, torch.randn(2, 5, 16)).sample,
        "vae": lambda: model.decode(latents).sample,
    }
    torch.manual_seed(1)
    expected = call[part]()
    trtb.accelerate(pipe, engine="reference")
    hooks.add_hook_to_module(model, hooks.ModelHook())
    torch.manual_seed(1)
    assert torch.equal(call[part](), expected)
    assert "PyTorch runs calls: hooks of accelerate move its weights" in trtb.report(pipe).notes[0]
    assert trtb.report(pipe).graphs == 0
    trtb.restore(pipe)
    trtb.accelerate(pipe, **STRICT)
    with pytest.raises(trtb.UnsupportedOpError, match="hooks of accelerate move its weights"):
        call[part]()


def test_an_autoencoder_that_is_cast_for_each_image_is_left_alone() -> None:
    pipe = models.sdxl()
    pipe.vae.half()
    trtb.accelerate(pipe, **STRICT)
    notes = trtb.report(pipe).notes
    assert [note.partition(":")[0] for note in notes] == [
        *("vae.encoder", "vae.quant_conv", "vae.post_quant_conv", "vae.decoder")
    ]
    assert all("casts it to fp32 for each image" in note for note in notes)


# Models ------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_an_autoencoder(engine_calls: list[list[int]]) -> None:
    vae, images = models.vae(levels=1), torch.rand(2, 3, 8, 12)
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean
        expected = vae.decode(latents).sample
        assert trtb.accelerate(vae, **STRICT) is vae
        assert_near(vae.encode(images).latent_dist.mean, latents)
        assert_near(vae.decode(latents).sample, expected)
        assert engine_calls == [[2, 3, 8, 12], [2, 8, 8, 12], [2, 4, 8, 12], [2, 4, 8, 12]]
        assert engines(vae) == ["decoder", "encoder", "post_quant_conv", "quant_conv"]
        twin = copy.deepcopy(vae)
        assert torch.equal(twin.decode(latents).sample, expected)
    trtb.restore(vae)
    assert all(part._compiled_call_impl is None for part in vae.modules())


def test_copies_and_files_of_a_denoiser_are_plain(engine_calls: list[list[int]]) -> None:
    unet = trtb.accelerate(models.unet(levels=1), **STRICT)
    file = io.BytesIO()
    torch.save(unet, file)
    file.seek(0)
    for twin in (copy.deepcopy(unet), torch.load(file, weights_only=False)):
        twin(torch.randn(2, 4, 8, 8), 3, torch.randn(2, 5, 16))
        assert twin.fuse_lora.__self__ is twin
    assert engine_calls == []


def test_what_cannot_be_accelerated(pipe: Any) -> None:
    trtb.accelerate(pipe)
    with pytest.raises(trtb.OptionsError, match=r"This StableDiffusionPipeline is compiled already by torchtrt_bridge"):
        trtb.accelerate(pipe)
    trtb.restore(pipe)
    pipe.unet.compile(backend="eager")
    with pytest.raises(trtb.OptionsError, match="unet of this StableDiffusionPipeline is compiled already by its own"):
        trtb.accelerate(pipe)
    assert all(part._compiled_call_impl is None for part in pipe.vae.modules())
    with pytest.raises(trtb.OptionsError, match="Did you mean 'precision'"):
        trtb.accelerate(pipe, precison="fp16")
