"""Flags of other training scripts, and where they are here: diffusers', kohya's sd-scripts', transformers' Trainer's.

The tables of training/README.md are made from this. A flag of the same meaning is accepted; for any other the error
says what to give instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Flags of another script.

    Args:
        theirs: names, without dashes. scripts: which scripts have them; see `SCRIPTS`.
        here: the flag or flags here, as they are written; "same", or "none".
        note: for whoever comes from there.
        synonym: `here` is one flag of exactly this meaning and these values, so theirs is accepted for it.
    """

    theirs: tuple[str, ...]
    scripts: str
    here: str
    note: str = ""
    synonym: bool = False


def _row(theirs: str, scripts: str, here: str, note: str = "") -> Row:
    return Row(tuple(theirs.split()), scripts, here, note)


def _is(theirs: str, scripts: str, ours: str, note: str = "") -> Row:
    return Row(tuple(theirs.split()), scripts, f"--{ours}", note, synonym=True)


SCRIPTS = {
    "U": "train_unconditional.py",
    "T": "train_text_to_image.py",
    "L": "train_text_to_image_lora.py",
    "D": "train_dreambooth.py",
}
DIFFUSERS = (
    _row(
        "pretrained_model_name_or_path",
        "T",
        "same",
        "optional; any of our models, of any setting, or diffusers' own: Stable Diffusion 1.x, 2.x, DDPM, DDIM, LDM",
    ),
    _row("model_config_name_or_path", "U", "--unet_size", "a table of sizes instead of a file"),
    _row("revision variant", "T", "same"),
    _row("dataset_name dataset_config_name", "U T", "same", "also `module:function`"),
    _row("train_data_dir", "U T", "same", "also class sub-folders, parquet, arrow, `save_to_disk`"),
    _row("instance_data_dir", "D", "--train_data_dir", "with captions in metadata.jsonl, or class sub-folders"),
    _row("instance_prompt", "D", "none", "put the caption into metadata.jsonl of `--train_data_dir`"),
    _row(
        "image_column caption_column",
        "T",
        "same",
        "default: by type or name; `--label_column` for classes",
    ),
    _row("max_train_samples", "T", "same"),
    _row("cache_dir", "U T", "same", "of `datasets`"),
    _row(
        "output_dir overwrite_output_dir",
        "U T",
        "same",
        "U reads but ignores the second; here it deletes what an earlier run made",
    ),
    _row("seed", "T", "same", "default 0: runs repeat"),
    _row("resolution", "U T", "same", "default: the images' own size"),
    _row("center_crop", "U T", "same", "default on; `--no_center_crop` for theirs"),
    _row("random_flip", "U T", "same"),
    _row("image_interpolation_mode", "T", "same"),
    _row("train_batch_size", "U T", "same", "default: fits the network, the resolution and the device's free memory"),
    _row("eval_batch_size", "U", "none", "validation uses the training batch size"),
    _row("dataloader_num_workers", "U T", "same", "default: on a CPU none where decoded images are kept, on a GPU two"),
    _row("num_train_epochs max_train_steps", "U T", "same", "one of them; and `--max_train_minutes`"),
    _is("num_epochs", "U", "num_train_epochs"),
    _row(
        "save_images_epochs validation_epochs",
        "U T",
        "--validation_steps",
        "in steps; default: four in the run; samples also at steps 0, 50 and 200",
    ),
    _row("save_model_epochs", "U", "--checkpointing_steps", "in steps; the pipeline is saved at the end"),
    _row("validation_prompts", "T", "same", "for classes: labels"),
    _row("validation_prompt", "L", "--validation_prompts"),
    _row(
        "gradient_accumulation_steps gradient_checkpointing",
        "U T",
        "same",
        "chosen too where no batch size is given",
    ),
    _row("learning_rate", "U T", "same", "default: by the network's size; for Stable Diffusion 1e-5, with LoRA 1e-4"),
    _row("lr_warmup_steps", "U T", "same", "default: 100, at most a tenth of the run"),
    _row("scale_lr", "T", "none", "give the `--learning_rate` that you mean"),
    _row(
        "lr_scheduler",
        "U T",
        "same",
        "default `warmup_stable_decay`; counted in optimizer steps, whatever the processes",
    ),
    _row("lr_num_cycles lr_power", "D", "none", "of schedules that are not here"),
    _row(
        "adam_beta1 adam_beta2 adam_weight_decay adam_epsilon",
        "U T",
        "same",
        "fused AdamW; other optimizers by `--optimizer`",
    ),
    _row("max_grad_norm", "T", "same", "U has it fixed at 1"),
    _row("use_8bit_adam", "T", "--optimizer adamw8bit"),
    _row("use_ema", "U T", "same", "default on; `--no_use_ema`"),
    _row(
        "ema_inv_gamma ema_power ema_max_decay",
        "U",
        "same",
        "the first two with the third; default: EDM2's average over 5 % of the run; and `--ema_lengths`",
    ),
    _row("offload_ema foreach_ema non_ema_revision", "T", "none", "foreach always"),
    _row("mixed_precision", "U T", "same", "default: what the device is fast at"),
    _row("allow_tf32", "T", "same", "default on"),
    _row("prediction_type snr_gamma", "U T", "same", "with a DDPM-family `--scheduler`; the second is of T only"),
    _row("ddpm_num_steps ddpm_beta_schedule", "U", "--scheduler", "the scheduler's own defaults"),
    _is(
        "ddpm_num_inference_steps",
        "U",
        "default_num_inference_steps",
        "saved with the pipeline; default: the pretrained model's own, or 30",
    ),
    _row("noise_offset input_perturbation dream_training dream_detail_preservation", "T", "none"),
    _row("checkpointing_steps checkpoints_total_limit resume_from_checkpoint", "U T", "same"),
    _is("logger", "U", "report_to"),
    _row("report_to tracker_project_name", "T", "same"),
    _row("logging_dir", "U T", "same", "inside `--output_dir`"),
    _row("rank", "L", "same", "with `--use_lora`, and `--lora_alpha`, `--lora_target_modules`"),
    _row("train_text_encoder", "D", "same", "a LoRA where the pretrained model has the encoder"),
    _row(
        "with_prior_preservation class_data_dir class_prompt prior_loss_weight",
        "D",
        "same",
        "the class images are yours to make",
    ),
    _row("num_class_images sample_batch_size", "D", "none", "draw the class images yourself, into `--class_data_dir`"),
    _row("push_to_hub hub_token hub_model_id", "U T", "same", "and `--hub_strategy every_save`"),
    _row("hub_private_repo", "U", "same"),
    _row("local_rank", "U T", "none", "accelerate knows"),
    _row("enable_xformers_memory_efficient_attention", "U T", "none", "PyTorch's attention is as fast"),
    _row(
        "preserve_input_precision",
        "U",
        "--value_range",
        "gives what becomes -1 and 1; without it 16-bit images are scaled to 8",
    ),
)
SD_SCRIPTS = (
    _is("network_dim", "K", "rank", "with `--use_lora`"),
    _is("network_alpha", "K", "lora_alpha", "with `--use_lora`"),
    _row("network_module", "K", "--use_lora", "diffusers' format"),
    _row(
        "network_weights", "K", "none", "load a LoRA into the pipeline; a run goes on with `--resume_from_checkpoint`"
    ),
    _row("network_args", "K", "--lora_target_modules"),
    _row("network_train_unet_only", "K", "--use_lora", "the text encoder is frozen unless `--train_text_encoder`"),
    _row("network_train_text_encoder_only", "K", "--train adapter --train_text_encoder"),
    _is("unet_lr", "K", "learning_rate"),
    _row("text_encoder_lr", "K", "same"),
    _row("optimizer_type", "K", "--optimizer", "adamw, adamw8bit, prodigy, schedulefree, adafactor, or module:Class"),
    _row("optimizer_args", "K", "--optimizer_config", "as JSON"),
    _row("lr_scheduler_num_cycles lr_scheduler_power lr_scheduler_args", "K", "none", "of schedules that are not here"),
    _is("max_train_epochs", "K", "num_train_epochs"),
    _row("save_every_n_steps", "K", "--checkpointing_steps", "the pipeline is saved at the end"),
    _row("save_every_n_epochs", "K", "--checkpointing_steps", "in steps"),
    _row("save_last_n_steps save_last_n_epochs", "K", "--checkpoints_total_limit", "a number of checkpoints"),
    _row("save_state save_state_on_train_end", "K", "--checkpointing_steps", "a checkpoint holds the whole state"),
    _is("resume", "K", "resume_from_checkpoint"),
    _row("output_name save_model_as save_precision", "K", "--output_dir", "diffusers' format, float32"),
    _row("sample_every_n_steps", "K", "--validation_steps"),
    _row("sample_every_n_epochs", "K", "--validation_steps", "in steps"),
    _row("sample_prompts", "K", "--validation_prompts", "the captions themselves instead of a file"),
    _row("sample_sampler", "K", "--scheduler", "the scheduler that is trained for"),
    _is("log_with", "K", "report_to"),
    _is("log_tracker_name", "K", "tracker_project_name"),
    _row("wandb_api_key wandb_run_name log_prefix", "K", "none", "wandb's own environment variables"),
    _is("vae", "K", "pretrained_vae_model_name_or_path"),
    _is("min_snr_gamma", "K", "snr_gamma", "with a DDPM-family `--scheduler`"),
    _row(
        "v_parameterization v2 zero_terminal_snr",
        "K",
        "--scheduler DDPMScheduler --prediction_type v_prediction",
        "a pretrained model keeps its own",
    ),
    _row("noise_offset multires_noise_iterations ip_noise_gamma", "K", "none"),
    _is("enable_bucket", "K", "aspect_buckets"),
    _row("min_bucket_reso max_bucket_reso bucket_reso_steps bucket_no_upscale", "K", "--aspect_buckets", "1:2 to 2:1"),
    _is("flip_aug", "K", "random_flip"),
    _row("random_crop", "K", "--no_center_crop"),
    _row("color_aug face_crop_aug_range", "K", "none"),
    _row("reg_data_dir", "K", "--with_prior_preservation --class_data_dir"),
    _row("prior_loss_weight", "K", "same"),
    _row(
        "caption_extension caption_separator shuffle_caption keep_tokens",
        "K",
        "none",
        "captions stand in .txt or .caption files, or in metadata.jsonl; of several captions one is drawn a step",
    ),
    _row("caption_dropout_rate", "K", "--condition_dropout", "default 0.1"),
    _row("max_token_length clip_skip token_warmup_step", "K", "none", "the text encoder's own"),
    _is("cache_latents_to_disk", "K", "cache_latents"),
    _is("cache_text_encoder_outputs cache_text_encoder_outputs_to_disk", "K", "cache_text_embeddings"),
    _is("max_data_loader_n_workers", "K", "dataloader_num_workers"),
    _row("persistent_data_loader_workers", "K", "none", "workers always stay"),
    _row("full_fp16 full_bf16 fp8_base", "K", "--mixed_precision bf16", "weights stay in float32"),
    _row("xformers sdpa mem_eff_attn lowram highvram", "K", "none", "PyTorch's attention is as fast"),
    _is("huggingface_repo_id", "K", "hub_model_id", "with `--push_to_hub`"),
    _is("huggingface_token", "K", "hub_token", "with `--push_to_hub`"),
    _row("huggingface_repo_visibility", "K", "--hub_private_repo"),
    _is("config_file", "K", "config", "YAML instead of TOML"),
    _row("dataset_config in_json", "K", "--train_data_dir", "with metadata.jsonl"),
)
TRAINER = (
    _is("per_device_train_batch_size batch_size", "", "train_batch_size"),
    _is("max_steps", "", "max_train_steps"),
    _is("epochs", "", "num_train_epochs"),
    _is("lr", "", "learning_rate"),
    _is("warmup_steps", "", "lr_warmup_steps"),
    _is("weight_decay", "", "adam_weight_decay"),
    _row("save_steps", "", "--checkpointing_steps"),
    _row("save_total_limit", "", "--checkpoints_total_limit"),
    _row("eval_steps", "", "--validation_steps"),
    _row("fp16 bf16", "", "--mixed_precision fp16 or --mixed_precision bf16"),
    _row("optim", "", "--optimizer"),
    _row("lr_scheduler_type", "", "--lr_scheduler"),
    _row("image_size size", "", "--resolution"),
    _row("data_dir dataset_dir", "", "--train_data_dir"),
    _row("model_id model_name pretrained_model", "", "--pretrained_model_name_or_path"),
    _row("num_classes class_cond", "", "--conditioning class", "the number of classes is read from the data"),
    _row("tf32", "", "--allow_tf32", "on by default"),
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
