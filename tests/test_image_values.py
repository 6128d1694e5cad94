"""Images given to a model mean what its training images meant: the values of its --value_range."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from pipelines_common import quiet

from cond_pipelines import UnconditionalAdapter, UnconditionalPipeline, build_unet
from cond_pipelines.evaluation.likelihood import _x_0

HIGH = 4095.0


def pipe_of(value_range, channels=1):
    torch.manual_seed(0)
    unet = build_unet("xxs", sample_size=8, channels=channels)
    adapter = UnconditionalAdapter.for_unet(unet)
    return quiet(UnconditionalPipeline(unet, FlowMatchEulerDiscreteScheduler(), adapter, value_range=value_range))


@pytest.fixture(scope="module")
def pipe():
    return pipe_of({"low": 0.0, "high": HIGH})


VALUES = np.linspace(0, HIGH, 64).round().astype(np.uint16).reshape(8, 8)
SIGNED = torch.from_numpy(VALUES.astype(np.float32) / HIGH * 2 - 1)[None, None]


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(VALUES),
        Image.fromarray(VALUES.astype(np.int32)),
        Image.fromarray(VALUES.astype(np.float32)),
        VALUES,
    ],
    ids=["I;16", "I", "F", "array"],
)
def test_an_image_of_16_bits(pipe, image):
    """As the same image in [-1, 1]; PIL's own conversion would cut all values above 255."""
    call = {"strength": 0.5, "num_inference_steps": 2, "output_type": "pt"}
    theirs, ours = (
        pipe(image=given, generator=torch.Generator().manual_seed(0), **call).images for given in (SIGNED, image)
    )
    assert torch.allclose(theirs, ours, atol=1e-6)
    assert torch.allclose(_x_0(pipe, [image], 0), SIGNED, atol=1e-6)


def test_what_does_not_fit_is_refused(pipe):
    with pytest.raises(ValueError, match="image has values from 0 to 65535, outside of 0 to 4095"):
        pipe(image=Image.fromarray(np.where(VALUES == HIGH, 65535, VALUES).astype(np.uint16)), strength=0.5)
    with pytest.raises(ValueError, match="need a model that was trained with --value_range"):
        pipe_of(None)(image=Image.fromarray(VALUES), strength=0.5)
