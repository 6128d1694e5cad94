"""python benchmarks/clipping.py --unet_size s --resolution 32 --train_batch_size 32

What it gains to clip gradients within PyTorch's fused optimizer (`training/clipping.py`) instead of by
`clip_grad_norm_`. Both take turns in one run. The gain is the difference of the median times of an update (clip and
AdamW), as a share of the median step (forward, backward, update). Gradients are always longer than the allowed norm.
"""

import argparse
import json
import time
from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator

from cond_pipelines import build_unet
from cond_pipelines.training import clipping

MAX_NORM = 1e-3


def plain_step(optimizer: object, parameters: list[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
    """As `clipped_step` without private arguments: a step that is not finite is skipped by looking at the norm."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    if norm.isfinite():  # a GPU is waited for
        optimizer.step()
    return norm


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unet_size", default="s")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--train_batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60, help="of each, in turns")
    options = parser.parse_args()
    accelerator = Accelerator()
    device, size, batch = accelerator.device, options.resolution, options.train_batch_size
    torch.set_flush_denormal(True)
    unet = build_unet(options.unet_size, sample_size=size).to(device)
    if device.type == "cpu":
        unet.set_default_attn_processor()
    token_dim, pooled_dim = unet.config.cross_attention_dim, unet.config.projection_class_embeddings_input_dim
    inputs = {
        "encoder_hidden_states": torch.zeros(batch, 1, token_dim, device=device),
        "class_labels": torch.zeros(batch, pooled_dim, device=device),
    }
    parameters = list(unet.parameters())
    optimizer = accelerator.prepare(torch.optim.AdamW(parameters, lr=1e-6, fused=True))
    alone = SimpleNamespace(optimizer=optimizer.optimizer, scaler=None)
    steps = {
        "fused": lambda: clipping.clipped_step(accelerator, alone, parameters, MAX_NORM),
        "plain": lambda: plain_step(optimizer, parameters, MAX_NORM),
    }
    x_t, target = torch.randn(2, batch, 3, size, size, device=device)  # (B, C, H, W) each
    t = torch.rand(batch, device=device) * 1000
    step_sec: list[float] = []
    update_sec: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.steps + 5):
        for name in sorted(steps, reverse=turn % 2 == 1):
            start = time.perf_counter()
            unet(x_t, t, **inputs).sample.sub(target).square().mean().backward()
            optimizer.optimizer.grad_scale = optimizer.optimizer.found_inf = None
            synchronize(device)
            update_start = time.perf_counter()
            steps[name]()
            synchronize(device)
            if turn >= 5:
                update_sec[name].append(time.perf_counter() - update_start)
                step_sec.append(time.perf_counter() - start)
            optimizer.zero_grad()
    update_ms = {name: 1e3 * float(np.median(values)) for name, values in update_sec.items()}
    step_ms = 1e3 * float(np.median(step_sec))
    result = {k: getattr(options, k) for k in ("unet_size", "resolution", "train_batch_size")}
    result |= {"device": str(device), "step_ms": round(step_ms, 2)}
    result |= {f"{name}_update_ms": round(ms, 3) for name, ms in update_ms.items()}
    result["gain_of_a_step"] = round((update_ms["plain"] - update_ms["fused"]) / step_ms, 4)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
