"""The models of the suite: one row each, with random weights of a fixed seed.

To add one: a function that builds it, one that gives its inputs for a batch size, and a row in SUITE.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from torch import nn

Inputs = dict[str, "torch.Tensor"]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model to measure.

    kind: PyTorch runs a ``"cnn"`` in channels_last.
    gflop: the approximate arithmetic of one item; it orders the rows, cheap ones first.
    make: builds the model, in fp32.
    inputs: returns the keyword arguments for a batch size.
    """

    kind: Literal["cnn", "transformer"]
    gflop: float
    make: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    is_tiny: bool = False


def build(subject: Subject, device: str = "cpu") -> nn.Module:
    """Build the fp32 model in eval mode, the same in each process; on the CPU if it is a CNN, else on `device`.

    Weights as PyTorch initialises them would hide mistakes: outputs of zero (ViT's head), of 1e-14 (EfficientNet,
    whose batch norms have seen nothing), layers scaled by 1e-6 (ConvNeXt). So constant parameters are made random,
    and batch norms take the scale of one batch; that runs on the CPU, to be the same each time.
    """
    import torch

    torch.manual_seed(0)
    with torch.device("cpu" if subject.kind == "cnn" else device):
        model = subject.make().eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    if subject.kind == "cnn":
        _settle(model, subject.inputs(4))
    return model


def _settle(model: nn.Module, inputs: Inputs) -> None:
    """Let each batch norm divide by twice the root mean square of its input.

    With mean and variance, as in training, a random network is far more sensitive than a trained one: ResNet-50 in
    fp16 was off by 3e-2 then, and is off by 5e-3 this way.
    """
    import torch

    def measure(norm: Any, args: Any) -> None:
        norm.running_mean.zero_()
        norm.running_var.copy_(4 * args[0].square().mean((0, 2, 3)))

    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()


def _images(batch: int, size: int = 224) -> Inputs:
    import torch

    return {"x": torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))}


def _token_ids(length: int, vocabulary: int, batch: int, is_padded: bool = True) -> Inputs:
    """Return random token ids; padded ones with a mask that leaves out the last sixth of the last row."""
    import torch

    ids = torch.randint(5, vocabulary, (batch, length), generator=torch.Generator().manual_seed(1))
    if not is_padded:
        return {"input_ids": ids}
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[-1, length - length // 6 :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def _vision(name: str, kind: Literal["cnn", "transformer"], gflop: float) -> Subject:
    """Return the row of a classification model of torchvision's, on images of 224 x 224."""

    def make() -> nn.Module:
        from torchvision import models

        model: nn.Module = models.get_model(name, weights=None)
        return model

    return Subject(kind, gflop, make, _images)


def _text(
    model: str, config: str, gflop: float, length: int, vocabulary: int, is_padded: bool = True, **settings: Any
) -> Subject:
    """Return the row of a model class of transformers' with a configuration of its own."""

    def make() -> nn.Module:
        import transformers

        built: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**settings))
        return built

    inputs = functools.partial(_token_ids, length, vocabulary, is_padded=is_padded)
    return Subject("transformer", gflop, make, inputs)


def _tiny_cnn() -> nn.Module:
    from torch import nn

    class TinyCNN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(8, 10),
            )

        def forward(self, x: torch.Tensor) -> Any:
            return self.body(x)

    return TinyCNN()


MINILM: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
LLAMA_1B: dict[str, Any] = {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 32000,
    "use_cache": False,
}
TINY_BERT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "vocab_size": 99,
}

SUITE: Mapping[str, Subject] = {
    "resnet50": _vision("resnet50", "cnn", 8.2),
    "mobilenet-v3-large": _vision("mobilenet_v3_large", "cnn", 0.44),
    "efficientnet-b0": _vision("efficientnet_b0", "cnn", 0.8),
    "convnext-tiny": _vision("convnext_tiny", "cnn", 8.9),
    "vit-b-16": _vision("vit_b_16", "transformer", 35.0),
    "swin-t": _vision("swin_t", "transformer", 9.0),
    "bert-base": _text("BertModel", "BertConfig", 22.0, 128, 30522),
    "distilbert": _text("DistilBertModel", "DistilBertConfig", 11.0, 128, 30522),
    "minilm-l6": _text("BertModel", "BertConfig", 2.8, 128, 30522, **MINILM),
    "gpt2": _text("GPT2LMHeadModel", "GPT2Config", 32.0, 128, 50257, is_padded=False, use_cache=False),
    "llama-1b": _text("LlamaForCausalLM", "LlamaConfig", 1200.0, 512, 32000, is_padded=False, **LLAMA_1B),
    "tiny-cnn": Subject("cnn", 0.001, _tiny_cnn, functools.partial(_images, size=16), is_tiny=True),
    "tiny-bert": dataclasses.replace(_text("BertModel", "BertConfig", 0.002, 12, 99, **TINY_BERT), is_tiny=True),
}


def names(*, tiny: bool = False) -> tuple[str, ...]:
    """Return the names of the models of real size, or of the tiny ones, which are for trying the command."""
    return tuple(name for name, subject in SUITE.items() if subject.is_tiny == tiny)
