"""The end of a run: the model is saved first, then pictures, the card, and the Hub."""

import sys
from pathlib import Path

from ..console import say
from ..export.diffusers_folder import export_lines
from ..locks import by_main_process
from ..pipelines.conditional import ConditionalPipeline
from .conditions import ConditionEncoder
from .failures import Interrupted, StoppedAtOnce, StopSignal, TrainingFailure, how_to_go_on
from .final_save import model_is_saved, save_finished
from .log import TrainingLog
from .lora import has_lora, how_to_load
from .pushing import HubPush
from .run import Run
from .state import TrainState
from .summary import NUM_SAMPLES, write_summary
from .validation import grid_conditions, sample_images, write_animation


def finish(run: Run, state: TrainState, log: TrainingLog, hub: HubPush, stop: StopSignal) -> Path:
    """Save the model as it is now in `state.eval_pipe`, then all that shows it.

    Raises:
        TrainingFailure: the weights are not finite, or the model could not be written into its folder; the message
            says where it is.
        Interrupted: a signal came; the model is saved.
    """
    is_main, pipe = run.accelerator.is_main_process, state.eval_pipe
    run.accelerator.wait_for_everyone()
    failure = by_main_process(lambda: _not_finite(run, pipe), is_main) or by_main_process(
        lambda: save_finished(run.folder, run.config, pipe, run.parent), is_main
    )
    if failure is not None:
        raise TrainingFailure(failure)
    with model_is_saved(run.output_dir):
        has_samples = _show(run, state, log, stop)
    if is_main:
        for line in hub.finish(lambda: stop.now):
            say(line)
        say(f"saved to {run.output_dir}: load with {how_to_load(pipe, run.output_dir)}", sys.stdout)
        for line in [] if has_lora(pipe.unet) else export_lines(pipe, run.output_dir):
            say(line, sys.stdout)
    if stop.now:
        without = "" if has_samples else " without new samples"
        raise Interrupted(f"{stop.name}: the model in {run.output_dir} is whole, its card is written{without}")
    return run.output_dir


def _not_finite(run: Run, pipe: ConditionalPipeline) -> str | None:
    """What to say of trained weights that are no numbers: a run that is shorter than --max_skipped_steps gets here."""
    trained = [name for name, part in run.pipe.components.items() if any(part is module for module in run.trained)]
    for part in trained:
        for name, weight in pipe.components[part].named_parameters():
            if not weight.isfinite().all():
                return (
                    f"the trained weights are not finite ({part}.{name}), so they are not saved: try a smaller "
                    f"--learning_rate, or --mixed_precision no; {how_to_go_on(run.output_dir)}"
                )
    return None


def _show(run: Run, state: TrainState, log: TrainingLog, stop: StopSignal) -> bool:
    """Write the loss curve, samples, and the card of a model that is saved; False: a signal came before the samples."""
    if run.accelerator.is_main_process:
        log.close()
    preprocess = ConditionEncoder(state.eval_pipe, trainable=False).preprocess
    conditions = grid_conditions(run.config, run.data, NUM_SAMPLES, preprocess)
    try:
        images = sample_images(
            state.eval_pipe,
            conditions,
            run.accelerator,
            num_inference_steps=None,
            desc=f"Sampling the final {NUM_SAMPLES} images",
            batch_size=run.config.train_batch_size,
            on_step=stop.check,
        )
    except StoppedAtOnce:  # what is trained is saved already
        images = None
    if run.accelerator.is_main_process:
        write_animation(run.output_dir)
        write_summary(run, state, log.last_losses(), conditions, images)
    return images is not None
