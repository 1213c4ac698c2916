"""Methods of one model in place of those of its class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class InstanceMethod:
    """A method of one model, which calls the one of its class.

    A copy or a pickle of the model has its class's own.
    """

    def __init__(self, model: Any, name: str) -> None:
        self.model = model
        self.name = name

    @property
    def of_class(self) -> Callable[..., Any]:
        """The method that the model has without this one."""
        return _of_class(self.model, self.name)

    def install(self) -> None:
        """Let calls of the model reach this method."""
        object.__setattr__(self.model, self.name, self)

    @classmethod
    def uninstall(cls, model: Any, name: str) -> None:
        """Undo `install`, where that was done."""
        if isinstance(vars(model).get(name), cls):
            object.__delattr__(model, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self.model))
        return self if copied is None else _of_class(copied, self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.model, self.name)


def _of_class(model: Any, name: str) -> Callable[..., Any]:
    method: Callable[..., Any] = getattr(type(model), name).__get__(model)
    return method
