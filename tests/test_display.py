"""What a notebook shows of a pipeline, and `pipe.grid`."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from cond_pipelines import (
    ClassConditionalPipeline,
    ClassLabelAdapter,
    UnconditionalAdapter,
    UnconditionalPipeline,
    build_unet,
    display,
    image_grid,
    sample_grid,
)

HOSTILE = "</td><script>alert(1)</script><img src=x onerror='y'>\x1b[31m\u202eevil \"quoted\""


class Tags(HTMLParser):
    """All tags and attributes of a text."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return build_unet("xxs", sample_size=8, block_out_channels=(32, 32))


def pipe_of(unet, labels):
    adapter = ClassLabelAdapter.for_unet(unet, id2label=labels)
    scheduler = FlowMatchEulerDiscreteScheduler()
    return ClassConditionalPipeline(unet, adapter=adapter, scheduler=scheduler, default_num_inference_steps=2)


@pytest.fixture
def pipe(unet):
    return pipe_of(unet, {0: "cat", 1: HOSTILE})


def picture_in(shown):
    png = base64.b64decode(re.search(r'src="data:image/png;base64,([^"]+)"', shown)[1])
    return Image.open(io.BytesIO(png))


def test_a_notebook_shows_what_it_is_and_four_samples(pipe, capsys):
    shown = pipe._repr_html_()
    for words in ("ClassConditionalPipeline", "p(x|y)", "8 x 8 px", "cat", "num_inference_steps=2", "UNet2DCondition"):
        assert words in shown, words
    labels = ["cat", HOSTILE] * 2
    images = pipe(labels, generator=[torch.Generator().manual_seed(seed) for seed in range(4)]).images
    expected = image_grid(images, columns=4, captions=labels)
    assert np.array_equal(np.asarray(picture_in(shown).convert("RGB")), np.asarray(expected))


def test_labels_of_others_stay_text(pipe):
    tags = Tags(pipe._repr_html_()).found
    assert {tag for tag, _ in tags} == {"div", "p", "b", "table", "tr", "td", "img"}
    assert [sorted(attributes) for tag, attributes in tags if attributes] == [["alt", "src"]]
    assert "\x1b" not in pipe._repr_html_() and "\u202e" not in pipe._repr_html_()


def test_a_display_leaves_the_pipeline_and_the_random_numbers_as_they_were(pipe, capsys):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    pipe.set_progress_bar_config(desc="mine")
    pipe._repr_html_()
    assert torch.equal(torch.get_rng_state(), before)
    assert pipe._progress_bar_config == {"desc": "mine"} and capsys.readouterr().err == ""


def test_what_stands_in_the_way_of_samples_is_a_line(pipe, monkeypatch):
    pipe.register_to_config(default_num_inference_steps=0)
    assert "No samples: " in pipe._repr_html_()
    monkeypatch.setitem(display._MAX_PARAMETERS, "cpu", 1)
    assert "large for a cpu" in pipe._repr_html_()


def test_many_classes_are_counted(unet):
    assert "(40 in all)" in pipe_of(unet, {i: f"class {i}" for i in range(40)})._repr_html_()


def test_an_unconditional_pipeline_has_no_examples(unet):
    adapter = UnconditionalAdapter.for_unet(unet)
    pipe = UnconditionalPipeline(
        unet, adapter=adapter, scheduler=FlowMatchEulerDiscreteScheduler(), default_num_inference_steps=1
    )
    assert "classes" not in pipe._repr_html_() and "<img" in pipe._repr_html_()


def test_grid_is_sample_grid(pipe):
    arguments = {"rows": ["cat", None], "columns": {"guidance_scale": [1, 4]}, "num_images": 2, "seed": 3}
    assert pipe.grid(**arguments).tobytes() == sample_grid(pipe, **arguments).tobytes()
