"""Check of an archive before PyTorch reads it: it holds what `save` writes, and nothing that could run code.

`torch.export.load` loads pickles and libraries where a file has some, evaluates the expressions of sizes as Python,
resolves any name within `torch` to a function, and writes names of the file into Python source. So the names of the
records and all strings of the graph are checked, each by what PyTorch does with it.
"""

from __future__ import annotations

import ast
import enum
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.export.pt2_archive import PT2ArchiveReader

from torchtrt_bridge.errors import EngineLoadError
from torchtrt_bridge.graph.torch_internals import is_operator

GRAPH = "models/model.json"
EXAMPLES = "data/sample_inputs/model.pt"
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
TENSORS = re.compile(r"data/weights/weight_\d+|data/constants/tensor_\d+")
PLAIN = re.compile(r"archive_format|archive_version|byteorder|\.data/\w+|extra/[\w.\-]+")

# A string that PyTorch may write into Python source as it is.
NAME = re.compile(r"[\w.+\-<=>]*", re.ASCII)
IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)
BREAKS_OUT = re.compile(r"[\"'\\\n\r]")

# What a node may call. `torch.ops` holds more than operators, so those are looked up.
OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)", re.ASCII)
NUMBER_FUNCTION = re.compile(r"math\.[a-z]\w*|torch\._?sym_\w+", re.ASCII)
ARITHMETIC = re.compile(
    r"_operator\.(getitem|eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|mod|pow|truediv|and_|or_|xor|abs|lshift|rshift)"
)
CONTROL_FLOW = re.compile(
    r"torch\.ops\.higher_order\.(cond|while_loop|scan|map_impl|associative_scan|flex_attention|wrap|strict_mode"
    r"|wrap_with_set_grad_enabled|wrap_with_autocast|tag_activation_checkpoint|auto_functionalized(_v2)?|invoke_subgraph)"
)
OF_FILES = frozenset({"aten.from_file", "aten.save", "debugprims.load_tensor"})  # operators that read or write files

# What an expression of sizes may call, as `sympy.srepr` prints it and as sympy prints it.
SIZE_FUNCTION = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Max|Min|Abs|floor|ceiling|And|Or|Not|Xor|Eq|Ne|Lt|Le|Gt|Ge|Piecewise"
    r"|ExprCondPair|Tuple|Equality|Unequality|(Strict)?(Less|Greater)Than|FloorDiv|ModularIndexing|Where|(Python)?Mod"
    r"|CleanDiv|Ceil(ToInt|Div)|FloorToInt|[LR]Shift|PowByNatural|Float(Pow|TrueDiv)|IntTrueDiv|TruncTo(Float|Int)"
    r"|Round(ToInt|Decimal)|ToFloat|Identity|IsNonOverlappingAndDenseIndicator|BitwiseFn_bitwise_(and|or|xor)"
    r"|OpaqueUnaryFn_\w+"
)
SIZE_SYNTAX = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.keyword, ast.Name, ast.Constant,
    ast.Tuple, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context,
)  # fmt: skip
GUARD_SYNTAX = (*SIZE_SYNTAX, ast.Attribute, ast.Subscript)
GUARD_FUNCTION = re.compile(
    r"max|min|abs|int|float|math\.[a-z]\w*|torch\._?sym_\w+|IsNonOverlappingAndDenseIndicator"
    r"|cast_symbool_to_symint_guardless|(.*\.)?(size|stride|storage_offset)",
    re.ASCII | re.DOTALL,
)
LONGEST_SIZE = 100_000
LARGEST_IN_POWER = 2**16

# The classes whose instances a defaultdict of a file may make.
FACTORIES = frozenset(f"builtins.{kind.__name__}" for kind in (list, dict, set, tuple, int, float, str, bool))


def check_archive(archive: PT2ArchiveReader) -> None:
    """Raise EngineLoadError for an archive with a content that `save` does not write."""
    for name in archive.get_file_names():
        if name not in (GRAPH, EXAMPLES, *CONFIGS) and not TENSORS.fullmatch(name) and not PLAIN.fullmatch(name):
            raise _refused(f"the record {name!r}")
    if archive.read_bytes(EXAMPLES):
        raise _refused(f"a pickle in {EXAMPLES}")
    for name in CONFIGS:
        _check_config(_parsed(archive, name), name)
    _check_graph(_parsed(archive, GRAPH))


def _refused(content: str) -> EngineLoadError:
    return EngineLoadError(
        f"it holds {content}, which save() never writes and which could run code. Do not load it with "
        "torch.export.load either, unless you trust its author."
    )


def _parsed(archive: PT2ArchiveReader, name: str) -> Any:
    return json.loads(archive.read_bytes(name))


def _check_config(content: Any, name: str) -> None:
    """Check that each tensor is plain bytes in a record of its own folder."""
    folder = name.rpartition("/")[0]
    for tensor, meta in content["config"].items():
        if meta.get("use_pickle") is not False or not TENSORS.fullmatch(f"{folder}/{meta['path_name']}"):
            raise _refused(f"the tensor {tensor!r} as a pickled object, by {name}")
        _check_name(tensor)


def _check_graph(content: Any) -> None:
    """Check each string of the graph by the field that holds it."""
    for guard in content.get("guards_code") or ():
        _check_guard(guard)
    for field, value in _fields(content):
        if field.startswith(("as_custom_obj", "as_opaque")) or (field.startswith("custom_obj") and value):
            raise _refused("an object of a class of its own")
        if not isinstance(value, str):
            continue
        if field in ("target", "as_operator"):
            _check_call(value)
        elif field in ("expr_str", "range_constraints"):  # the keys of ranges are sizes, as 2*s77
            _check_size(value)
        elif field in ("in_spec", "out_spec"):
            _check_nesting(value, is_input=field == "in_spec")
        elif field not in ("as_string", "as_strings", "guards_code"):
            _check_name(value)
    for spec in content["graph_module"]["signature"]["input_specs"]:
        _check_constant(spec.get("constant_input"))


def _fields(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield each value with the name of its field, that of the list for its elements.

    It leaves out the metadata of nodes, which is text: a tensor that is called so holds other values.
    """
    rest = [("", content)]
    while rest:
        field, value = rest.pop()
        yield field, value
        if isinstance(value, dict):
            rest += [(field if field == "range_constraints" else "", key) for key in value]
            rest += [(key, part) for key, part in value.items() if key != "metadata" or not _is_text(part)]
        elif isinstance(value, list):
            rest += [(field, part) for part in value]


def _is_text(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(part, str) for part in value.values())


def _check_name(text: str) -> None:
    if not NAME.fullmatch(text):
        raise _refused(f"the name {text[:80]!r}")


def _check_constant(spec: Any) -> None:
    """Check an argument that is no tensor: PyTorch writes a string into the source of its guards."""
    value = (spec or {}).get("value") or {}
    if isinstance(value.get("as_string"), str) and BREAKS_OUT.search(value["as_string"]):
        raise _refused(f"the argument {value['as_string'][:80]!r}")


def _check_call(target: str) -> None:
    """Check what a node calls: an operator of PyTorch, arithmetic of sizes, or control flow."""
    is_safe = any(rule.fullmatch(target) for rule in (ARITHMETIC, CONTROL_FLOW, NUMBER_FUNCTION))
    is_safe = is_safe or _is_safe_operator(target)
    if not is_safe:
        raise _refused(f"a call of {target[:80]!r}")


def _is_safe_operator(target: str) -> bool:
    parts = OPERATOR.fullmatch(target)
    if parts is None or f"{parts[1]}.{parts[2]}" in OF_FILES:
        return False
    found: Any = torch.ops
    for name in parts.groups():
        found = getattr(found, name, None)
    return found is None or is_operator(found)  # PyTorch itself says which operator is not registered


def _check_size(text: str) -> None:
    """Check an expression of sizes, which sympy evaluates as Python."""
    if not all(map(_is_size_syntax, _parts(text))):
        raise _refused(f"the size {text[:80]!r}")


def _check_guard(text: str) -> None:
    """Check a condition on the sizes of the inputs, which PyTorch writes into a function."""
    if not all(map(_is_guard_syntax, _parts(text))):
        raise _refused(f"the condition {text[:80]!r}")


def _parts(text: str) -> Iterator[ast.AST | None]:
    """Yield all nodes of an expression; None for a text that is no expression."""
    try:
        yield from ast.walk(ast.parse(text, mode="eval")) if len(text) <= LONGEST_SIZE else [None]
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        yield None


def _is_guard_syntax(node: ast.AST | None) -> bool:
    if isinstance(node, ast.Constant):
        is_text = isinstance(node.value, str) and not BREAKS_OUT.search(node.value)
        return is_text or isinstance(node.value, (int, float))
    if isinstance(node, ast.Call):
        return bool(GUARD_FUNCTION.fullmatch(ast.unparse(node.func)))
    return isinstance(node, GUARD_SYNTAX)


def _is_size_syntax(node: ast.AST | None) -> bool:
    if not isinstance(node, SIZE_SYNTAX):
        return False
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (int, float)) or (
            isinstance(node.value, str) and bool(NAME.fullmatch(node.value))
        )
    if isinstance(node, ast.Call) and not SIZE_FUNCTION.fullmatch(_called(node)):
        return False
    return not _is_power(node) or _is_small_power(node)


def _called(node: ast.AST) -> str:
    """Return the name of the function that is called; an empty string for no call or another expression."""
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def _is_power(node: ast.AST) -> bool:
    return (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)) or _called(node) == "Pow"


def _is_small_power(node: ast.AST) -> bool:
    """Check a power, whose numbers could take all memory: none is large, and it holds no other power."""
    parts = list(ast.walk(node))
    numbers = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, (int, float))]
    return sum(map(_is_power, parts)) == 1 and all(abs(number) <= LARGEST_IN_POWER for number in numbers)


def _check_nesting(text: str, is_input: bool) -> None:
    """Check how arguments or results are nested; PyTorch imports the modules of defaultdicts and enumerations."""
    _, root = json.loads(text)
    rest = [root]
    while rest:
        spec = rest.pop()
        rest += spec["children_spec"]
        context = spec["context"]
        if isinstance(context, dict) and "default_factory_module" in context:
            factory = f"{context['default_factory_module']}.{context['default_factory_name']}"
            if factory not in FACTORIES:
                raise _refused(f"a defaultdict of {factory[:80]!r}")
        for field, value in _fields(json.loads(context) if isinstance(context, str) and context else context):
            if field == "fqn" and not _is_enumeration(str(value)):
                raise _refused(f"the enumeration {value[:80]!r}, whose module is not imported here")
            if is_input and isinstance(value, str) and BREAKS_OUT.search(value):
                raise _refused(f"the key {value[:80]!r}")
    if is_input:
        _check_keywords(root)


def _check_keywords(root: Any) -> None:
    """Check the names of keyword arguments."""
    keywords = root["children_spec"][1]["context"]
    for name in json.loads(keywords) if isinstance(keywords, str) else keywords or ():
        if not IDENTIFIER.fullmatch(name):
            raise _refused(f"the keyword argument {name[:80]!r}")


def _is_enumeration(name: str) -> bool:
    """Check if a name is that of an enumeration in a module that is imported already."""
    module, _, parts = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in parts.split("."):
        found = getattr(found, part, None)
    return isinstance(found, type) and issubclass(found, enum.Enum)
