"""Flags of other training scripts, and where they are here: diffusers', kohya's sd-scripts', transformers' Trainer's.

The tables of training/README.md are made from this. A flag of the same meaning is accepted; for any other the error
says what to give instead.
"""

from collections.abc import Sequence

from .flag_rows import Row, answered, synonym
from .sd_scripts_flags import SD_SCRIPTS

SCRIPTS = {
    "U": "train_unconditional.py",
    "T": "train_text_to_image.py",
    "L": "train_text_to_image_lora.py",
    "D": "train_dreambooth.py",
    "X": "their SDXL and Stable Diffusion 3 scripts",
}
DIFFUSERS = (
    answered(
        "pretrained_model_name_or_path",
        "T",
        "same",
        "optional; any of our models, of any setting, or diffusers' own: Stable Diffusion 1.x, 2.x, DDPM, DDIM, LDM",
    ),
    answered("model_config_name_or_path", "U", "--unet_size", "a table of sizes instead of a file"),
    answered("revision variant", "T", "same"),
    answered("dataset_name dataset_config_name", "U T", "same", "also `module:function`"),
    answered("train_data_dir", "U T", "same", "also class sub-folders, parquet, arrow, `save_to_disk`"),
    answered("instance_data_dir", "D", "--train_data_dir", "with captions in metadata.jsonl, or class sub-folders"),
    answered("instance_prompt", "D", "none", "put the caption into metadata.jsonl of `--train_data_dir`"),
    answered(
        "image_column caption_column",
        "T",
        "same",
        "default: by type or name; `--label_column` for classes",
    ),
    answered("max_train_samples", "T", "same"),
    answered("cache_dir", "U T", "same", "of `datasets`"),
    answered(
        "output_dir overwrite_output_dir",
        "U T",
        "same",
        "U reads but ignores the second; here it deletes what an earlier run made",
    ),
    answered("seed", "T", "same", "default 0: runs repeat"),
    answered("resolution", "U T", "same", "default: the images' own size"),
    answered("center_crop", "U T", "same", "default on; `--no_center_crop` for theirs"),
    answered("random_flip", "U T", "same"),
    answered("image_interpolation_mode", "T", "same"),
    answered(
        "train_batch_size", "U T", "same", "default: fits the network, the resolution and the device's free memory"
    ),
    answered("eval_batch_size", "U", "none", "validation uses the training batch size"),
    answered(
        "dataloader_num_workers", "U T", "same", "default: on a CPU none where decoded images are kept, on a GPU two"
    ),
    answered("num_train_epochs max_train_steps", "U T", "same", "one of them; and `--max_train_minutes`"),
    synonym("num_epochs", "U", "num_train_epochs"),
    answered(
        "save_images_epochs validation_epochs",
        "U T",
        "--validation_steps",
        "in steps; default: four in the run; samples also at steps 0, 50 and 200",
    ),
    answered("save_model_epochs", "U", "--checkpointing_steps", "in steps; the pipeline is saved at the end"),
    answered("validation_prompts", "T", "same", "for classes: labels"),
    synonym("validation_prompt", "L D", "validation_prompts"),
    answered("validation_images validation_scheduler", "D", "none", "samples are drawn as the model is trained"),
    answered(
        "gradient_accumulation_steps gradient_checkpointing",
        "U T",
        "same",
        "chosen too where no batch size is given",
    ),
    answered(
        "learning_rate", "U T", "same", "default: by the network's size; for Stable Diffusion 1e-5, with LoRA 1e-4"
    ),
    answered("lr_warmup_steps", "U T", "same", "default: 100, at most a tenth of the run"),
    answered("scale_lr", "T", "none", "give the `--learning_rate` that you mean"),
    answered(
        "lr_scheduler",
        "U T",
        "same",
        "default `warmup_stable_decay`; counted in optimizer steps, whatever the processes",
    ),
    answered("lr_num_cycles lr_power", "D", "none", "of schedules that are not here"),
    answered(
        "adam_beta1 adam_beta2 adam_weight_decay adam_epsilon",
        "U T",
        "same",
        "fused AdamW; other optimizers by `--optimizer`",
    ),
    answered("max_grad_norm", "T", "same", "U has it fixed at 1"),
    answered("use_8bit_adam", "T", "--optimizer adamw8bit"),
    answered("use_ema", "U T", "same", "default on; `--no_use_ema`"),
    answered(
        "ema_inv_gamma ema_power ema_max_decay",
        "U",
        "same",
        "the first two with the third; default: EDM2's average over 5 % of the run; and `--ema_lengths`",
    ),
    answered("offload_ema foreach_ema non_ema_revision", "T", "none", "foreach always"),
    answered("mixed_precision", "U T", "same", "default: what the device is fast at"),
    answered("allow_tf32", "T", "same", "default on"),
    answered("prediction_type snr_gamma", "U T", "same", "with a DDPM-family `--scheduler`; the second is of T only"),
    answered("ddpm_num_steps ddpm_beta_schedule", "U", "--scheduler", "the scheduler's own defaults"),
    synonym(
        "ddpm_num_inference_steps",
        "U",
        "default_num_inference_steps",
        "saved with the pipeline; default: the pretrained model's own, or 20",
    ),
    answered("noise_offset input_perturbation dream_training dream_detail_preservation", "T", "none"),
    answered("offset_noise class_labels_conditioning", "D", "none"),
    answered("do_edm_style_training", "X", "--scheduler EDMEulerScheduler"),
    answered(
        "weighting_scheme mode_scale precondition_outputs",
        "X",
        "none",
        "`--logit_mean`, `--logit_std`: flow matching's",
    ),
    answered(
        "timestep_bias_strategy timestep_bias_begin timestep_bias_end timestep_bias_portion timestep_bias_multiplier",
        "X",
        "--objective module:Class",
    ),
    answered("checkpointing_steps checkpoints_total_limit resume_from_checkpoint", "U T", "same"),
    synonym("logger", "U", "report_to"),
    answered("report_to tracker_project_name", "T", "same"),
    answered("logging_dir", "U T", "same", "inside `--output_dir`"),
    answered("rank", "L", "same", "with `--use_lora`, and `--lora_alpha`, `--lora_target_modules`"),
    answered("train_text_encoder", "D", "same", "a LoRA where the pretrained model has the encoder"),
    answered(
        "with_prior_preservation class_data_dir class_prompt prior_loss_weight",
        "D",
        "same",
        "the class images are yours to make",
    ),
    answered("lora_dropout use_dora output_kohya_format", "D X", "none", "a plain LoRA, in diffusers' format"),
    answered(
        "num_class_images sample_batch_size prior_generation_precision",
        "D",
        "none",
        "draw the class images yourself, into `--class_data_dir`",
    ),
    synonym("pre_compute_text_embeddings", "D", "cache_text_embeddings"),
    answered(
        "tokenizer_name tokenizer_max_length max_sequence_length text_encoder_use_attention_mask",
        "D X",
        "none",
        "the text encoder's own",
    ),
    answered("proportion_empty_prompts", "X", "--condition_dropout", "default 0.1"),
    answered("repeats", "X", "none", "an epoch is one pass; `--num_train_epochs` or `--max_train_steps` is the length"),
    answered("skip_save_text_encoder", "D", "none", "a pipeline is saved whole"),
    answered("adam_weight_decay_text_encoder", "X", "--adam_weight_decay", "of all that is trained"),
    answered(
        "prodigy_beta3 prodigy_decouple prodigy_use_bias_correction prodigy_safeguard_warmup",
        "X",
        "--optimizer_config",
        "as JSON",
    ),
    answered("set_grads_to_none", "D", "none", "always so"),
    answered("push_to_hub hub_token hub_model_id", "U T", "same", "and `--hub_strategy every_save`"),
    answered("hub_private_repo", "U", "same"),
    answered("local_rank", "U T", "none", "accelerate knows"),
    answered(
        "enable_xformers_memory_efficient_attention enable_npu_flash_attention",
        "U T",
        "none",
        "PyTorch's attention is as fast",
    ),
    answered(
        "preserve_input_precision",
        "U",
        "--value_range",
        "gives what becomes -1 and 1; without it 16-bit images are scaled to 8",
    ),
)
TRAINER = (
    synonym("per_device_train_batch_size batch_size", "", "train_batch_size"),
    synonym("max_steps", "", "max_train_steps"),
    synonym("epochs", "", "num_train_epochs"),
    synonym("lr", "", "learning_rate"),
    synonym("warmup_steps", "", "lr_warmup_steps"),
    synonym("weight_decay", "", "adam_weight_decay"),
    answered("save_steps", "", "--checkpointing_steps"),
    answered("save_total_limit", "", "--checkpoints_total_limit"),
    answered("eval_steps", "", "--validation_steps"),
    answered("fp16 bf16", "", "--mixed_precision fp16 or --mixed_precision bf16"),
    answered("optim", "", "--optimizer"),
    answered("lr_scheduler_type", "", "--lr_scheduler"),
    answered("image_size size", "", "--resolution"),
    answered("data_dir dataset_dir", "", "--train_data_dir"),
    answered("model_id model_name pretrained_model", "", "--pretrained_model_name_or_path"),
    answered("num_classes class_cond", "", "--conditioning class", "the number of classes is read from the data"),
    answered("tf32", "", "--allow_tf32", "on by default"),
    synonym("num_workers workers", "", "dataloader_num_workers"),
    synonym("lora_rank lora_r", "", "rank", "with `--use_lora`"),
    answered("ema_decay", "", "--ema_max_decay"),
    answered("steps max_iters iterations", "", "--max_train_steps"),
    answered("output out outdir save_dir", "", "--output_dir"),
    answered("dataset data", "", "--train_data_dir", "or `--dataset_name`"),
    answered("precision", "", "--mixed_precision"),
    answered("clip_grad_norm grad_clip", "", "--max_grad_norm"),
    answered(
        "eval_strategy save_strategy logging_strategy", "", "none", "`--validation_steps` and the like count steps"
    ),
    answered("run_name", "", "--tracker_project_name"),
)
_ALL = (*DIFFUSERS, *SD_SCRIPTS, *TRAINER)


def same_here(name: str, known: Sequence[str]) -> str | None:
    """Our name of a flag of exactly the same meaning; None where there is none, or where it is ours already."""
    if name in known:
        return None
    return next((row.here.removeprefix("--") for row in _ALL if row.synonym and name in row.theirs), None)


def answer(name: str) -> str | None:
    """What to give instead of a flag of another script; None for a flag of none."""
    row = next((row for row in _ALL if name in row.theirs and row.here != "same"), None)
    if row is None:
        return None
    note = row.note.replace("`", "")
    if row.here == "none":
        return f"there is no such flag here; {note}" if note else "there is nothing like it here"
    return f"here it is {row.here}" + (f" ({note})" if note else "")


def table(rows: Sequence[Row]) -> str:
    """Rows as a table in Markdown."""
    has_scripts = any(row.scripts not in ("", "K") for row in rows)
    lines = (
        ["| theirs | in | here | note |", "|---|---|---|---|"]
        if has_scripts
        else ["| theirs | here | note |", "|---|---|---|"]
    )
    for row in rows:
        theirs = ", ".join(f"`--{name}`" for name in row.theirs)
        cells = [theirs, *([row.scripts] if has_scripts else [])]
        here = row.here if row.here in ("same", "none") else f"`{row.here}`"
        lines.append(f"| {' | '.join([*cells, here])} |{f' {row.note} ' if row.note else ' '}|")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":  # the tables of training/README.md
    print(*(table(rows) for rows in (DIFFUSERS, SD_SCRIPTS, TRAINER)), sep="\n")
