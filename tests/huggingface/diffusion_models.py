"""Small diffusion pipelines of diffusers with random weights: Stable Diffusion 1.5, SDXL, Stable Diffusion 3, Flux."""

from __future__ import annotations

import copy
from typing import Any

import tokenizers
import torch
import transformers

WORDS = ["<end>", "<begin>", "<unknown>", "a", "photo", "of", "cat", "red", "on", "the", "moon", "bad", "blurry"]
LENGTH = 12

TEXT = {
    "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": LENGTH, "bos_token_id": 1, "eos_token_id": 0,
    "pad_token_id": 0, "projection_dim": 16,
}  # fmt: skip
UNET = {
    "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4,
    "cross_attention_dim": 16,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
# Of one level in place of two.
SHALLOW = {
    "block_out_channels": (8,), "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("UpBlock2D",),
}  # fmt: skip
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def tokenizer() -> Any:
    """Return a tokenizer of the words above, which is made in memory."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unknown>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="<begin> $A <end>", special_tokens=[("<begin>", 1), ("<end>", 0)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<begin>", eos_token="<end>", pad_token="<end>", unk_token="<unknown>",
        model_max_length=LENGTH,
    )  # fmt: skip


def text_encoder(kind: str = "CLIPTextModel", **sizes: Any) -> Any:
    return getattr(transformers, kind)(transformers.CLIPTextConfig(**{**TEXT, **sizes})).eval()


def t5_encoder(width: int = 16) -> Any:
    config = transformers.T5Config(vocab_size=len(WORDS), d_model=width, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    return transformers.T5EncoderModel(config).eval()


def unet(levels: int = 2, **settings: Any) -> Any:
    from diffusers import UNet2DConditionModel

    sizes = {**UNET, "sample_size": 16} if levels == 2 else {**UNET, **SHALLOW, "sample_size": 32}
    return UNet2DConditionModel(**{**sizes, **settings}).eval()


def vae(levels: int = 2, **settings: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8,) * levels, norm_num_groups=4, layers_per_block=1, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        **{"latent_channels": 4, **settings},
    ).eval()  # fmt: skip


def controlnet() -> Any:
    """Return a ControlNet for a UNet of one level, whose last layers are not zeros as those of a new one."""
    from diffusers import ControlNetModel

    sizes = {name: size for name, size in {**UNET, **SHALLOW}.items() if name != "up_block_types"}
    net = ControlNetModel(**sizes, conditioning_embedding_out_channels=(8,)).eval()
    for weight in net.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.3)
    return net


def stable_diffusion(levels: int = 2) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    return quiet(
        StableDiffusionPipeline(
            vae=vae(levels), text_encoder=text_encoder(), tokenizer=tokenizer(), unet=unet(levels),
            scheduler=DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1), feature_extractor=None,
            safety_checker=None, requires_safety_checker=False,
        )
    )  # fmt: skip


def sdxl() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    sizes = {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "cross_attention_dim": 32,
        "projection_class_embeddings_input_dim": 6 * 8 + 16, "transformer_layers_per_block": (1, 2),
        "attention_head_dim": (2, 4), "use_linear_projection": True,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return quiet(
        StableDiffusionXLPipeline(
            vae=vae(), text_encoder=text_encoder(), text_encoder_2=text_encoder("CLIPTextModelWithProjection"),
            tokenizer=tokenizer(), tokenizer_2=tokenizer(), unet=unet(**sizes), add_watermarker=False,
            scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
        )
    )  # fmt: skip


def stable_diffusion_3() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=8, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32, out_channels=8,
        pos_embed_max_size=32, qk_norm="rms_norm", dual_attention_layers=(0,),
    ).eval()  # fmt: skip
    clip = "CLIPTextModelWithProjection"
    return quiet(
        StableDiffusion3Pipeline(
            transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=vae(latent_channels=8, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06),
            text_encoder=text_encoder(clip), tokenizer=tokenizer(), text_encoder_2=text_encoder(clip),
            tokenizer_2=tokenizer(), text_encoder_3=t5_encoder(32), tokenizer_3=tokenizer(),
        )
    )  # fmt: skip


def flux() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    ).eval()  # fmt: skip
    return quiet(
        FluxPipeline(
            transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
            text_encoder=text_encoder(), tokenizer=tokenizer(), text_encoder_2=t5_encoder(), tokenizer_2=tokenizer(),
        )
    )  # fmt: skip


def lora(model: Any, folder: str, seed: int = 0) -> str:
    """Save a random LoRA for the attention layers of a UNet, as `load_lora_weights` takes it; return the folder."""
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    twin = copy.deepcopy(model)
    twin.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    torch.manual_seed(seed)
    weights = {name: torch.randn_like(weight) for name, weight in get_peft_model_state_dict(twin).items()}
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=weights)
    return folder


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generated(pipe: Any, size: int | tuple[int, int] | None = 32, **settings: Any) -> torch.Tensor:
    """Return the images that a pipeline makes of a prompt and a seed; size: None for that of an image in `settings`."""
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        settings |= {"height": height, "width": width}
    given = {"prompt": "a photo of a cat", "num_inference_steps": 2, "output_type": "pt", **settings}
    images: torch.Tensor = pipe(generator=torch.Generator().manual_seed(1), **given).images
    return images
