"""Training objectives, built from the scheduler that the pipeline saves, so training and sampling cannot disagree."""

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from .scheduler_fit import misfit

Teach = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# What model_index.json holds of an objective: {"name": "flow_matching", "logit_mean": 0.0, ...}
SavedObjective = dict[str, object]
Arguments = dict[str, object]  # keyword arguments of an objective's constructor

SCHEDULER_NAMES = ("euler", "heun", "dpm++", "unipc", "lcm")  # see `ConditionalPipeline.use_scheduler`
OBJECTIVES: dict[str, type["Objective"]] = {}  # by name; the rows stand in objectives/__init__.py
# Of the scheduler's numbers, those that must stay as they were in training; the range of sigma may be another.
_MUST_AGREE = ("prediction_type", "num_train_timesteps", "sigma_data")


@dataclass(frozen=True)
class Denoise:
    """The network with its condition bound, as a loss calls it: `denoise(x_t, t)` -> its prediction (B, C, H, W).

    Args:
        predict: (x_t (B, C, H, W), t (B,)[, r (B,)]) -> (B, C, H, W). r: see `networks.denoiser.denoise`.
        teacher: (x_t, t) -> the pretrained model's prediction under the same condition, and the same with guidance,
            both without gradient; for an objective with `uses_teacher`.
        fraction_done: of the run, for a loss with a schedule; 1 outside of training.
    """

    predict: Callable[..., Tensor]
    teacher: Teach | None = None
    fraction_done: float = 1.0

    def __call__(self, x_t: Tensor, t: Tensor, r: Tensor | None = None) -> Tensor:
        return self.predict(x_t, t) if r is None else self.predict(x_t, t, r)


@dataclass(frozen=True)
class Draws:
    """Everything random of one training step, each row a function of its image's position in the run.

    Args:
        noise: (B, C, H, W) standard normal float32.
        u: (B,) in (0, 1), the quantile of each image's time. Consecutive ones cover (0, 1) evenly.
        dropout: (B, num_dropout_draws) in [0, 1), of condition dropout.
        uniform: (B, num_uniforms) in [0, 1), where an objective needs more; see `Objective.num_uniforms`.
    """

    noise: Tensor
    u: Tensor
    dropout: Tensor
    uniform: Tensor


@dataclass(frozen=True)
class Noised:
    """The inputs, the target and the weights of one training step, all in float32.

    Args:
        x_t: (B, C, H, W) the UNet's input.
        t: (B,) the UNet's `timestep`.
        target: (B, C, H, W) of the UNet's output.
        weight: (B,) of each example's mean squared error.
    """

    x_t: Tensor
    t: Tensor
    target: Tensor
    weight: Tensor

    def loss(self, prediction: Tensor) -> Tensor:
        """Weighted mean squared error of each example: (B,) float32."""
        return self.weight * (prediction.float() - self.target).square().flatten(1).mean(dim=1)


class Objective(ABC):
    """x_0 to a loss. `Objective.from_pipeline(pipe)` gives the one that a model was trained with.

    A subclass defines `scheduler_arguments`, and `noised` or a `loss` of its own. It keeps each argument of its
    constructor as an attribute of the same name, so that `config` can be saved with the model. It draws nothing itself.

    Example:
        >>> objective = Objective.from_scheduler(FlowMatchEulerDiscreteScheduler())
        >>> noised = objective.sample(x_0)
        >>> loss = noised.loss(unet(noised.x_t, noised.t, **cond.unet_kwargs(unet)).sample).mean()
    """

    num_uniforms = 0  # columns of `Draws.uniform`
    uses_teacher = False  # a distillation: see `Denoise.teacher`; the network has the input for r

    # ---------------------------------------------------------------------------------------- of which model

    @classmethod
    @abstractmethod
    def scheduler_arguments(cls, scheduler: SchedulerMixin) -> Arguments | None:
        """The arguments of the constructor that a scheduler decides; None where it samples for another objective."""

    @staticmethod
    def from_scheduler(scheduler: SchedulerMixin, **kwargs: object) -> "Objective":
        """The objective whose minimiser the scheduler expects.

        Args:
            scheduler: a diffusers scheduler of the flow-matching, EDM or DDPM family (alphas_cumprod).
            kwargs: other arguments of the objective, such as `snr_gamma=5.0` for DDPM.

        Raises:
            ValueError: a scheduler of no known family, or an unknown prediction_type.
        """
        cls = _family(scheduler)
        decided = None if cls is None else cls.scheduler_arguments(scheduler)
        if cls is None or decided is None:
            name = type(scheduler).__name__
            raise ValueError(f"no objective for {name}: use a flow-matching, EDM or DDPM-family scheduler")
        build: Callable[..., Objective] = cls  # each subclass has a constructor of its own
        return build(**decided, **kwargs)

    @staticmethod
    def from_pipeline(pipe: DiffusionPipeline) -> "Objective":
        """The objective that is saved with a model; of a model without one, that of its scheduler.

        Raises:
            ValueError: its class is not imported, or the scheduler is one for another objective.
        """
        saved, scheduler = pipe.config.get("objective"), pipe.scheduler
        if saved is None:
            return Objective.from_scheduler(scheduler)
        cls = saved_class(saved)
        if cls is None:
            raise ValueError(
                f"the model was trained with the objective {saved['name']!r}, which is not imported: import its "
                "module first"
            )
        check_scheduler(saved, scheduler)
        return of_saved(cls, saved, scheduler)

    @property
    def config(self) -> SavedObjective:
        """Its name and arguments as they are saved with the model. Tensors are not: the scheduler has them.

        Raises:
            ValueError: an argument that is not kept as an attribute, or that JSON cannot hold.
        """
        arguments = {}
        for name in inspect.signature(type(self)).parameters:
            if not hasattr(self, name):
                raise ValueError(f"{name_of(type(self))} must keep its argument as self.{name}, to be saved with it")
            arguments[name] = getattr(self, name)
        arguments = {name: value for name, value in arguments.items() if not isinstance(value, Tensor)}
        try:
            saved: SavedObjective = json.loads(json.dumps(arguments))
        except TypeError as error:
            raise ValueError(f"{name_of(type(self))} cannot be saved with the model: {error}") from error
        return {"name": name_of(type(self))} | saved

    # ------------------------------------------------------------------------------------ what samples for it

    def marginal(self, t: float) -> tuple[float, float] | None:
        """(a, b) at the network's timestep `t`: its input there is a x_0 + b noise. Raises ValueError outside of them.

        None: an objective without such times. Its schedulers are not checked.
        """
        return None

    def exact_prediction(self, x_t: Tensor, x_0: Tensor, t: float) -> Tensor:
        """The prediction at the network's input `x_t` if `x_0` were the only image of the data."""
        raise NotImplementedError(
            f"{type(self).__name__} must define exact_prediction(x_t, x_0, t), as it has marginal"
        )

    # ------------------------------------------------------------------------------------------------ the loss

    def loss(self, denoise: Denoise, x_0: Tensor, draws: Draws) -> Tensor:
        """The loss of each image, (B,) float32. It may call the network as often as it needs.

        Args:
            denoise: the network with its condition: `denoise(x_t, t)`, in the precision of the run.
            x_0: (B, C, H, W) in [-1, 1], or scaled latents.
            draws: all that is random. More uniform numbers a row: see `num_uniforms`.
        """
        noised = self.sample(x_0, draws.noise, draws.u)  # float32, whatever the precision of the run
        return noised.loss(denoise(noised.x_t, noised.t))

    def sample(
        self,
        x_0: Tensor,
        noise: Tensor | None = None,
        u: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Noised:
        """Noise a batch at random times.

        Args:
            x_0: (B, C, H, W) in [-1, 1], or scaled latents. Computed in float32 whatever its dtype: in bf16 a
                thousand noise levels collapse to 190.
            noise: (B, C, H, W) standard normal; drawn where None.
            u: (B,) uniform in (0, 1), the quantile of each example's time; drawn where None.
        """
        x_0 = x_0.float()
        if noise is None:
            noise = torch.randn(x_0.shape, generator=generator, device=x_0.device)
        if u is None:
            u = torch.rand(len(x_0), generator=generator, device=x_0.device)
        return self.noised(x_0, noise.float(), u.float())

    def noised(self, x_0: Tensor, noise: Tensor, u: Tensor) -> Noised:
        """Noise `x_0` at the times of quantile `u`."""
        raise NotImplementedError(f"{type(self).__name__} must define noised(x_0, noise, u), or a loss of its own")


def name_of(cls: type[Objective]) -> str:
    """The name in OBJECTIVES, else module:Class."""
    names = [name for name, row in OBJECTIVES.items() if row is cls]
    return names[0] if names else f"{cls.__module__}:{cls.__qualname__}"


def saved_class(saved: SavedObjective) -> type[Objective] | None:
    """The class of a saved objective, of those that are imported: a model's files never import anything."""
    name = str(saved["name"])
    return OBJECTIVES.get(name) or {name_of(cls): cls for cls in _subclasses()}.get(name)


def of_saved(cls: type[Objective], saved: SavedObjective, scheduler: SchedulerMixin) -> Objective:
    """The objective from its saved arguments, and from the scheduler those that are not saved."""
    arguments = {name: value for name, value in saved.items() if name != "name"}
    build: Callable[..., Objective] = cls
    return build(**(cls.scheduler_arguments(scheduler) or {}) | arguments)


def check_scheduler(saved: SavedObjective, scheduler: SchedulerMixin, steps: str = "usual") -> None:
    """Raise ValueError for a scheduler that does not sample for the objective that a model was trained with.

    Its family, prediction and time scale are compared, then what it computes. An objective that is not imported is not
    checked.

    Args:
        steps: which steps it makes, see `scheduler_fit.misfit`.
    """
    cls, family, other = saved_class(saved), _family(scheduler), type(scheduler).__name__
    if cls is None:
        return
    decided = cls.scheduler_arguments(scheduler)
    if family is not None and decided is None:
        raise ValueError(
            f"the model was trained with the objective {saved['name']}, and {other} samples for {name_of(family)}: "
            f"use a scheduler for {saved['name']}, such as the one saved with it"
        )
    for name in _MUST_AGREE:
        if decided is not None and name in saved and name in decided and decided[name] != saved[name]:
            raise ValueError(f"the model was trained with {name} {saved[name]}, and this {other} has {decided[name]}")
    try:
        objective = of_saved(cls, saved, scheduler)
    except TypeError:  # saved before it said what the scheduler must supply, and this scheduler does not
        return
    if why := misfit(objective, scheduler, steps):
        names = ", ".join(SCHEDULER_NAMES)
        raise ValueError(
            f"the model was trained with the objective {saved['name']}; this {other} does not sample for it: {why}. "
            f"Use the scheduler saved with the model, or pipe.use_scheduler(name), one of {names}"
        )


def _family(scheduler: SchedulerMixin) -> type[Objective] | None:
    return next((cls for cls in OBJECTIVES.values() if cls.scheduler_arguments(scheduler) is not None), None)


def _subclasses() -> list[type[Objective]]:
    classes = list(Objective.__subclasses__())
    for cls in classes:  # grows while it is walked
        classes += cls.__subclasses__()
    return classes


def _column(x: Tensor) -> Tensor:
    return x[:, None, None, None]  # (B,) -> (B, 1, 1, 1)


def _normal_quantile(u: Tensor) -> Tensor:
    return torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))
