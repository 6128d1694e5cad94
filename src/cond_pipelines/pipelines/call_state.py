"""The state of the call that a pipeline makes, and the guard that it makes one at a time.

This file is self-contained on purpose: it travels with a checkpoint.
"""

import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from .conditional import ConditionalPipeline

Function = TypeVar("Function", bound=Callable[..., object])


class CallState:
    """The state of the current call, under diffusers' names."""

    _guidance_scale: float | list[float] | dict[str, float]
    _guidance_rescale: float
    _null_is_cond: bool
    _cross_attention_kwargs: dict[str, object] | None
    _num_timesteps: int
    _interrupt: bool

    @property
    def guidance_scale(self) -> float | list[float] | dict[str, float]:
        return self._guidance_scale

    @property
    def guidance_rescale(self) -> float:
        return self._guidance_rescale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale != 1.0 and not self._null_is_cond

    @property
    def cross_attention_kwargs(self) -> dict[str, object] | None:
        return self._cross_attention_kwargs

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt


_in_use: set[int] = set()  # the schedulers and guiders of the calls that run now, by id
_lock = threading.Lock()


def one_call_at_a_time(function: "Function") -> "Function":
    """Refuse a second call in another thread, or in a callback: a scheduler and a guider keep the state of one call.

    Raises:
        RuntimeError: a call is running.
    """

    @functools.wraps(function)
    def guarded(pipe: "ConditionalPipeline", *args: object, **kwargs: object) -> object:
        guider = kwargs.get("guider")
        guider = getattr(pipe, "guider", None) if guider is None else guider
        keys = {id(pipe.scheduler), *({id(guider)} if guider is not None else ())}
        with _lock:
            if keys & _in_use:
                raise RuntimeError(
                    "this pipeline is sampling already, and its scheduler and its guider serve one call at a time: "
                    "make a pipeline for each thread, with scheduler=type(pipe.scheduler).from_config("
                    "pipe.scheduler.config), and guider.new()"
                )
            _in_use.update(keys)
        try:
            return function(pipe, *args, **kwargs)
        finally:
            with _lock:
                _in_use.difference_update(keys)

    return cast("Function", guarded)
