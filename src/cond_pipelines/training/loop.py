"""train(config) -> folder: one loop for the three settings.

dataset -> image -> (vae) -> x_0 -> objective.sample -> Noised ------------------------------+
        -> condition -> preprocess -> encode -> adapter -> cond.where(keep, null_like(cond)) -+-> unet -> weighted MSE
"""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, set_seed
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import get_scheduler

from ..conditional_pipeline import ConditionalPipeline, vae_scale_factor
from ..data.batches import draw_noise, make_loader
from ..data.workers import signals_held
from .caching import cache_latents, cache_text, x_0_of
from .checkpoints import Progress, load_checkpoint, save_checkpoint
from .conditions import ConditionEncoder
from .config import TrainingConfig
from .defaults import default_tracker, fast_precision, fill_defaults
from .ema import NUM_SNAPSHOTS, WeightAverage, decay_of, power_function, save_snapshot
from .evaluating import Evaluator
from .interruptions import Interrupted, StoppedAtOnce, StopSignal, clipped_step, one_line_failures, writable_folder
from .log import TrainingLog
from .lora import how_to_load, save_model
from .optimizers import build_optimizer, check_packages, count_trained, make_trainable, parameter_groups, trainable
from .pushing import HubPush
from .setup import (
    TrainingData,
    build_objective,
    build_pipeline,
    image_channels,
    load_data,
    load_parent,
    load_vae,
    run_identity,
)
from .sharding import RunAccelerator, how_sharded, prepare, run_state, whole_pipeline
from .summary import NUM_SAMPLES, write_summary
from .validation import ema_weights, grid_conditions, held_out_loss, labelled_grid, sample_images


class _Told(nn.Module):
    """UNet and adapter (and a trained text encoder) as one module, so that gradient sync covers all of them."""

    def __init__(self, pipe: ConditionalPipeline, trained: list[nn.Module]):
        super().__init__()
        self.unet, self.adapter = pipe.unet, pipe.adapter
        encoder = pipe.components.get("text_encoder")
        self.text_encoder = encoder if encoder in trained else None

    def forward(self, x_t: Tensor, t: Tensor, features: dict[str, Tensor], keep: Tensor) -> Tensor:
        if self.text_encoder is not None:
            features = self.adapter.encode(features, self.text_encoder)
        cond = self.adapter(features)
        cond = cond.where(keep, self.adapter.null_like(cond))  # condition dropout, per example
        return self.unet(x_t, t, **cond.unet_kwargs(self.unet)).sample  # (B, C, h, w)


def train(config: TrainingConfig) -> Path:
    """Train a model of any of the three settings.

    Args:
        config: see TrainingConfig. What it leaves open is chosen, printed and saved.

    Returns:
        `config.output_dir`: a complete pipeline, training_config.yaml, samples.png, loss.png and log.jsonl.

    Raises:
        ValueError: arguments or data that cannot be used, in one line, before the first step.

    Example:
        >>> folder = train(TrainingConfig(conditioning="class", train_data_dir="flowers", resolution=32))
        >>> ConditionalPipeline.from_pretrained(folder)("rose").images[0]
    """
    with StopSignal() as stop:
        return _train(config, stop)


def _train(config: TrainingConfig, stop: StopSignal) -> Path:
    output_dir = writable_folder(config.output_dir)
    accelerator = _accelerator(config, output_dir)
    set_seed(config.seed)
    check_packages(config)
    parent = load_parent(config)
    vae = load_vae(config, parent)
    with accelerator.main_process_first():  # one process prepares what the others read
        data = load_data(config, image_channels(config, parent, vae))
    decided = {"resolution": data.dataset.resolution, "channels": data.dataset.channels}
    if config.train_text_encoder is None and parent is not None and parent.components.get("text_encoder") is not None:
        decided["train_text_encoder"] = False  # it is not new
    config = fill_defaults(
        replace(config, mixed_precision=accelerator.precision, **decided),
        num_images=None if data.train is None else len(data.train),
        sample_size=data.dataset.resolution // (1 if vae is None else vae_scale_factor(vae)),
        device=accelerator.device,
        decoded=data.dataset.decoded,
        num_parameters=None if parent is None else sum(p.numel() for p in parent.unet.parameters()),
    )
    pipe = build_pipeline(config, data, vae, parent)
    trained = make_trainable(pipe, config, parent)
    pipe.to(accelerator.device)
    if accelerator.device.type == "cpu":
        # Measured at 32 px, batch 64, two cores: 15 % and 20 % of a step. PyTorch's fused attention is slow there.
        torch.set_flush_denormal(True)
        if hasattr(pipe.unet, "set_default_attn_processor"):  # a UNet2DModel has none
            pipe.unet.set_default_attn_processor()
    if accelerator.device.type == "cuda":
        pipe.unet.to(memory_format=torch.channels_last)
    if config.compile:
        pipe.unet.compile()  # in place: the names of its weights stay
    objective = build_objective(config, pipe.scheduler)

    optimizer = build_optimizer(config, parameter_groups(pipe, config))
    counts = count_trained(pipe)
    sharded = accelerator.distributed_type == DistributedType.FSDP
    whole, whole_modules = whole_pipeline(pipe, trained, sharded)  # to look at and to save
    model, optimizer = prepare(accelerator, config, _Told(pipe, trained), optimizer)
    optimizer.train()
    parameters = trainable(trained)  # as prepared: they may be sharded
    ema = None
    if config.use_ema:
        ema = WeightAverage(parameters, decay_of(config.ema_max_decay, config.ema_inv_gamma, config.ema_power))
    of_length = {length: WeightAverage(parameters, power_function(length)) for length in config.ema_lengths}
    averages = [*([ema] if ema else []), *of_length.values()]
    accelerator.register_for_checkpointing(*averages)
    progress = Progress()
    identity = run_identity(config, data, whole) | how_sharded(accelerator)
    if config.resume_from_checkpoint:
        progress = load_checkpoint(accelerator, output_dir, config.resume_from_checkpoint, identity)

    world_size, batch_size = accelerator.num_processes, config.train_batch_size
    resumed = replace(progress)
    progress.batch = batch_size * world_size * config.gradient_accumulation_steps
    progress.num_processes = world_size
    conditions = ConditionEncoder(pipe, trainable=pipe.components.get("text_encoder") in trained)
    if config.cache_latents:
        cache_latents(config, data, pipe, accelerator.device)
    if config.cache_text_embeddings:
        cache_text(config, data, conditions, accelerator.device)
    grid_of = grid_conditions(config, data, config.num_validation_images)
    conditions.preprocess(grid_of)  # a bad one of --validation_prompts is an error before the first step
    loader = make_loader(
        data.dataset,
        data.train,
        conditions.preprocess,
        batch_size=batch_size,
        num_workers=config.dataloader_num_workers,
        seed=config.seed,
        rank=accelerator.process_index,
        world_size=world_size,
        start=progress.position,
        pin_memory=accelerator.device.type == "cuda",
    )
    evaluator = Evaluator(config, data, accelerator) if config.evaluation_steps else None
    hub = HubPush(config)
    log = TrainingLog(accelerator, config, output_dir, progress)
    log.opening(data, counts, resumed)
    learning_rate = _LearningRate(config, optimizer)
    start = time.perf_counter() - progress.elapsed_sec

    def save() -> Path:
        progress.losses, progress.skipped = log.unwritten(), log.skipped()
        return save_checkpoint(accelerator, output_dir, progress, config.checkpoints_total_limit, identity)

    done = _fraction_done(config, progress, accelerator)
    stop.hold(accelerator)
    with one_line_failures(progress, output_dir):
        with signals_held():
            batches = iter(loader)
        while done < 1:
            lr = learning_rate.set(progress.step, done)
            step_loss = torch.zeros((), device=accelerator.device)
            left_out = torch.zeros((), device=accelerator.device)
            for _ in range(config.gradient_accumulation_steps):
                with accelerator.accumulate(model):
                    asked = time.perf_counter()
                    batch = next(batches)
                    log.data_wait_sec += time.perf_counter() - asked
                    with torch.no_grad():
                        x_0 = x_0_of(pipe, batch, config.seed, accelerator.device)  # (B, C, h, w)
                        features = conditions.features(batch.inputs, accelerator.device)
                    noise, u, coins = draw_noise(
                        config.seed, batch.positions, x_0.shape[1:], accelerator.device, pipe.adapter.num_coins
                    )
                    noised = objective.sample(x_0, noise, u)  # float32, whatever the precision
                    with accelerator.autocast():
                        prediction = model(
                            noised.x_t, noised.t, features, pipe.adapter.keep(coins, config.condition_dropout)
                        )
                    loss = noised.loss(prediction).mean()
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        left_out = clipped_step(accelerator, optimizer, parameters, config.max_grad_norm)
                    optimizer.zero_grad()
                step_loss += loss.detach() / config.gradient_accumulation_steps
                progress.position += batch_size * world_size
            for average in averages:
                average.step(parameters)

            progress.step += 1
            progress.elapsed_sec = time.perf_counter() - start
            before, done = done, _fraction_done(config, progress, accelerator)
            log.step(progress, step_loss, left_out, lr, done)
            if of_length and accelerator.is_main_process and _crossed(NUM_SNAPSHOTS, before, done):
                save_snapshot(output_dir, progress.step, pipe, of_length)
            if _validate_now(config, progress.step, before, done):
                with ema_weights(ema, whole_modules, parameters, optimizer):
                    loss_held_out = held_out_loss(whole, objective, data, accelerator, batch_size)
                    images = sample_images(whole, grid_of, accelerator)
                log.validation(progress, loss_held_out, labelled_grid(images, grid_of, data.id2label))
                accelerator.wait_for_everyone()
            if evaluator is not None and progress.step % config.evaluation_steps == 0:
                with ema_weights(ema, whole_modules, parameters, optimizer):
                    log.evaluation(progress, evaluator(whole))
                accelerator.wait_for_everyone()
            if config.checkpointing_steps and progress.step % config.checkpointing_steps == 0:
                save()
                if hub.every_save:
                    with ema_weights(ema, whole_modules, parameters, optimizer):
                        if accelerator.is_main_process:
                            hub.checkpoint(lambda folder: save_model(whole, folder, parent), progress.step)
            if done < 1 and stop.asked(progress.step):
                raise Interrupted(
                    f"{stop.name}: step {progress.step:,} is done and saved in {save()}; go on with the same command "
                    "and --resume_from_checkpoint latest"
                )
    with ema_weights(ema, whole_modules, parameters, optimizer, restore=False), one_line_failures(progress, output_dir):
        return _finish(accelerator, config, whole, parent, data, progress, log, hub, stop)


def _accelerator(config: TrainingConfig, output_dir: Path) -> RunAccelerator:
    device = run_state().device
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # "no" also where `accelerate launch` was told nothing
    precision = config.mixed_precision or (asked if asked != "no" else fast_precision(device))
    torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
    tracker = config.report_to or default_tracker()
    AcceleratorState._reset_state()  # of an earlier run in this process, which may have had another precision
    return RunAccelerator(
        precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=None if tracker == "none" else tracker,
        project_config=ProjectConfiguration(str(output_dir), str(output_dir / config.logging_dir)),
        # A pretrained text encoder may hold parts, such as BERT's pooler, that we do not use.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=bool(config.train_text_encoder))],
    )


class _LearningRate:
    """The learning rate as a function of the fraction done, so that it fits a number of steps or of minutes alike.

    It is set by hand once an optimizer step: accelerate steps a prepared scheduler `num_processes` times.
    """

    def __init__(self, config: TrainingConfig, optimizer: torch.optim.Optimizer, resolution: int = 10_000):
        self.config, self.optimizer, self.resolution = config, optimizer, resolution
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", config.learning_rate)
        decay = {"num_decay_steps": round(config.lr_decay_fraction * resolution)}
        shape = get_scheduler(
            config.lr_scheduler,
            torch.optim.SGD([torch.zeros(1)], lr=1.0),
            num_warmup_steps=0,
            num_training_steps=resolution,
            scheduler_specific_kwargs=decay if config.lr_scheduler == "warmup_stable_decay" else None,
        )
        self.shape = shape.lr_lambdas[0]

    def set(self, step: int, done: float) -> float:
        """Set and return the rate of the step about to be made: `step` were made, `done` of the run is over."""
        warmup = min(1.0, (step + 1) / max(1, self.config.lr_warmup_steps))
        scale = warmup * self.shape(int(done * self.resolution))
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * scale
        return self.config.learning_rate * scale


def _fraction_done(config: TrainingConfig, progress: Progress, accelerator: Accelerator) -> float:
    by_steps = progress.step / config.max_train_steps if config.max_train_steps else 0.0
    if not config.max_train_minutes:
        return by_steps
    done = torch.tensor(max(by_steps, progress.elapsed_sec / (60 * config.max_train_minutes)), dtype=torch.float64)
    if accelerator.num_processes > 1:  # clocks differ; all must stop at the same step
        done = done.to(accelerator.device, torch.float32)
        torch.distributed.broadcast(done, src=0)
    return done.item()


def _crossed(parts: int, before: float, done: float) -> bool:
    """Whether one of `parts` equal parts of the run ended with this step."""
    return int(parts * before) != int(parts * min(done, 1.0))


def _validate_now(config: TrainingConfig, step: int, before: float, done: float) -> bool:
    if config.validation_steps is None:
        return _crossed(4, before, done)
    return config.validation_steps > 0 and step % config.validation_steps == 0


def _finish(
    accelerator: Accelerator,
    config: TrainingConfig,
    pipe: ConditionalPipeline,
    parent: ConditionalPipeline | None,
    data: TrainingData,
    progress: Progress,
    log: TrainingLog,
    hub: HubPush,
    stop: StopSignal,
) -> Path:
    output_dir = Path(config.output_dir)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        config.save(output_dir / "training_config.yaml")
        save_model(pipe, output_dir, parent)
        log.close()
    grid_of = grid_conditions(config, data, NUM_SAMPLES)
    try:
        images = sample_images(pipe, grid_of, accelerator, num_inference_steps=None, on_step=stop.check)
    except StoppedAtOnce:  # what is trained is saved already
        images = None
    # gloo's thread lets go of what was gathered when the next thing comes; if that is the end of the process group, the
    # two wait for each other for ever (seen in torch 2.13).
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_summary(config, pipe, data, accelerator, progress, log.last_losses(), grid_of, images)
        for line in hub.finish(lambda: stop.now):
            tqdm.write(line, file=sys.stderr)
        print(f"saved to {output_dir}: load with {how_to_load(pipe, output_dir)}")
    accelerator.end_training()
    if stop.now:
        without = " without new samples" if images is None else ""
        raise Interrupted(f"{stop.name}: the model in {output_dir} is whole, its card is written{without}")
    return output_dir
