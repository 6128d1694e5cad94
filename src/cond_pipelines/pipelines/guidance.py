"""Guidance: which predictions a step needs, and how they become one.

    branches(cond, null) -> [(network or None, condition), ...] --network--> predictions --combine--> prediction

A guidance of your own is a subclass of `Guidance`, passed to a call: `pipe(..., guidance=MyGuidance(...))`.

This file is self-contained on purpose: it travels with a checkpoint.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers.guiders.guider_utils import BaseGuidance
    from diffusers.modular_pipelines.modular_pipeline import BlockState

    from cond_pipelines.adapters.base import Conditioning

Branch = tuple[nn.Module | None, "Conditioning"]
Predict = Callable[[nn.Module | None, "Conditioning"], Tensor]  # None: the pipeline's network


@dataclass(frozen=True)
class Step:
    """A step of sampling: the `index`-th of `num_steps`, from 0, at the scheduler's timestep `t`."""

    index: int
    num_steps: int
    t: Tensor


class Guidance:
    """The contract, and no guidance: one prediction, under the condition.

    Example:
        >>> class AutoGuidance(Guidance):  # Karras et al. 2024, arXiv 2406.02507, Eq. 3
        ...     def __init__(self, weaker: nn.Module, scale: float):
        ...         self.weaker, self.scale = weaker, scale
        ...
        ...     def branches(self, cond, null):
        ...         return [(self.weaker, cond), (None, cond)]
        ...
        ...     def combine(self, predictions, step):
        ...         weak, main = predictions
        ...         return weak + self.scale * (main - weak)
        >>> pipe(["cat"], guidance=AutoGuidance(earlier_unet, 1.5)).images[0]
    """

    def is_active(self, step: Step) -> bool:
        """False where this step makes one prediction only: the pipeline's network under the condition."""
        return True

    def branches(self, cond: "Conditioning", null: "Conditioning") -> list[Branch]:
        """What is predicted: pairs of a network (None: the pipeline's) and a condition. The last is the main one."""
        return [(None, cond)]

    def combine(self, predictions: list[Tensor], step: Step) -> Tensor:
        """One prediction for each branch, each (B, C, h, w), to the guided one (B, C, h, w)."""
        return predictions[-1]

    def guided(
        self, cond: "Conditioning", null: "Conditioning", step: Step, predict: "Predict", network: nn.Module
    ) -> Tensor:
        """The guided prediction of a step, (B, C, h, w): `branches`, one call for each network, `combine`.

        Override it where a branch changes the pipeline's `network` while it runs, as `Guider` does.
        """
        return self.combine(predictions_of(self.branches(cond, null), predict), step)


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598)."""

    scale: float | Tensor  # one, or (B, 1, 1, 1)

    def branches(self, cond: "Conditioning", null: "Conditioning") -> list[Branch]:
        return [(None, null), (None, cond)]

    def combine(self, predictions: list[Tensor], step: Step) -> Tensor:
        without, under = predictions
        scale = self.scale.to(under) if isinstance(self.scale, Tensor) else self.scale
        return without + scale * (under - without)  # Eq. 6, with scale = 1 + w


@dataclass(frozen=True)
class Nested(Guidance):
    """A scale for each of several conditions (after Brooks et al. 2023, arXiv 2211.09800, Eq. 3); see CompositeAdapter.

    Args:
        scales: one for each condition, in the order of the composite's parts.
    """

    scales: tuple[float, ...]

    @classmethod
    def by_name(cls, scales: dict[str, float], cond: "Conditioning") -> "Nested":
        """From scales by the names of the conditions of `cond`; 1 for those not named.

        Raises:
            ValueError: the conditions have no names, or not such a one.
        """
        parts = getattr(cond, "parts", None)
        if parts is None:
            raise ValueError(f"guidance_scale {scales} needs conditions with names (a CompositeAdapter)")
        if unknown := set(scales) - set(parts):
            raise ValueError(f"guidance_scale names {sorted(unknown)}, and the conditions are {list(parts)}")
        return cls(tuple(float(scales.get(name, 1.0)) for name in parts))

    @property
    def ends(self) -> list[int]:
        """After which conditions a prediction is made: equal scales in a row are one difference."""
        last = len(self.scales) - 1
        return [i for i in range(last + 1) if i == last or self.scales[i] != self.scales[i + 1]]

    def branches(self, cond: "Conditioning", null: "Conditioning") -> list[Branch]:
        branches: list[Branch] = [(None, null)]
        for end in self.ends[:-1]:
            first = torch.arange(len(self.scales), device=cond.device) <= end  # (K,)
            branches.append((None, cond.where(first.expand(len(cond), -1), null)))
        return [*branches, (None, cond)]

    def combine(self, predictions: list[Tensor], step: Step) -> Tensor:
        # e(0) + s_1 (e(c_1) - e(0)) + s_2 (e(c_1, c_2) - e(c_1)) + ...
        guided = predictions[0]
        for end, before, after in zip(self.ends, predictions[:-1], predictions[1:], strict=True):
            guided = guided + self.scales[end] * (after - before)
        return guided


@dataclass(frozen=True)
class Interval(Guidance):
    """Another guidance, in the steps from `start` to `stop` only (Kynkaanniemi et al. 2024, arXiv 2404.07724).

    Args:
        start, stop: fractions of the steps, 0 to 1.
    """

    inner: Guidance
    start: float
    stop: float

    def is_active(self, step: Step) -> bool:
        return self.start <= step.index / step.num_steps < self.stop and self.inner.is_active(step)

    def branches(self, cond: "Conditioning", null: "Conditioning") -> list[Branch]:
        return self.inner.branches(cond, null)

    def combine(self, predictions: list[Tensor], step: Step) -> Tensor:
        return self.inner.combine(predictions, step)


@dataclass(frozen=True)
class Rescale(Guidance):
    """Another guidance, its prediction given the main one's standard deviation (Lin et al. 2023, arXiv 2305.08891).

    Args:
        share: 0 (none) to 1 (all of it).
    """

    inner: Guidance
    share: float

    def is_active(self, step: Step) -> bool:
        return self.inner.is_active(step)

    def branches(self, cond: "Conditioning", null: "Conditioning") -> list[Branch]:
        return self.inner.branches(cond, null)

    def combine(self, predictions: list[Tensor], step: Step) -> Tensor:
        return rescale_guided(self.inner.combine(predictions, step), predictions[-1], self.share)


@dataclass(frozen=True)
class Guider(Guidance):
    """One of diffusers' guiders, such as AdaptiveProjectedGuidance, SkipLayerGuidance or ClassifierFreeGuidance.

    Args:
        guider: its scale, interval and rescale are its own.
    """

    guider: "BaseGuidance"

    def guided(
        self, cond: "Conditioning", null: "Conditioning", step: Step, predict: Predict, network: nn.Module
    ) -> Tensor:
        guider = self.guider
        guider.set_state(step=step.index, num_inference_steps=step.num_steps, timestep=step.t)
        with self._refusing(network):
            batches = guider.prepare_inputs({"condition": (cond, null)})
        for batch in batches:  # of two, diffusers 0.42 takes the second for the one without a condition
            batch.condition = null if "uncond" in getattr(batch, guider._identifier_key) else cond
        if not _changes_network(guider):
            # Together, the condition last, as `ClassifierFree` does: one row is rounded unlike two.
            predictions = predictions_of([(None, batch.condition) for batch in reversed(batches)], predict)
            for batch, prediction in zip(batches, reversed(predictions), strict=True):
                guider.prepare_models(network)
                batch.noise_pred = prediction
        else:
            for batch in batches:
                self._change(network, batch)
                try:
                    batch.noise_pred = predict(None, batch.condition)
                finally:
                    guider.cleanup_models(network)
        with self._refusing(network):
            try:
                return guider(batches)[0]
            except RuntimeError:  # MagnitudeAwareGuidance takes norms over at most two dimensions
                shape = batches[0].noise_pred.shape
                for batch in batches:
                    batch.noise_pred = batch.noise_pred.flatten(1)  # (B, C h w)
                return guider(batches)[0].view(shape)

    def _change(self, network: nn.Module, batch: "BlockState") -> None:
        """Change the network for one branch, as the guider does.

        A guider knows a branch by how many it has prepared. That is wrong of a branch that comes second where guidance
        by the condition is off, so the number is set to that of the branch.
        """
        guider = self.guider
        number = guider._input_predictions.index(getattr(batch, guider._identifier_key))
        with self._refusing(network):
            guider._count_prepared = number
            guider.prepare_models(network)
            if guider._count_prepared == number:  # SmoothedEnergyGuidance of diffusers 0.42 does not count
                guider._count_prepared = number + 1
                guider.prepare_models(network)

    @contextlib.contextmanager
    def _refusing(self, network: nn.Module) -> Iterator[None]:
        """An error of the guider's own, in one line with the names that it may need."""
        try:
            yield
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            stacks = [name for name, module in network.named_modules() if isinstance(module, nn.ModuleList)]
            stacks = [name for name in stacks if name.endswith("transformer_blocks")]
            why = " ".join(str(error).split())[:200].rstrip(".")
            raise ValueError(
                f"{type(self.guider).__name__} does not fit this model: {why}. The stacks of blocks in its network "
                f"are {', '.join(stacks) or 'none'}"
            ) from error


def _changes_network(guider: "BaseGuidance") -> bool:
    """Whether a branch runs a changed network: such a guider undoes the change in a `cleanup_models` of its own."""
    return any("cleanup_models" in vars(cls) for cls in type(guider).__mro__ if cls.__name__ != "BaseGuidance")


@dataclass(frozen=True)
class Between(Guidance):
    """Classifier-free guidance towards a mixture of the two conditions of a call, the negative one and the condition.

    Args:
        weights: (B,) 0 to 1: of the condition; the rest is of the negative one.
        scale: of the guidance.
        no_condition: (B rows) the null condition, from which the guidance leads away.
    """

    weights: Tensor
    scale: float
    no_condition: "Conditioning"

    def branches(self, cond: "Conditioning", null: "Conditioning") -> list[Branch]:
        return [(None, self.no_condition), (None, null), (None, cond)]

    def combine(self, predictions: list[Tensor], step: Step) -> Tensor:
        without, first, second = predictions
        weights = self.weights.to(first)[:, None, None, None]  # (B, 1, 1, 1)
        return without + self.scale * (torch.lerp(first, second, weights) - without)


def rescale_guided(noise_pred: Tensor, noise_pred_cond: Tensor, guidance_rescale: float) -> Tensor:
    """Give the guided prediction the standard deviation of the conditional one (Lin et al. 2023, arXiv 2305.08891)."""
    dims = list(range(1, noise_pred.ndim))
    ratio = noise_pred_cond.std(dim=dims, keepdim=True) / noise_pred.std(dim=dims, keepdim=True)  # Eq. 15
    return guidance_rescale * (noise_pred * ratio) + (1 - guidance_rescale) * noise_pred  # Eq. 16


def guidance_of_scale(scale: float | list[float] | dict[str, float], cond: "Conditioning") -> Guidance:
    """Classifier-free guidance of one scale or of one an image, or nested guidance of scales by name.

    Raises:
        ValueError: a name that the conditions do not have, or another number of scales than of images.
    """
    if isinstance(scale, dict):
        return Nested.by_name(scale, cond)
    if not isinstance(scale, list):
        return ClassifierFree(scale)
    if len(scale) != len(cond):
        raise ValueError(f"guidance_scale has {len(scale)} entries for {len(cond)} images: pass one, or one per image")
    return ClassifierFree(torch.tensor(scale, device=cond.device)[:, None, None, None])  # (B, 1, 1, 1)


def with_options(guidance: Guidance, interval: tuple[float, float], rescale: float) -> Guidance:
    """`guidance`, rescaled where `rescale` is above 0, in an interval of the steps."""
    return Interval(Rescale(guidance, rescale) if rescale > 0 else guidance, *interval)


def predictions_of(branches: list[Branch], predict: Predict) -> list[Tensor]:
    """The prediction of each branch, in order; one call of `predict` for each network, with its branches as a batch."""
    predictions: dict[int, Tensor] = {}
    for network in dict.fromkeys(network for network, _ in branches):
        mine = [i for i, (other, _) in enumerate(branches) if other is network]
        joined = reduce(lambda a, b: a.cat(b), [branches[i][1] for i in mine])
        predictions |= zip(mine, predict(network, joined).chunk(len(mine)), strict=True)
    return [predictions[i] for i in range(len(branches))]
