"""A small evaluation during training: kernel distance, precision, recall and copies among a few samples."""

import numpy as np
import torch

from ..evaluation import measures as m
from ..evaluation.features import extract, load_extractor
from ..evaluation.sampling import to_image
from ..pipelines.conditional import ConditionalPipeline
from .failures import StoppedAtOnce, StopSignal
from .run import Run
from .validation import sample_images

_MOST_REAL = 5000


class Evaluator:
    """Kernel distance, precision and recall of a few samples against training images; see `evaluation.measures`.

    And the share of samples that lie closer to a training image than 99 % of held-out images do: where it rises, the
    run begins to copy. Of new images it is 0.01. The same noise and conditions every time, so that the numbers of a run
    compare. For numbers to be reported, and for obedience, there is `cond-pipelines evaluate`.

    Args:
        run: of its configuration num_evaluation_samples and feature_extractor.
        stop: a signal ends the sampling, so that the run is saved soon.

    Raises:
        ValueError: a streaming set, no such feature extractor, or images that are not of 8 bits.

    Example:
        >>> Evaluator(run, stop)(pipe)
        {'kernel_distance': 0.8, 'precision': 0.7, 'recall': 0.4, 'copies': 0.02}
    """

    def __init__(self, run: Run, stop: StopSignal):
        self.stop = stop
        config, data, accelerator = run.config, run.data, run.accelerator
        if data.train is None or config.value_range or config.aspect_buckets:
            raise ValueError("--evaluation_steps needs square 8-bit images that are not streamed")
        num_fewest = min(config.num_evaluation_samples, len(data.train))
        if num_fewest <= m.NUM_NEIGHBOURS:
            raise ValueError(
                f"--evaluation_steps needs more than {m.NUM_NEIGHBOURS} images to train on, and as many "
                f"--num_evaluation_samples: there are {num_fewest}"
            )
        self.accelerator, self.batch_size = accelerator, config.train_batch_size
        chosen = np.random.default_rng(config.seed).permutation(data.train)
        known = data.conditions(chosen[: config.num_evaluation_samples])
        self.conditions = [known[i % len(known)] for i in range(config.num_evaluation_samples)]
        self.extractor = load_extractor(config.feature_extractor, accelerator.device)
        if accelerator.is_main_process:
            real = chosen[:_MOST_REAL]
            images = (to_image(data.dataset[0, int(i)].pixels) for i in real)
            self.real = extract(self.extractor, images, len(real), what="training images")
            self.held_out: np.ndarray | None = None
            if count := len(data.held_out):
                held_out = (to_image(data.dataset[0, int(i)].pixels) for i in data.held_out)
                self.held_out = extract(self.extractor, held_out, count, what="held-out images")

    @torch.no_grad()
    def __call__(self, pipe: ConditionalPipeline) -> dict[str, float]:
        """Sample in all processes, measure in the main one; the others get nothing, nor does a run that is to stop."""
        desc = f"Sampling {len(self.conditions)} images to evaluate"
        sampling = {"num_inference_steps": None, "desc": desc, "batch_size": self.batch_size}
        try:
            images = sample_images(pipe, self.conditions, self.accelerator, on_step=self.stop.check, **sampling)
        except StoppedAtOnce as stopped:
            if str(stopped):  # a second Ctrl-C, or SIGQUIT
                raise
            return {}
        if not self.accelerator.is_main_process:
            return {}
        fake = extract(self.extractor, images, len(images), what="samples")
        manifolds = m.manifolds(self.real, fake)
        values = {"kernel_distance": m.kernel_distance(fake, self.real).mean()}
        values |= {name: manifolds[name].mean() for name in ("precision", "recall")}
        if self.held_out is not None:
            values["copies"] = m.copies(fake, self.real, self.held_out)[0].mean()
        return {name: float(value) for name, value in values.items()}
