"""Models by their names: of torchvision, timm and transformers, exported programs, and callables of the user's."""

from __future__ import annotations

import difflib
import inspect
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from torchtrt_bridge.cli.arguments import MODEL_HELP, is_file
from torchtrt_bridge.cli.user_code import call, guarded, object_from
from torchtrt_bridge.entry.archive import MANIFEST, read_archive
from torchtrt_bridge.errors import OptionsError

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def model_from_name(name: str) -> nn.Module:
    """Return the module of a name in eval mode; of a model of a library, with random weights of a fixed seed."""
    torch.manual_seed(0)
    if is_file(name):
        return module_from_program(program_from_file(Path(name)))
    home, _, rest = name.partition(":")
    if home in LIBRARIES:
        with guarded(name):
            return LIBRARIES[home](rest).eval()
    found = object_from(name, MODEL_HELP)
    model = found if isinstance(found, nn.Module) else _made(found, name)
    if not isinstance(model, nn.Module):
        raise OptionsError(f"{name} returned a {type(model).__name__}, not an nn.Module.")
    with guarded(f"{name}: eval()"):
        return evaluated(model)


def _made(found: Any, name: str) -> Any:
    if not callable(found):
        raise OptionsError(f"{name} is a {type(found).__name__}, not a callable. Write {MODEL_HELP}.")
    return call(found, name)


def evaluated(model: nn.Module) -> nn.Module:
    """Put a model into eval mode; one of `torch.export` has one mode, and is said to be in it."""
    try:
        return model.eval()
    except NotImplementedError:
        for module in model.modules():
            module.training = False
        return model


def _torchvision(name: str) -> nn.Module:
    try:
        from torchvision import models
    except ImportError as error:
        raise _missing("torchvision", error, 'pip install "torchtrt_bridge[vision]"') from error
    if name not in models.list_models():
        raise OptionsError(_unknown("torchvision has no model", name, models.list_models()))
    parameters = inspect.signature(models.get_model_builder(name)).parameters
    options = {"weights_backbone": None} if "weights_backbone" in parameters else {}
    model: nn.Module = models.get_model(name, weights=None, **options)
    return model


def _timm(name: str) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise _missing("timm", error, 'pip install "torchtrt_bridge[timm]"') from error
    if not timm.is_model(name):
        raise OptionsError(_unknown("timm has no model", name, timm.list_models()))
    model: nn.Module = timm.create_model(name, pretrained=False)
    return model


def _huggingface(name: str) -> nn.Module:
    """Return a model of a folder, or of a configuration with random weights; nothing is downloaded."""
    try:
        from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedConfig
    except ImportError as error:
        raise _missing("transformers", error, 'pip install "torchtrt_bridge[huggingface]"') from error
    model: nn.Module
    if Path(name).is_dir():
        if any(Path(name).glob("*.safetensors")) or any(Path(name).glob("*.bin")):
            model = AutoModel.from_pretrained(name, local_files_only=True)
            return model
        return _of_config(AutoModel, lambda: AutoConfig.from_pretrained(name, local_files_only=True))
    if name in CONFIG_MAPPING:
        return _of_config(AutoModel, CONFIG_MAPPING[name])
    import transformers

    found = getattr(transformers, name, None)
    if isinstance(found, type) and issubclass(found, PreTrainedConfig):
        return _of_config(AutoModel, found)
    message = _unknown("there is no folder, type or class of configurations", name, CONFIG_MAPPING.keys())
    raise OptionsError(f"{message} Models are not downloaded: save one with save_pretrained(FOLDER) first.")


def _of_config(maker: Any, config: Callable[[], Any]) -> nn.Module:
    model: nn.Module = maker.from_config(config())
    return model


LIBRARIES: dict[str, Callable[[str], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "hf": _huggingface,
}


def _missing(package: str, error: ImportError, install: str) -> OptionsError:
    return OptionsError(f"{package} does not import: {error}. Run: {install}")


def _unknown(problem: str, name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"{problem} {name!r}." + (f" Did you mean {near[0]!r}?" if near else "")


# Exported programs -------------------------------------------------------------------------------------------------


def is_saved_by_us(path: Path) -> bool:
    """Check if `trtb.save` wrote a file: only these have a manifest."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(f"/extra/{MANIFEST}") for name in archive.namelist())
    except zipfile.BadZipFile as error:
        raise OptionsError(f"{path} is no exported program: {error}.") from error


def program_from_file(path: Path) -> ExportedProgram:
    """Return the exported program in a file, of `trtb.save` or of `torch.export.save`, on the CPU."""
    return move_to_device_pass(_read_program(path), "cpu")


def _read_program(path: Path) -> ExportedProgram:
    is_ours = is_saved_by_us(path)
    _register_results_of_transformers(path)
    if is_ours:
        return read_archive(path)[0]
    try:
        return torch.export.load(path)
    except Exception as error:
        raise OptionsError(f"{path} is no exported program: {type(error).__name__}: {error}") from error


def _register_results_of_transformers(path: Path) -> None:
    """Import the classes of results that transformers' models share, where a program has one: it is not read without.

    No other module that a file names is imported.
    """
    with zipfile.ZipFile(path) as archive:
        graphs = [name for name in archive.namelist() if name.endswith(".json") and "/models/" in name]
        has_results = any(b"transformers.modeling_outputs" in archive.read(name) for name in graphs)
    if has_results:
        try:
            import transformers.modeling_outputs  # noqa: F401 - the import registers them
        except ImportError as error:
            raise _missing("transformers", error, 'pip install "torchtrt_bridge[huggingface]"') from error


def module_from_program(program: ExportedProgram) -> nn.Module:
    """Return the module of an exported program, which keeps the program as `exported_program`."""
    module: nn.Module = evaluated(program.module())
    object.__setattr__(module, "exported_program", program)
    return module
