"""train(config) -> folder: one loop for every setting.

dataset -> image -> (vae) -> x_0 -----------------------------------------------------------------+
        -> condition -> preprocess -> encode -> adapter -> cond.where(keep, null_like) -> denoise -+-> objective.loss
"""

from pathlib import Path

import torch

from ..console import show_any_text
from ..data.batches import make_loader
from ..data.draws import draw
from ..data.workers import batches_of
from ..processes import use_all_cores
from .caching import cache, x_0_of
from .conditions import ConditionEncoder
from .config import TrainingConfig
from .device import build_accelerator
from .failures import HOW_TO_RESUME, Interrupted, StopSignal, one_line_failures, writable_folder
from .finish import finish
from .log import TrainingLog
from .optimizers import check_packages
from .pushing import HubPush
from .requests import Requests
from .run import Run, prepare_run
from .run_folder import RunFolder, check_place
from .small_evaluation import Evaluator
from .state import TrainState
from .validation import Validation


def train(config: TrainingConfig) -> Path:
    """Train a model of any setting.

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
    check_place(config)
    with StopSignal() as stop:
        output_dir = writable_folder(config.output_dir)
        use_all_cores()
        check_packages(config)
        accelerator = build_accelerator(config, output_dir)
        with RunFolder(config, accelerator) as folder:
            return _train(prepare_run(config, accelerator, folder), stop)


def _train(run: Run, stop: StopSignal) -> Path:
    config, accelerator, device = run.config, run.accelerator, run.device
    pipe, adapter, objective = run.pipe, run.pipe.adapter, run.objective
    num_draws = adapter.num_dropout_draws, objective.num_uniforms  # random numbers of an image, next to noise and time
    state = TrainState(run)
    conditions = ConditionEncoder(pipe, trainable=run.trains_text_encoder)
    cache(run, conditions)
    validation = Validation(run, conditions.preprocess, state.progress.step)
    loader = make_loader(
        run.data.dataset,
        run.data.train,
        conditions.preprocess,
        run.shard(start=state.progress.position),
        num_workers=config.dataloader_num_workers or 0,
        pin_memory=device.type == "cuda",
    )
    evaluator = Evaluator(run, stop) if config.evaluation_steps else None
    hub = HubPush(config, accelerator.is_main_process)
    run.folder.start(state.progress, state.resumed_run, config, run.length.num_steps(state.progress))
    requests = Requests(run.output_dir, accelerator)
    log = TrainingLog(run, state.progress)
    log.opening(state.resumed, conditions.lost_words(run.data))
    state.start()
    stop.hold(accelerator)

    with log, one_line_failures(state.progress, run.output_dir), batches_of(loader) as batches:
        if state.progress.step == 0 and validation.due(state):
            with state.averaged():
                log.validation(state.progress, *validation(state))
        while state.fraction_done < 1:
            learning_rate = state.set_learning_rate()

            # ---------------------------------------------------------- gradients of one optimizer step
            step_loss = torch.zeros((), device=device)
            for batch in state.micro_batches(batches):
                with torch.no_grad():
                    x_0 = x_0_of(pipe, batch, config.seed, device)  # (B, C, h, w) images or latents
                    features = conditions.features(batch.inputs, device)  # by name, B rows each
                # Noise, time and dropout of each image are a function of its position in the run.
                draws = draw(config.seed, batch.positions, x_0.shape[1:], device, *num_draws)
                keep = adapter.keep(draws.dropout, config.condition_dropout)  # (B,) or (B, parts)
                loss = objective.loss(state.denoise_with(features, keep), x_0, draws).mean()
                accelerator.backward(loss)
                step_loss += loss.detach() / run.num_micro_batches

            # ---------------------------------------------------------- update: clip, step, averages
            skipped = state.step()

            # ---------------------------------------------------------- once in a while
            log.step(state, step_loss, skipped, learning_rate)
            with log.until_there_is_room():
                state.save_snapshot()
            wished = requests.taken(state.progress.step)
            if validation.due(state) or "sample" in wished:
                with state.averaged():
                    log.validation(state.progress, *validation(state, whole="sample" in wished))
            if evaluator is not None and state.is_multiple_of(config.evaluation_steps):
                with state.averaged() as averaged:
                    log.evaluation(state.progress, evaluator(averaged))
            if state.is_multiple_of(config.checkpointing_steps) or "save" in wished:
                log.save_to(state.progress)
                state.save_checkpoint()
                if hub.every_save:
                    with state.averaged() as averaged:
                        hub.checkpoint(averaged, run.parent, state.progress.step)
            if state.fraction_done < 1 and stop.requested(state.progress.step):
                log.save_to(state.progress)
                raise Interrupted(
                    f"{stop.name}: step {state.progress.step:,} is done and saved in {state.save_checkpoint()}; "
                    f"{HOW_TO_RESUME}"
                )
    with state.averaged(restore=False), one_line_failures(state.progress, run.output_dir):
        return finish(run, state, log, hub, stop)
