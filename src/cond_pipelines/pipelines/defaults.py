"""What a pipeline is made of, and what it saves with its components: the defaults of a call, the range of values, the
objective. They go with the network, so that `ClassConditionalPipeline(**pipe.components)` has them too.

This file is self-contained on purpose: it travels with a checkpoint.
"""

from typing import TYPE_CHECKING, Any

from ..adapters.denoiser import unwrapped
from .arguments import check_adapter
from .image_inputs import image_processors
from .remote_code import PortablePipeline
from .schedulers import objective_name
from .vae import vae_scale_factor

if TYPE_CHECKING:
    from diffusers.guiders.guider_utils import BaseGuidance
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
    from torch import nn
    from transformers import PreTrainedTokenizerBase

# Of a pipeline for whose network nobody has said anything else.
DEFAULTS: dict[str, object] = {
    "default_num_inference_steps": 30,
    "default_guidance_scale": 2.5,
    "value_range": None,
    "objective": None,
}
_NAMED_WHERE_THERE = ("guider", "guide")  # so that pipelines without them have the components that they always had


def _names(scheduler: "SchedulerMixin | None") -> set[str]:
    return set() if scheduler is None else {objective_name(None, scheduler)}


class PipelineWithDefaults(PortablePipeline):
    """A pipeline whose components carry its defaults to the next pipeline that is made of them."""

    conditioning: str | None = None  # the setting of the adapter that a subclass needs; None: any

    def _setup(
        self,
        given: dict[str, object],
        **modules: "nn.Module | SchedulerMixin | PreTrainedTokenizerBase | BaseGuidance | None",
    ) -> None:
        """Register modules, and values of `DEFAULTS`; those that are None are the network's, else the default.

        Raises:
            ValueError: an adapter for another setting, or a value that is not of its kind.
        """
        check_adapter(type(self).__name__, self.conditioning, modules["adapter"])
        for name in _NAMED_WHERE_THERE:  # as a configuration has a component that is not there
            modules[name] = None if modules.get(name) in ((None, None), [None, None]) else modules.get(name)
        guider = modules["guider"]
        if guider is not None and not hasattr(guider, "prepare_inputs"):
            raise ValueError(f"guider {type(guider).__name__} is not one of diffusers' guiders")
        unet = modules["unet"]
        kept = {} if unet is None else dict(vars(unwrapped(unet)).get("_pipeline_defaults", {}))
        if (kept.get("objective") or {}).get("name") in {"flow_matching", "edm", "ddpm"} - _names(modules["scheduler"]):
            kept.pop("objective")  # with a scheduler of another family it is made into another model
        values = DEFAULTS | kept | {name: value for name, value in given.items() if value is not None}
        for name in ("default_num_inference_steps", "default_guidance_scale"):
            if isinstance(values[name], bool) or not isinstance(values[name], int | float):
                raise ValueError(f"{name} {values[name]!r} is not a number")
        objective = values["objective"]
        if objective is not None and not (isinstance(objective, dict) and isinstance(objective.get("name"), str)):
            raise ValueError(f"objective {str(objective)[:60]!r} is not a dictionary with a name")
        values["value_range"] = values["value_range"] or None  # {} is none, whatever the network's is
        self.register_modules(**modules)
        self.register_to_config(**values)
        vae = modules.get("vae")
        self.vae_scale_factor = 1 if vae is None else vae_scale_factor(vae)
        self.image_processor, self.mask_processor = image_processors(vae, self.vae_scale_factor)

    @property
    def components(self) -> dict[str, Any]:
        """As diffusers' own: what the constructor of another pipeline takes, which then has the same defaults.

        A guider and a guide are among them only where there is one.
        """
        if self.unet is not None:
            defaults = {name: self.config.get(name, default) for name, default in DEFAULTS.items()}
            vars(unwrapped(self.unet))["_pipeline_defaults"] = defaults
        components: dict[str, Any] = super().components
        return {name: part for name, part in components.items() if name not in _NAMED_WHERE_THERE or part is not None}
