"""Tiny models of the Hugging Face families with random weights, and inputs for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch.export import Dim

VOCABULARY = 99
BATCH = Dim("batch", min=1, max=8)
LENGTH = Dim("length", min=2, max=32)


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A model and what it is called with.

    config: makes its configuration.
    model: name of its class.
    inputs: from batch size and length to keyword arguments; images and sound have one length only.
    dynamic: the dimensions that may vary, by input, as `torch.export.export` takes them.
    part: the module to run, of a model of two towers.
    """

    name: str
    config: Any
    model: str
    inputs: Callable[[int, int], dict[str, torch.Tensor]]
    dynamic: dict[str, dict[int, Any]]
    part: str | None = None

    def build(self, model: str | None = None, **settings: Any) -> torch.nn.Module:
        """Return the model with random weights, or another one of its family; `settings` go into its configuration."""
        torch.manual_seed(0)
        config = self.config()
        for name, value in settings.items():
            setattr(config, name, value)
        model = getattr(transformers, model or self.model)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # what starts at zero would hide a forgotten operand
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        return model if self.part is None else model.get_submodule(self.part)

    def dynamic_shapes(self) -> dict[str, Any]:
        return {name: dict(dims) for name, dims in self.dynamic.items()}

    def __str__(self) -> str:
        return self.name


def text(batch: int, length: int) -> dict[str, torch.Tensor]:
    """Return token ids, padded: the last sentence is shorter than the first."""
    generator = torch.Generator().manual_seed(batch * 100 + length)
    ids = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
    mask = torch.ones(batch, length, dtype=torch.int64)
    if batch > 1:
        mask[-1, length - length // 3 :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def typed_text(batch: int, length: int) -> dict[str, torch.Tensor]:
    """Return text whose second half is of the second kind."""
    inputs = text(batch, length)
    types = torch.zeros_like(inputs["input_ids"])
    types[:, length // 2 :] = 1
    return {**inputs, "token_type_ids": types}


def text_with_states(batch: int, length: int) -> dict[str, torch.Tensor]:
    """Return a decoder's inputs: text of its own, and the states of an encoder that read seven tokens."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, 7, dtype=torch.int64)
    mask[-1, 5:] = 0
    states = torch.randn(batch, 7, 32, generator=generator)
    return {**text(batch, length), "encoder_hidden_states": states, "encoder_attention_mask": mask}


def image(batch: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {"pixel_values": torch.randn(batch, 3, 30, 30, generator=generator)}


def spectrum(batch: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {"input_features": torch.randn(batch, 16, 60, generator=generator)}


def wave(batch: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {"input_values": torch.randn(batch, 400, generator=generator)}


TEXT = {"input_ids": {0: BATCH, 1: LENGTH}, "attention_mask": {0: BATCH, 1: LENGTH}}
TYPED_TEXT = {**TEXT, "token_type_ids": {0: BATCH, 1: LENGTH}}
IMAGE = {"pixel_values": {0: BATCH}}
TEXT_WITH_STATES = {**TEXT, "encoder_hidden_states": {0: BATCH}, "encoder_attention_mask": {0: BATCH}}

ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 64,
}
ROPED = {**ENCODER, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def configuration(kind: str, **arguments: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, f"{kind}Config")(**arguments)


def encoder(name: str, kind: str, inputs: Any = text, dynamic: Any = TEXT, **more: Any) -> Tiny:
    return Tiny(name, configuration(kind, **{**ENCODER, **more}), f"{kind}Model", inputs, dynamic)


def decoder(name: str, kind: str, **more: Any) -> Tiny:
    arguments = {"use_cache": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **more}
    model = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    return Tiny(name, configuration(kind, vocab_size=VOCABULARY, **arguments), model, text, TEXT)


def roped(name: str, kind: str, **more: Any) -> Tiny:
    return Tiny(name, configuration(kind, **{**ROPED, "use_cache": False, **more}), f"{kind}ForCausalLM", text, TEXT)


def clip() -> Any:
    tower = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    words = {**tower, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "eos_token_id": 2, "bos_token_id": 1}
    return transformers.CLIPConfig(
        text_config=words, vision_config={**tower, "image_size": 30, "patch_size": 6}, projection_dim=16
    )


T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
BART = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 37, "decoder_ffn_dim": 37, "max_position_embeddings": 64,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37, "image_size": 30,
    "patch_size": 6,
}  # fmt: skip
WHISPER = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 37, "decoder_ffn_dim": 37, "num_mel_bins": 16,
    "max_source_positions": 30, "max_target_positions": 30, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 3,
}  # fmt: skip
WAV2VEC2 = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37,
    "conv_dim": (32, 32), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2, "vocab_size": VOCABULARY,
}  # fmt: skip

MODELS = [
    encoder("bert", "Bert", typed_text, TYPED_TEXT),
    encoder("roberta", "Roberta", pad_token_id=0),
    Tiny(
        "distilbert",
        configuration("DistilBert", vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=4, hidden_dim=37),
        "DistilBertModel", text, TEXT,
    ),
    encoder("electra", "Electra", typed_text, TYPED_TEXT, embedding_size=16),
    encoder("albert", "Albert", typed_text, TYPED_TEXT, embedding_size=16),
    encoder("mpnet", "MPNet", pad_token_id=0),
    encoder(
        "deberta-v2", "DebertaV2", typed_text, TYPED_TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"],
        position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True, type_vocab_size=2,
    ),
    encoder("xlm-roberta", "XLMRoberta", pad_token_id=0),
    encoder(
        "modernbert", "ModernBert", pad_token_id=0, local_attention=8, global_attn_every_n_layers=2, bos_token_id=1,
        eos_token_id=2, cls_token_id=1, sep_token_id=2,
    ),
    decoder("gpt2", "GPT2", n_embd=32, n_layer=2, n_head=4, n_positions=64),
    decoder(
        "gpt-neo", "GPTNeo", hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=7, max_position_embeddings=64,
    ),
    decoder(
        "gpt-neox", "GPTNeoX", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37,
        max_position_embeddings=64,
    ),
    decoder("gptj", "GPTJ", n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4),
    decoder(
        "opt", "OPT", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=37, word_embed_proj_dim=32,
        max_position_embeddings=64,
    ),
    decoder("bloom", "Bloom", hidden_size=32, n_layer=2, n_head=4),
    roped("llama", "Llama"),
    roped("mistral", "Mistral", sliding_window=6),
    roped("qwen2", "Qwen2"),
    roped("qwen3", "Qwen3", head_dim=8),
    roped("gemma", "Gemma", head_dim=8),
    roped("phi", "Phi"),
    Tiny("t5-encoder", configuration("T5", **T5), "T5EncoderModel", text, TEXT),
    Tiny(
        "t5-decoder", configuration("T5", **T5, use_cache=False), "T5Model", text_with_states, TEXT_WITH_STATES,
        "decoder",
    ),
    Tiny("bart-encoder", configuration("Bart", **BART), "BartModel", text, TEXT, "encoder"),
    Tiny("vit", configuration("ViT", **VISION), "ViTModel", image, IMAGE),
    Tiny("deit", configuration("DeiT", **VISION), "DeiTModel", image, IMAGE),
    Tiny("clip-text", clip, "CLIPModel", text, TEXT, "text_model"),
    Tiny("clip-vision", clip, "CLIPModel", image, IMAGE, "vision_model"),
    Tiny(
        "whisper-encoder", configuration("Whisper", **WHISPER), "WhisperModel", spectrum,
        {"input_features": {0: BATCH}}, "encoder",
    ),
    Tiny("wav2vec2", configuration("Wav2Vec2", **WAV2VEC2), "Wav2Vec2Model", wave, {"input_values": {0: BATCH}}),
]  # fmt: skip


def tiny(name: str) -> Tiny:
    """Return the model of this name."""
    return next(model for model in MODELS if model.name == name)
