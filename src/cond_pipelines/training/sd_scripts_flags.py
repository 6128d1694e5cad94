"""Flags of kohya's sd-scripts, and where they are here; see `other_flags`."""

from .flag_rows import answered, synonym

SD_SCRIPTS = (
    synonym("network_dim", "K", "rank", "with `--use_lora`"),
    synonym("network_alpha", "K", "lora_alpha", "with `--use_lora`"),
    answered("network_module", "K", "--use_lora", "diffusers' format"),
    answered(
        "network_weights dim_from_weights base_weights base_weights_multiplier",
        "K",
        "none",
        "load a LoRA into the pipeline; a run goes on with `--resume_from_checkpoint`",
    ),
    answered("network_dropout scale_weight_norms", "K", "none"),
    answered("network_args", "K", "--lora_target_modules"),
    answered("network_train_unet_only", "K", "--use_lora", "the text encoder is frozen unless `--train_text_encoder`"),
    answered("network_train_text_encoder_only", "K", "--train adapter --train_text_encoder"),
    synonym("unet_lr", "K", "learning_rate"),
    answered("text_encoder_lr", "K", "same"),
    synonym("learning_rate_te", "K", "text_encoder_lr", "with `--train_text_encoder`"),
    answered("stop_text_encoder_training", "K", "none"),
    answered(
        "optimizer_type", "K", "--optimizer", "adamw, adamw8bit, prodigy, schedulefree, adafactor, or module:Class"
    ),
    answered("optimizer_args", "K", "--optimizer_config", "as JSON"),
    answered("optimizer_schedulefree_wrapper schedulefree_wrapper_args", "K", "--optimizer schedulefree"),
    answered("use_lion_optimizer", "K", "--optimizer module:Class", "such as `bitsandbytes.optim:Lion8bit`"),
    answered(
        "lr_scheduler_num_cycles lr_scheduler_power lr_scheduler_args lr_scheduler_timescale lr_scheduler_min_lr_ratio",
        "K",
        "none",
        "of schedules that are not here",
    ),
    answered("lr_decay_steps", "K", "--lr_decay_fraction", "a fraction of the run"),
    synonym("max_train_epochs", "K", "num_train_epochs"),
    answered("save_every_n_steps", "K", "--checkpointing_steps", "the pipeline is saved at the end"),
    answered("save_every_n_epochs save_n_epoch_ratio", "K", "--checkpointing_steps", "in steps"),
    answered(
        "save_last_n_steps save_last_n_epochs save_last_n_steps_state save_last_n_epochs_state",
        "K",
        "--checkpoints_total_limit",
        "a number of checkpoints",
    ),
    answered("save_state save_state_on_train_end", "K", "--checkpointing_steps", "a checkpoint holds the whole state"),
    synonym("resume", "K", "resume_from_checkpoint"),
    answered("initial_epoch initial_step skip_until_initial_step", "K", "--resume_from_checkpoint"),
    answered("output_name save_model_as save_precision", "K", "--output_dir", "diffusers' format, float32"),
    answered("use_safetensors no_metadata training_comment", "K", "none", "safetensors, with a card"),
    answered("output_config log_config", "K", "none", "training_config.yaml in the output folder has all settings"),
    answered("sample_every_n_steps", "K", "--validation_steps"),
    answered("sample_every_n_epochs", "K", "--validation_steps", "in steps"),
    answered("sample_at_first", "K", "none", "samples are drawn at step 0 too"),
    answered("validate_every_n_steps validate_every_n_epochs", "K", "--validation_steps", "in steps"),
    answered("validation_split", "K", "--validation_fraction"),
    answered(
        "validation_seed max_validation_steps", "K", "none", "`--seed` is for all; all held-out images are measured"
    ),
    answered("sample_prompts", "K", "--validation_prompts", "the captions themselves instead of a file"),
    answered("sample_sampler", "K", "--scheduler", "the scheduler that is trained for"),
    synonym("log_with", "K", "report_to"),
    synonym("log_tracker_name", "K", "tracker_project_name"),
    answered(
        "wandb_api_key wandb_run_name log_prefix log_tracker_config", "K", "none", "wandb's own environment variables"
    ),
    synonym("vae", "K", "pretrained_vae_model_name_or_path"),
    synonym("min_snr_gamma", "K", "snr_gamma", "with a DDPM-family `--scheduler`"),
    answered(
        "v_parameterization v2 zero_terminal_snr",
        "K",
        "--scheduler DDPMScheduler --prediction_type v_prediction",
        "a pretrained model keeps its own",
    ),
    answered("noise_offset noise_offset_random_strength adaptive_noise_scale perlin_noise", "K", "none"),
    answered("multires_noise_iterations multires_noise_discount", "K", "none"),
    answered("ip_noise_gamma ip_noise_gamma_random_strength", "K", "none"),
    answered(
        "loss_type huber_c huber_scale huber_schedule min_timestep max_timestep",
        "K",
        "--objective module:Class",
    ),
    answered("debiased_estimation_loss scale_v_pred_loss_like_noise_pred v_pred_like_loss", "K", "--snr_gamma"),
    answered("masked_loss alpha_mask conditioning_data_dir", "K", "none"),
    synonym("enable_bucket", "K", "aspect_buckets"),
    answered(
        "min_bucket_reso max_bucket_reso bucket_reso_steps bucket_no_upscale", "K", "--aspect_buckets", "1:2 to 2:1"
    ),
    synonym("flip_aug", "K", "random_flip"),
    answered("random_crop", "K", "--no_center_crop"),
    answered("color_aug face_crop_aug_range", "K", "none"),
    answered("resize_interpolation", "K", "--image_interpolation_mode", "nearest, box, bilinear, bicubic, lanczos"),
    answered("reg_data_dir", "K", "--with_prior_preservation --class_data_dir"),
    answered("prior_loss_weight", "K", "same"),
    answered(
        "caption_extension caption_extention caption_separator secondary_separator shuffle_caption keep_tokens "
        "keep_tokens_separator enable_wildcard weighted_captions caption_prefix caption_suffix",
        "K",
        "none",
        "captions stand in .txt or .caption files, or in metadata.jsonl; of several captions one is drawn a step",
    ),
    answered("caption_dropout_rate", "K", "--condition_dropout", "default 0.1"),
    answered(
        "caption_tag_dropout_rate caption_dropout_every_n_epochs", "K", "--condition_dropout", "of whole captions"
    ),
    answered(
        "max_token_length clip_skip token_warmup_min token_warmup_step no_token_padding tokenizer_cache_dir",
        "K",
        "none",
        "the text encoder's own",
    ),
    synonym("cache_latents_to_disk", "K", "cache_latents"),
    synonym("cache_text_encoder_outputs cache_text_encoder_outputs_to_disk", "K", "cache_text_embeddings"),
    answered(
        "cache_info skip_cache_check vae_batch_size text_encoder_batch_size",
        "K",
        "none",
        "what is cached is found by its content",
    ),
    synonym("max_data_loader_n_workers", "K", "dataloader_num_workers"),
    answered("persistent_data_loader_workers", "K", "none", "workers always stay"),
    answered(
        "full_fp16 full_bf16 fp8_base fp8_base_unet no_half_vae",
        "K",
        "--mixed_precision bf16",
        "weights stay in float32",
    ),
    answered(
        "xformers diffusers_xformers sdpa mem_eff_attn lowram highvram", "K", "none", "PyTorch's attention is as fast"
    ),
    answered("disable_mmap_load_safetensors debug_dataset", "K", "none"),
    answered("blocks_to_swap cpu_offload_checkpointing fused_backward_pass", "K", "--gradient_checkpointing"),
    synonym("torch_compile", "K", "compile"),
    answered("dynamo_backend", "K", "--compile"),
    answered("ddp_timeout ddp_static_graph ddp_gradient_as_bucket_view", "K", "none", "accelerate's own configuration"),
    synonym("huggingface_repo_id", "K", "hub_model_id", "with `--push_to_hub`"),
    synonym("huggingface_token", "K", "hub_token", "with `--push_to_hub`"),
    answered("huggingface_repo_visibility", "K", "--hub_private_repo"),
    answered("save_state_to_huggingface async_upload", "K", "--hub_strategy every_save"),
    answered("huggingface_repo_type huggingface_path_in_repo resume_from_huggingface", "K", "none"),
    synonym("config_file", "K", "config", "YAML instead of TOML"),
    answered("dataset_config in_json", "K", "--train_data_dir", "with metadata.jsonl"),
    answered("dataset_class", "K", "--dataset_name", "as module:function"),
    answered("dataset_repeats", "K", "none", "an epoch is one pass; see `--folder_repeats`"),
)
