"""Source lines of nodes, as messages and reports show them."""

from __future__ import annotations

import os
import sys
import types

import pytest

from torchtrt_bridge.graph.nodes import shown_file, source_of_trace

FILE = f"/tmp/ipykernel_{os.getpid()}/123.py"
TRACE = f'  File "{FILE}", line 8, in forward\n    return x.relu()\n'


class Compiler:
    """Compiler of IPython that knows one cell."""

    def format_code_name(self, name: str) -> tuple[str, str] | None:
        return ("Cell", "In[5]") if name == FILE else None


@pytest.fixture
def _notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = types.SimpleNamespace(compile=Compiler())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))


@pytest.mark.usefixtures("_notebook")
def test_a_line_of_a_notebook_is_named_by_its_cell() -> None:
    assert source_of_trace(TRACE) == "In[5]:8: return x.relu()"
    assert shown_file("/tmp/ipykernel_1/123.py") == "In[5]"  # of a graph that an earlier kernel put into the cache
    assert shown_file("/tmp/ipykernel_1/124.py") == "a notebook's cell"
    assert shown_file("/home/me/ipykernel/123.py") == "/home/me/ipykernel/123.py"


@pytest.mark.parametrize("module", [None, types.SimpleNamespace(get_ipython=lambda: None)], ids=["none", "no shell"])
def test_without_a_notebook_a_cell_has_no_number(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", module)
    assert shown_file(FILE) == "a notebook's cell"


def test_generated_code_is_no_source() -> None:
    made = '  File "<eval_with_key>.61", line 26, in forward\n    quantize = torch.ops.torchtrt_bridge.quantize(x)'
    user = '  File "/models.py", line 3, in forward\n    return x.relu()\n'
    assert source_of_trace(made) is None
    assert source_of_trace(user + made) == "/models.py:3: return x.relu()"
