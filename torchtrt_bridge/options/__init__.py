"""Options that every entry point takes: `options.py` declares each once."""

from torchtrt_bridge.options.declaration import Declaration, Shapes, text_of
from torchtrt_bridge.options.documentation import choices, first_sentence, options_table
from torchtrt_bridge.options.options import (
    AT_LOAD,
    DECLARATIONS,
    TARGET_PREFIX,
    BuildKind,
    CudaGraphs,
    EngineKind,
    Fallback,
    Inductor,
    KeywordOptions,
    LoadOptions,
    Options,
    Precision,
    TorchTensorRT,
    TrialKind,
    builder_settings,
    defaults,
    type_hints,
)

__all__ = [
    "AT_LOAD",
    "DECLARATIONS",
    "TARGET_PREFIX",
    "BuildKind",
    "CudaGraphs",
    "Declaration",
    "EngineKind",
    "Fallback",
    "Inductor",
    "KeywordOptions",
    "LoadOptions",
    "Options",
    "Precision",
    "Shapes",
    "TorchTensorRT",
    "TrialKind",
    "builder_settings",
    "choices",
    "defaults",
    "first_sentence",
    "options_table",
    "text_of",
    "type_hints",
]
