"""Training: `loop.train(config)` is the main path; `python -m cond_pipelines.training` the command."""
