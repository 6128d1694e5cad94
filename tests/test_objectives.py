import math
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from pipelines_common import assert_close, quiet
from torch import nn

from cond_pipelines import Noised, Objective, UnconditionalAdapter, UnconditionalPipeline
from cond_pipelines.objectives import DDPM, EDM, FlowMatching

SHAPE = (2, 3, 8, 8)


def images(scale: float = 1.0) -> torch.Tensor:
    return scale * (torch.rand(SHAPE, generator=torch.Generator().manual_seed(3)) * 2 - 1)


def gaussian(seed: int = 4) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------- what a perfect network answers, from x_t and t
def flow(x_t, t, x_0, scheduler):
    sigma = t / scheduler.config.num_train_timesteps
    return (x_t - x_0) / sigma


def ddpm(x_t, t, x_0, scheduler):
    alpha_bar = torch.from_numpy(
        np.interp(t.double().reshape(-1), np.arange(len(scheduler.alphas_cumprod)), scheduler.alphas_cumprod.double())
    ).reshape(-1, 1, 1, 1)
    kind = scheduler.config.prediction_type
    if kind == "sample":
        return x_0
    noise = (x_t.double() - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
    return (noise if kind == "epsilon" else alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x_0).float()


def edm(x_t, t, x_0, scheduler):
    sigma, sigma_data = (4 * t.double()).exp().reshape(-1, 1, 1, 1), scheduler.config.sigma_data
    total = sigma**2 + sigma_data**2
    x = x_t * total.sqrt()
    network = (x_0 - sigma_data**2 / total * x) * total.sqrt() / (sigma * sigma_data)
    return (network if scheduler.config.prediction_type == "epsilon" else -network).float()


class PerfectPredictor(nn.Module):
    """Stands where the UNet stands: knows the answer for one batch of images."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, answer, x_0, scheduler):
        super().__init__()
        self.answer, self.x_0, self.scheduler = answer, x_0, scheduler
        self.config = SimpleNamespace(sample_size=x_0.shape[2:], in_channels=x_0.shape[1])

    def forward(self, x_t, t, return_dict=True, **told):
        return (self.answer(x_t, torch.as_tensor(t), self.x_0, self.scheduler),)


FAMILIES = {
    "FlowMatchEulerDiscreteScheduler": (flow, [{}, {"shift": 3.0}]),
    "FlowMatchHeunDiscreteScheduler": (flow, [{}]),
    "DDPMScheduler": (
        ddpm,
        [{"prediction_type": kind} for kind in ("epsilon", "v_prediction", "sample")]
        + [{"prediction_type": kind, "timestep_spacing": "trailing"} for kind in ("epsilon", "v_prediction", "sample")]
        + [
            {"prediction_type": "epsilon", "clip_sample": False, "beta_schedule": "squaredcos_cap_v2"},
            {"prediction_type": "epsilon", "clip_sample": False, "thresholding": True},
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        ],
    ),
    "DDIMScheduler": (
        ddpm,
        # "leading" ends at t = 0, "trailing" where an answer still matters
        [
            {"prediction_type": kind, "timestep_spacing": spacing}
            for kind in ("epsilon", "v_prediction", "sample")
            for spacing in ("leading", "trailing")
        ],
    ),
    "EulerDiscreteScheduler": (ddpm, [{"prediction_type": kind} for kind in ("epsilon", "v_prediction")]),
    "DPMSolverMultistepScheduler": (ddpm, [{"prediction_type": kind} for kind in ("epsilon", "v_prediction")]),
    "EDMEulerScheduler": (edm, [{"prediction_type": kind} for kind in ("epsilon", "v_prediction")]),
    "EDMDPMSolverMultistepScheduler": (edm, [{"prediction_type": kind} for kind in ("epsilon", "v_prediction")]),
}
CASES = [
    pytest.param(name, answer, config, id=f"{name}-{'-'.join(f'{v}' for v in config.values())}")
    for name, (answer, configs) in FAMILIES.items()
    for config in configs
]


def saved_scheduler(name, config, path):
    getattr(diffusers, name)(**config).save_pretrained(path)
    return getattr(diffusers, name).from_pretrained(path)


def sampled(scheduler, answer, x_0, num_inference_steps=5):
    adapter = UnconditionalAdapter(pooled_dim=4)
    pipe = quiet(UnconditionalPipeline(PerfectPredictor(answer, x_0, scheduler), scheduler, adapter))
    generator = [torch.Generator().manual_seed(i) for i in range(len(x_0))]
    steps = {"num_inference_steps": num_inference_steps, "output_type": "latent"}
    return pipe(batch_size=len(x_0), generator=generator, **steps).images


# ---------------------------------------------------------------------------------------- training and sampling
class TestPerfectPredictor:
    @pytest.mark.parametrize(("name", "answer", "config"), CASES)
    def test_its_samples_are_x_0(self, name, answer, config, tmp_path):
        scheduler = saved_scheduler(name, config, tmp_path)
        for num_inference_steps in (1, 5):  # diffusers' DDIM ends short of x_0 where they don't divide its 1000
            if "Heun" in name and num_inference_steps == 1:
                continue  # diffusers' Heun needs two
            # These start at x_0 + sigma * noise with sigma = 80 or 157: float32 keeps so much of x_0.
            has_large_sigmas = name.startswith(("Euler", "DPM", "EDM")) or "trailing" in config.values()
            atol = 2e-4 if has_large_sigmas else 2e-5
            assert_close(sampled(scheduler, answer, images(), num_inference_steps), images(), atol)

    @pytest.mark.parametrize(("name", "answer", "config"), CASES)
    def test_it_minimises_the_loss(self, name, answer, config, tmp_path):
        """What it answers is the objective's target, at every time: so training leads to the sampler's network."""
        scheduler = saved_scheduler(name, config, tmp_path)
        objective = Objective.from_scheduler(scheduler)
        for u in (0.003, 0.2, 0.5, 0.8, 0.997):
            noised = objective.sample(images(), gaussian(), torch.full((2,), u))
            answers = answer(noised.x_t, noised.t.reshape(-1, 1, 1, 1), images(), scheduler)
            assert_close(answers, noised.target, atol=2e-3 if answer is ddpm else 1e-4)
            assert noised.loss(answers).max() < 1e-6 < noised.loss(answers + 0.1).min()

    @pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
    @pytest.mark.parametrize("shift", [1.0, 3.0])
    def test_flow_sigmas_of_the_multistep_solvers(self, name, shift, tmp_path):
        config = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
        scheduler = saved_scheduler(name, config, tmp_path)
        assert isinstance(Objective.from_scheduler(scheduler), FlowMatching)
        noise = torch.cat([torch.randn(1, *SHAPE[1:], generator=torch.Generator().manual_seed(i)) for i in range(2)])
        for steps in (2, 8):
            line = sampled(scheduler, lambda x_t, t, x_0, scheduler: noise - x_0, images(), steps)
            # These solvers start at sigma = 0.999, and not on the line's very end.
            assert_close(line, images(), atol=5e-3)
            # They also round the timestep that they tell the network, to a whole thousandth.
            assert_close(sampled(scheduler, flow, images(), steps), images(), atol=2e-2)

    def test_clip_sample_is_for_pixels(self, tmp_path):
        """Latents leave [-1, 1]: DDPM's default clips them, and the saved `clip_sample=False` does not."""
        x_0 = images(scale=3.0)
        assert_close(sampled(saved_scheduler("DDPMScheduler", {}, tmp_path), ddpm, x_0), x_0.clamp(-1, 1), atol=2e-5)
        free = saved_scheduler("DDPMScheduler", {"clip_sample": False}, tmp_path)
        assert_close(sampled(free, ddpm, x_0), x_0, atol=5e-5)

    def test_the_wrong_objective_is_noticed(self, tmp_path):
        """So that the tests above compare something: epsilon's answers through a v_prediction scheduler."""
        config = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
        scheduler = saved_scheduler("DDIMScheduler", config, tmp_path)
        other = diffusers.DDIMScheduler(prediction_type="epsilon")
        wrong = sampled(scheduler, lambda x_t, t, x_0, _: ddpm(x_t, t, x_0, other), images())
        assert (wrong - images()).abs().max() > 0.1


class TestSchedulersSteps:
    """x_t, t and the target of training through one step of the scheduler."""

    @pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
    @pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
    def test_ddpm(self, name, prediction_type):
        scheduler = getattr(diffusers, name)(prediction_type=prediction_type)
        noised = Objective.from_scheduler(scheduler).sample(images(), gaussian(), torch.tensor([0.3, 0.7]))
        assert noised.t.tolist() == [300, 700]
        assert_close(noised.x_t, scheduler.add_noise(images(), gaussian(), noised.t), atol=1e-6)
        if prediction_type == "v_prediction":
            assert_close(noised.target, scheduler.get_velocity(images(), gaussian(), noised.t), atol=1e-6)
        scheduler.set_timesteps(1000)
        for i in range(2):
            step = scheduler.step(noised.target[i], noised.t[i], noised.x_t[i])
            assert_close(step.pred_original_sample, images()[i], atol=1e-4)

    @pytest.mark.parametrize("sigma", [0.1, 0.5, 0.9])
    def test_flow_matching(self, sigma):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        u = torch.special.ndtr(torch.tensor(sigma).logit()).expand(2)  # the quantile of this sigma
        noised = Objective.from_scheduler(scheduler).sample(images(), gaussian(), u)
        assert_close(noised.t, [1000 * sigma] * 2, atol=1e-2)
        scheduler.set_timesteps(sigmas=[sigma])
        step = scheduler.step(noised.target, scheduler.timesteps[0], noised.x_t, return_dict=False)[0]
        assert_close(step, images(), atol=1e-5)

    @pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
    @pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
    def test_edm(self, name, prediction_type):
        scheduler = getattr(diffusers, name)(prediction_type=prediction_type, sigma_data=0.7)
        scheduler.set_timesteps(6)
        objective = Objective.from_scheduler(scheduler)
        for i in (1, 2, 3):
            sigma = scheduler.sigmas[i]
            u = torch.special.ndtr((sigma.log() - objective.P_mean) / objective.P_std).expand(2)
            if not 1e-6 < u[0] < 1 - 1e-6:
                continue
            noised = objective.sample(images(), gaussian(), u)
            x = images() + sigma * gaussian()
            assert_close(noised.t, scheduler.timesteps[i].expand(2), atol=1e-3)
            assert_close(noised.x_t, scheduler.precondition_inputs(x, sigma), atol=1e-3)
            assert_close(
                scheduler.precondition_outputs(x, noised.target, sigma), images(), atol=2e-3 * sigma.item() + 1e-4
            )


# ---------------------------------------------------------------------------------------------- which objective
class TestFromScheduler:
    @pytest.mark.parametrize(("name", "answer", "config"), CASES)
    def test_family(self, name, answer, config):
        found = Objective.from_scheduler(getattr(diffusers, name)(**config))
        assert type(found) is {flow: FlowMatching, ddpm: DDPM, edm: EDM}[answer]
        if answer is ddpm:
            assert found.prediction_type == config["prediction_type"]

    def test_the_schedulers_numbers_are_used(self):
        flow_matching = Objective.from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=500))
        assert flow_matching.sample(images()).t.max() <= 500 == flow_matching.num_train_timesteps
        scheduler = diffusers.EDMEulerScheduler(sigma_data=0.25, sigma_min=0.01, sigma_max=10.0)
        edm = Objective.from_scheduler(scheduler)
        assert (edm.sigma_data, edm.sigma_min, edm.sigma_max) == (0.25, 0.01, 10.0)
        scheduler = diffusers.DDPMScheduler(num_train_timesteps=50, beta_schedule="scaled_linear")
        assert torch.equal(Objective.from_scheduler(scheduler).alphas_cumprod, scheduler.alphas_cumprod)

    def test_arguments_of_the_objective(self):
        assert Objective.from_scheduler(diffusers.DDPMScheduler(), snr_gamma=5.0).snr_gamma == 5.0
        assert Objective.from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(), logit_mean=0.5).logit_mean == 0.5
        assert Objective.from_scheduler(diffusers.EDMEulerScheduler(), P_mean=-0.4).P_mean == -0.4

    def test_unknown_scheduler(self):
        with pytest.raises(ValueError, match="no objective for CMStochasticIterativeScheduler: use a flow-matching"):
            Objective.from_scheduler(diffusers.CMStochasticIterativeScheduler())

    def test_unknown_prediction_type(self):
        with pytest.raises(ValueError, match="prediction_type 'noise' is not one of epsilon, v_prediction, sample"):
            Objective.from_scheduler(diffusers.DDPMScheduler(prediction_type="noise"))
        with pytest.raises(ValueError, match="prediction_type 'sample' is not one of epsilon, v_prediction for EDM"):
            Objective.from_scheduler(diffusers.EDMEulerScheduler(prediction_type="sample"))


# --------------------------------------------------------------------------------------------------- the losses
ALL = {
    "flow": FlowMatching(),
    **{kind: DDPM(diffusers.DDPMScheduler().alphas_cumprod, kind) for kind in ("epsilon", "v_prediction", "sample")},
    "edm": EDM(),
    "edm-v": EDM(prediction_type="v_prediction"),
}


@pytest.mark.parametrize("objective", ALL.values(), ids=ALL)
class TestEveryObjective:
    def test_shapes(self, objective):
        noised = objective.sample(images())
        assert noised.x_t.shape == noised.target.shape == SHAPE
        assert noised.t.shape == noised.weight.shape == noised.loss(noised.target).shape == (2,)
        assert not noised.loss(noised.target).any()

    def test_a_generator_makes_it_repeatable(self, objective):
        a, b, c = (objective.sample(images(), generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(a.x_t, b.x_t) and torch.equal(a.t, b.t) and torch.equal(a.target, b.target)
        assert not torch.equal(a.x_t, c.x_t)

    def test_half_precision_images_are_noised_in_float32(self, objective):
        x_0, noise, u = images().bfloat16(), gaussian().bfloat16(), torch.tensor([0.4, 0.6])
        noised, exact = objective.sample(x_0, noise, u), objective.sample(x_0.float(), noise.float(), u)
        for half, full in zip(vars(noised).values(), vars(exact).values(), strict=True):
            assert torch.equal(half, full) and half.dtype in (torch.float32, torch.int64)
        assert noised.loss(noised.target.bfloat16()).dtype == torch.float32

    def test_noise_levels_do_not_collapse(self, objective):
        """In bf16 a thousand of them are 190."""
        x_0 = torch.full((1000, 1, 1, 1), 0.5, dtype=torch.bfloat16)
        noised = objective.sample(x_0, torch.ones_like(x_0), (torch.arange(1000) + 0.5) / 1000)
        assert len(noised.x_t.unique()) > 990 and torch.isfinite(noised.target).all()

    def test_examples_do_not_mix(self, objective):
        noised = objective.sample(images(), gaussian(), torch.tensor([0.2, 0.9]))
        alone = objective.sample(images()[1:], gaussian()[1:], torch.tensor([0.9]))
        assert torch.equal(noised.x_t[1:], alone.x_t) and torch.equal(noised.target[1:], alone.target)

    def test_the_ends_of_time_are_finite(self, objective):
        for u in (0.0, 1.0):
            noised = objective.sample(images(), gaussian(), torch.full((2,), u))
            assert all(torch.isfinite(x).all() for x in vars(noised).values())


def test_loss_is_the_weighted_mean_square():
    target, weight = gaussian(), torch.tensor([2.0, 0.5])
    noised = Noised(x_t=target, t=weight, target=target, weight=weight)
    assert_close(noised.loss(target + 0.3), 0.09 * weight, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ min-SNR
class TestMinSNR:
    alphas_cumprod = torch.tensor([0.999, 0.9, 0.5, 0.1, 0.0])  # SNR 999, 9, 1, 1/9, 0
    u = (torch.arange(5) + 0.5) / 5

    def noised(self, kind, snr_gamma=5.0):
        x_0, noise = (torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(2))
        return DDPM(self.alphas_cumprod, kind, snr_gamma).sample(x_0, noise, self.u), x_0

    def test_closed_form(self):
        assert_close(self.noised("epsilon")[0].weight, [5 / 999, 5 / 9, 1, 1, 1], atol=1e-5)
        assert_close(self.noised("v_prediction")[0].weight, [5 / 1000, 5 / 10, 1 / 2, 1 / 10, 0], atol=1e-5)
        assert_close(self.noised("sample")[0].weight, [5, 5, 1, 1 / 9, 0], atol=1e-5)

    def test_off_by_default(self):
        assert DDPM(self.alphas_cumprod).sample(images()).weight.tolist() == [1, 1]

    @pytest.mark.parametrize("snr_gamma", [1.0, 5.0, None])
    def test_all_predictions_measure_the_same_error_of_x_0(self, snr_gamma):
        """One guess of x_0, told as noise, as velocity or as itself, costs the same under min-SNR."""
        (_, x_0), guess_error = self.noised("sample"), torch.randn(5, 3, 4, 4) * 0.1
        alpha_bar = self.alphas_cumprod.reshape(-1, 1, 1, 1)
        losses = {}
        for kind in ("epsilon", "v_prediction", "sample"):
            noised, _ = self.noised(kind, snr_gamma)
            guess = x_0 + guess_error
            noise = (noised.x_t - alpha_bar.sqrt() * guess) / (1 - alpha_bar).sqrt()
            velocity = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * guess
            losses[kind] = noised.loss({"epsilon": noise, "v_prediction": velocity, "sample": guess}[kind])
        snr = self.alphas_cumprod / (1 - self.alphas_cumprod)
        factor = {"epsilon": 1, "v_prediction": 1, "sample": 1}
        if snr_gamma is None:
            factor = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}
        for kind, loss in losses.items():
            torch.testing.assert_close(loss, losses["sample"] * factor[kind], rtol=2e-3, atol=1e-7)


# ------------------------------------------------------------------------------------------- when it is trained
class TestTimes:
    u = (torch.arange(1000) + 0.5) / 1000
    x_0 = torch.zeros(1000, 1, 1, 1)

    def times(self, objective):
        return objective.sample(self.x_0, torch.ones_like(self.x_0), self.u).t

    @pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.7)])
    def test_flow_matching_is_logit_normal(self, mean, std):
        sigma = self.times(FlowMatching(1000, mean, std)).double() / 1000
        logit = sigma.logit()
        assert_close([logit.mean(), logit.std()], [mean, std], atol=5e-3)
        one_above, median = torch.special.ndtr(torch.tensor(1.0)), torch.tensor(0.5)
        for quantile, expected in ((median, mean), (one_above, mean + std), (1 - one_above, mean - std)):
            assert_close(sigma.quantile(quantile.double()), 1 / (1 + math.exp(-expected)), atol=2e-3)

    def test_edm_is_log_normal(self):
        log_sigma = 4 * self.times(EDM()).double()  # t = ln(sigma) / 4
        assert_close([log_sigma.mean(), log_sigma.std()], [-1.2, 1.2], atol=5e-3)
        assert_close(log_sigma.quantile(0.8413447), 0.0, atol=5e-3)

    def test_edm_stays_in_the_schedulers_range(self):
        sigma = (4 * self.times(EDM(sigma_min=0.1, sigma_max=1.0))).exp()
        assert_close([sigma.min(), sigma.max()], [0.1, 1.0])

    def test_ddpm_is_uniform(self):
        objective = DDPM(diffusers.DDPMScheduler(num_train_timesteps=250).alphas_cumprod)
        assert torch.equal(self.times(objective).bincount(), torch.full((250,), 4))

    def test_drawn_times_are_those_of_u(self):
        drawn = FlowMatching().sample(torch.zeros(4000, 1, 1, 1), generator=torch.Generator().manual_seed(0)).t / 1000
        assert_close(drawn.median(), 0.5, atol=0.02)
        assert_close(drawn.quantile(0.8413447), 1 / (1 + math.exp(-1)), atol=0.02)
