"""Weights that lie elsewhere until they are needed: accelerate's and diffusers' offloading."""

import functools
from collections.abc import Callable
from typing import Any

Method = Callable[..., Any]


def within_hooks(method: Method) -> Method:
    """Make `method` of a diffusers model run as its `forward` does.

    The hooks of offloading act on `forward` alone: they bring the model's own parameters and
    buffers, take inputs to the device that computes, and put the parameters away again. The
    methods that `method` calls run within the same hooks.
    """

    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        hooks = _hooks(self)
        if not hooks or self.__dict__.get("_is_within_hooks"):
            return method(self, *args, **kwargs)
        self._is_within_hooks = True
        try:
            for hook in hooks:
                args, kwargs = hook.pre_forward(self, *args, **kwargs)
            output = method(self, *args, **kwargs)
            for hook in reversed(hooks):
                output = hook.post_forward(self, output)
        finally:
            self._is_within_hooks = False
        return output

    return wrapper


def _hooks(model: Any) -> list[Any]:
    """Those of accelerate (sequential offload, of a whole model) and of diffusers (in groups)."""
    found = [getattr(model, "_hf_hook", None)]
    if hasattr(model, "_diffusers_hook"):
        found.append(model._diffusers_hook.get_hook("group_offloading"))
    return [hook for hook in found if hook is not None]
