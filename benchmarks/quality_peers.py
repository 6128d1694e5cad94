"""The others: their networks, losses, schedules and samplers, as their documents have them, on the same images.

Both get bfloat16, as our defaults do on a CPU that has it, and draw in 100 and 50 steps, in this order, not 1,000.
"""

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

BATCH, SAMPLING_STEPS = 16, 100  # 16 is what both use
GUIDED_STEPS = 50  # of denoising-diffusion-pytorch, which calls its network twice a step
Sampler = Callable[[Tensor], Tensor]  # (N,) classes to (N, C, h, w) in [-1, 1]


def batches(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch, shuffled; both flip no images here: digits and arrows must not be."""
    while True:
        for index in torch.randperm(len(x)).split(BATCH):
            yield x[index], y[index]


def until(minutes: float, clock: Callable[[], float]) -> Iterator[float]:
    """The fraction of the minutes that is over, at each step."""
    start = clock()
    while (done := (clock() - start) / (60 * minutes)) < 1:
        yield done


def train_unconditional(
    x: Tensor, y: Tensor, minutes: float, clock: Callable[[], float], precision: torch.dtype | None
) -> tuple[Sampler, int, int]:
    """The semantics of diffusers' examples/unconditional_image_generation/train_unconditional.py, with a class.

    Its AdamW (1e-4, betas .95 and .999, decay 1e-6), cosine schedule with 500 warm-up steps, EMA and DDPM of 1,000
    linear steps; a UNet2DModel of about our size, and the class through its class embedding.
    """
    side, num_classes = x.shape[-1], int(y.max()) + 1
    net = UNet2DModel(
        sample_size=side,
        in_channels=x.shape[1],
        out_channels=x.shape[1],
        layers_per_block=1,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        num_class_embeds=num_classes,
    )
    noise_scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    ema = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    # Its cosine needs the number of steps; here the clock gives the fraction, so the shape is the same.
    schedule = get_scheduler(
        "cosine", torch.optim.SGD([torch.zeros(1)], 1.0), num_warmup_steps=0, num_training_steps=10_000
    )
    cosine = schedule.lr_lambdas[0]
    data, num_steps = batches(x, y), 0
    for done in until(minutes, clock):
        images, classes = next(data)
        noise = torch.randn_like(images)
        t = torch.randint(0, 1000, (len(images),))
        with torch.autocast("cpu", precision, enabled=precision is not None):
            output = net(noise_scheduler.add_noise(images, noise, t), t, class_labels=classes).sample
        F.mse_loss(output.float(), noise).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-4 * min(1.0, (num_steps + 1) / 500) * cosine(int(done * 10_000))
        optimizer.step()
        optimizer.zero_grad()
        ema.step(net.parameters())
        num_steps += 1
    ema.copy_to(net.parameters())

    @torch.no_grad()
    def sample(classes: Tensor) -> Tensor:
        scheduler = DDIMScheduler.from_config(noise_scheduler.config)
        scheduler.set_timesteps(SAMPLING_STEPS)
        z = torch.randn(len(classes), *x.shape[1:])
        for t in scheduler.timesteps:
            with torch.autocast("cpu", precision, enabled=precision is not None):
                output = net(z, t, class_labels=classes).sample
            z = scheduler.step(output.float(), t, z).prev_sample
        return z

    return sample, num_steps, sum(p.numel() for p in net.parameters())


def _classifier_free_guidance(pypi: Path) -> ModuleType:
    """denoising_diffusion_pytorch's module of that name; its package imports torchvision, this file does not."""
    sys.path.append(str(pypi))  # einops
    file = pypi / "denoising_diffusion_pytorch/classifier_free_guidance.py"
    spec = importlib.util.spec_from_file_location("classifier_free_guidance", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def denoising_diffusion_pytorch(
    x: Tensor, y: Tensor, minutes: float, clock: Callable[[], float], precision: torch.dtype | None, pypi: Path
) -> tuple[Sampler, int, int]:
    """lucidrains' denoising-diffusion-pytorch: its class-conditional Unet, GaussianDiffusion, and Trainer's settings.

    Adam at 1e-4 (betas .9 and .99), an EMA of .995 every ten steps, guidance 3 of its example.
    """
    module = _classifier_free_guidance(pypi)
    net = module.Unet(dim=24, dim_mults=(1, 2, 4), num_classes=int(y.max()) + 1, channels=x.shape[1])
    diffusion = module.GaussianDiffusion(net, image_size=x.shape[-1], timesteps=1000, sampling_timesteps=GUIDED_STEPS)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, betas=(0.9, 0.99))
    average = [p.detach().clone() for p in net.parameters()]
    data, num_steps = batches(x, y), 0
    for _ in until(minutes, clock):
        images, classes = next(data)
        with torch.autocast("cpu", precision, enabled=precision is not None):
            loss = diffusion((images + 1) / 2, classes=classes)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        num_steps += 1
        if num_steps % 10 == 0:
            # ema-pytorch copies the weights until step 100, and raises the decay to its highest from there.
            age = max(0, num_steps - 100 - 1)
            decay = min(0.995, 1 - (1 + age) ** (-2 / 3)) if age else 0.0
            torch._foreach_lerp_(average, list(net.parameters()), 1 - decay)
    for p, value in zip(net.parameters(), average, strict=True):
        p.data.copy_(value)
    net.eval()

    @torch.no_grad()
    def sample(classes: Tensor) -> Tensor:
        with torch.autocast("cpu", precision, enabled=precision is not None):
            images: Tensor = diffusion.sample(classes=classes, cond_scale=3.0)
        return images.float() * 2 - 1

    return sample, num_steps, sum(p.numel() for p in net.parameters())


def cpu_clock() -> float:
    """CPU seconds of this process over its threads: on a busy machine, the time that an idle one would take."""
    return time.process_time() / torch.get_num_threads()


def levels(images: Tensor) -> Tensor:
    """(N, C, h, w) in [-1, 1] to uint8."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
