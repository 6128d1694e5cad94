"""train(config) -> folder: one loop for the three settings.

dataset -> image -> (vae) -> x_0 -----------------------------------------------------------------+
        -> condition -> preprocess -> encode -> adapter -> cond.where(keep, null_like) -> denoise -+-> objective.loss
"""

import os
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import ProjectConfiguration, set_seed
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..console import show_any_text
from ..data.batches import make_loader
from ..data.draws import draw
from ..data.load import TrainingData, load_data
from ..data.workers import signals_held
from ..locks import by_main_process
from ..networks.denoiser import denoise
from ..pipelines.conditional import ConditionalPipeline
from ..processes import use_all_cores
from .caching import cache_latents, cache_text, x_0_of
from .checkpoints import Progress, save_checkpoint
from .conditions import ConditionEncoder
from .config import TrainingConfig
from .defaults import decide, default_tracker, fast_precision
from .dtypes import hold_float32
from .ema import NUM_SNAPSHOTS, WeightAverage, decay_of, power_function, save_snapshot
from .failures import (
    Interrupted,
    StoppedAtOnce,
    StopSignal,
    TrainingFailure,
    clipped_step,
    one_line_failures,
    writable_folder,
)
from .final_save import model_is_saved, save_finished
from .identity import RunIdentity, loaded_identity, parent_fingerprint, resume
from .log import TrainingLog
from .lora import how_to_load, save_model
from .model import build_pipeline, image_channels, load_parent, load_vae
from .objective import build_objective
from .optimizers import build_optimizer, check_packages, count_trained, make_trainable, parameter_groups, trainable
from .pushing import HubPush
from .run_folder import RunFolder
from .schedule import LearningRate, RunLength
from .sharding import RunAccelerator, how_sharded, prepare, run_state, whole_pipeline
from .small_evaluation import Evaluator
from .summary import NUM_SAMPLES, write_summary
from .validation import Validation, crossed, ema_weights, grid_conditions, sample_images, write_animation


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
        return denoise(self.unet, x_t, t, cond)  # (B, C, h, w)


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
    show_any_text()
    with StopSignal() as stop:
        return _train_in_folder(config, stop)


def _train_in_folder(config: TrainingConfig, stop: StopSignal) -> Path:
    output_dir = writable_folder(config.output_dir)
    use_all_cores()
    check_packages(config)
    accelerator = _accelerator(config, output_dir)
    with RunFolder(config, accelerator) as folder:
        return _train(config, accelerator, folder, stop)


def _train(config: TrainingConfig, accelerator: RunAccelerator, folder: RunFolder, stop: StopSignal) -> Path:
    output_dir = folder.path
    set_seed(config.seed)
    parent = load_parent(config)
    parent_weights = parent_fingerprint(parent)  # before they are trained
    vae = load_vae(config, parent)
    with accelerator.main_process_first():  # one process prepares what the others read
        data = load_data(config, image_channels(config, parent, vae))
    config, chosen = decide(replace(config, mixed_precision=accelerator.precision), data, vae, parent, accelerator)
    accelerator.gradient_accumulation_steps = config.gradient_accumulation_steps
    length = RunLength.of(config, None if data.train is None else len(data.train))
    pipe = build_pipeline(config, data, vae, parent)
    objective = build_objective(config, pipe.scheduler, parent)
    pipe.register_to_config(objective=objective.config)
    loaded = loaded_identity(config, pipe, data, objective, parent_weights)
    hold_float32(pipe)
    trained = make_trainable(pipe, config, parent)
    pipe.to(accelerator.device)
    sharded = accelerator.distributed_type == DistributedType.FSDP
    _suit(pipe, config, accelerator.device, sharded)

    optimizer = build_optimizer(config, parameter_groups(pipe, config))
    counts = count_trained(pipe)
    whole, whole_modules = whole_pipeline(pipe, trained, sharded)  # to look at and to save
    model, optimizer = prepare(accelerator, config, _Told(pipe, trained), optimizer)
    optimizer.train()
    parameters = trainable(trained)  # as prepared: they may be sharded
    ema = None
    if config.use_ema:
        ema = WeightAverage(parameters, decay_of(config.ema_max_decay, config.ema_inv_gamma, config.ema_power))
    of_length = {length: WeightAverage(parameters, power_function(length)) for length in config.ema_lengths}
    averages = [*([ema] if ema else []), *of_length.values()]
    learning_rate = LearningRate(config, optimizer)
    progress, resumed_run = Progress(), None
    identity = RunIdentity.of(config, loaded | how_sharded(accelerator), whole)
    if config.resume_from_checkpoint:
        progress, resumed_run = resume(folder, config.resume_from_checkpoint, identity, learning_rate, length, averages)

    world_size, batch_size = accelerator.num_processes, config.train_batch_size
    resumed = replace(progress)
    progress.batch = batch_size * world_size * config.gradient_accumulation_steps
    progress.num_processes = world_size
    conditions = ConditionEncoder(pipe, trainable=pipe.components.get("text_encoder") in trained)
    if config.cache_latents:
        cache_latents(config, data, pipe, accelerator.device)
    if config.cache_text_embeddings:
        cache_text(config, data, conditions, accelerator.device)
    validation = Validation(config, data, objective, accelerator, progress.step, conditions.preprocess)
    conditions.preprocess(validation.conditions)  # a bad one of --validation_prompts is an error before the first step
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
    folder.start(progress, resumed_run)
    log = TrainingLog(accelerator, config, output_dir, progress, length, folder.run)
    log.opening(data, counts, resumed, identity.notes)
    log.print(chosen)
    start = time.perf_counter() - progress.elapsed_sec

    def save() -> Path:
        progress.losses, progress.skipped = log.unwritten(), log.skipped()
        return save_checkpoint(
            accelerator, output_dir, progress, averages, config.checkpoints_total_limit, identity.values, folder.run
        )

    def look(before: float, done: float) -> None:
        if validation.due(progress.step, before, done):
            with ema_weights(ema, whole_modules, parameters, optimizer):
                loss, grid = validation(whole, progress.step, before, done)
            if grid is not None:
                log.validation(progress, loss, grid)
            accelerator.wait_for_everyone()

    done = length.fraction_done(progress, accelerator)
    stop.hold(accelerator)
    with log, one_line_failures(progress, output_dir):
        if progress.step == 0:
            look(0.0, 0.0)
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
                    draws = draw(
                        config.seed,
                        batch.positions,
                        x_0.shape[1:],
                        accelerator.device,
                        pipe.adapter.num_coins,
                        objective.num_uniforms,
                    )
                    keep = pipe.adapter.keep(draws.dropout, config.condition_dropout)
                    denoise = partial(_denoise, accelerator, model, features, keep)
                    loss = objective.loss(denoise, x_0, draws).mean()
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
            before, done = done, length.fraction_done(progress, accelerator)
            log.step(progress, step_loss, left_out, lr, done)
            if of_length and accelerator.is_main_process and crossed(NUM_SNAPSHOTS, before, done):
                save_snapshot(output_dir, progress.step, pipe, of_length, folder.run)
            look(before, done)
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
        return _finish(accelerator, config, folder, whole, parent, data, progress, log, hub, stop)


def _denoise(
    accelerator: Accelerator, model: nn.Module, features: dict[str, Tensor], keep: Tensor, x_t: Tensor, t: Tensor
) -> Tensor:
    """The network with its condition, as `Objective.loss` calls it: through the module that syncs gradients."""
    with accelerator.autocast():
        return model(x_t, t, features, keep)  # (B, C, h, w)


def _suit(pipe: ConditionalPipeline, config: TrainingConfig, device: torch.device, sharded: bool) -> None:
    """Layout, attention and compilation of the UNet, as the device is fast with."""
    if device.type == "cpu":
        # Measured at 32 px, batch 64, two cores: 15 % and 20 % of a step. PyTorch's fused attention is slow there.
        torch.set_flush_denormal(True)
        if hasattr(pipe.unet, "set_default_attn_processor"):  # a UNet2DModel has none
            pipe.unet.set_default_attn_processor()
    # Measured on an H100: a step of size s is 1.3 x as fast with it, of l 0.8 x, of xxl 0.94 x. FSDP2 refuses it.
    small = sum(p.numel() for p in pipe.unet.parameters()) < 10e6
    if device.type == "cuda" and small and not sharded:
        pipe.unet.to(memory_format=torch.channels_last)
    if config.compile:
        pipe.unet.compile()  # in place: the names of its weights stay


def _accelerator(config: TrainingConfig, output_dir: Path) -> RunAccelerator:
    device = run_state().device
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # "no" also where `accelerate launch` was told nothing
    precision = config.mixed_precision or (asked if asked != "no" else fast_precision(device))
    torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
    tracker = config.report_to or default_tracker()
    return RunAccelerator(
        precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=None if tracker == "none" else tracker,
        project_config=ProjectConfiguration(str(output_dir), str(output_dir / config.logging_dir)),
    )


def _finish(
    accelerator: Accelerator,
    config: TrainingConfig,
    folder: RunFolder,
    pipe: ConditionalPipeline,
    parent: ConditionalPipeline | None,
    data: TrainingData,
    progress: Progress,
    log: TrainingLog,
    hub: HubPush,
    stop: StopSignal,
) -> Path:
    output_dir = folder.path
    accelerator.wait_for_everyone()
    failure = by_main_process(lambda: save_finished(folder, config, pipe, parent), accelerator.is_main_process)
    if failure is not None:
        raise TrainingFailure(failure)
    with model_is_saved(output_dir):
        has_samples = _show_finished(accelerator, config, folder, pipe, data, progress, log, stop)
    if accelerator.is_main_process:
        for line in hub.finish(lambda: stop.now):
            tqdm.write(line, file=sys.stderr)
        print(f"saved to {output_dir}: load with {how_to_load(pipe, output_dir)}")
    if stop.now:
        without = "" if has_samples else " without new samples"
        raise Interrupted(f"{stop.name}: the model in {output_dir} is whole, its card is written{without}")
    return output_dir


def _show_finished(
    accelerator: Accelerator,
    config: TrainingConfig,
    folder: RunFolder,
    pipe: ConditionalPipeline,
    data: TrainingData,
    progress: Progress,
    log: TrainingLog,
    stop: StopSignal,
) -> bool:
    """The loss curve, samples, and the card of a model that is saved; False where a signal left the samples out."""
    if accelerator.is_main_process:
        log.close()
    preprocess = ConditionEncoder(pipe, trainable=False).preprocess
    grid_of = grid_conditions(config, data, NUM_SAMPLES, preprocess)
    sampling = {"desc": f"Sampling the final {NUM_SAMPLES} images", "batch_size": config.train_batch_size}
    try:
        images = sample_images(pipe, grid_of, accelerator, num_inference_steps=None, on_step=stop.check, **sampling)
    except StoppedAtOnce:  # what is trained is saved already
        images = None
    if accelerator.is_main_process:
        write_animation(folder.path)
        write_summary(config, pipe, data, accelerator, progress, log.last_losses(), grid_of, images, folder.run)
    return images is not None
