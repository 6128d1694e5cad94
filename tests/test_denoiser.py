"""How a network is called: both UNets, compiled and wrapped, and a backbone of one's own."""

import diffusers
import numpy as np
import pytest
import torch
import torch.distributed as dist
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from parents_common import unet2d
from pipelines_common import ID2LABEL, generators, quiet, sample, tiny_unet, trained
from tiny_uvit import TinyUViT
from training_common import ROUNDING_OF_LOSS, log_of, run

from cond_pipelines import ClassConditionalPipeline, ClassLabelAdapter, ConditionalPipeline, TextAdapter
from cond_pipelines.networks.denoiser import denoise, size_multiple, socket, unwrapped
from cond_pipelines.networks.surgery import with_socket
from cond_pipelines.networks.text_encoders import new_text_encoder
from cond_pipelines.networks.unet_sizes import NetworkSize
from cond_pipelines.training.config import TrainingConfig
from cond_pipelines.training.state import ConditionalDenoiser

NETWORKS = {"UNet2DConditionModel": tiny_unet, "UNet2DModel": lambda: with_socket(unet2d()), "TinyUViT": TinyUViT}


def pipeline(unet) -> ClassConditionalPipeline:
    adapter = trained(ClassLabelAdapter.for_unet(unet, id2label=ID2LABEL))
    return quiet(ClassConditionalPipeline(unet, diffusers.FlowMatchEulerDiscreteScheduler(), adapter))


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """A process group of one, which DistributedDataParallel needs."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("wrap", ["compiled", "distributed", "both"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_wrapped_network_is_called_as_what_it_wraps(kind, wrap, one_process):
    torch.manual_seed(0)
    unet = NETWORKS[kind]().eval()
    pipe = pipeline(unet)
    expected = sample(pipe, class_labels=["star", 0])
    wrapped = unet
    if wrap != "distributed":
        wrapped = torch.compile(wrapped, backend="eager")
    if wrap != "compiled":
        wrapped = torch.nn.parallel.DistributedDataParallel(wrapped)
    assert unwrapped(wrapped) is unet and socket(wrapped) == socket(unet)
    assert size_multiple(wrapped) == size_multiple(unet)
    pipe.unet = wrapped
    assert np.array_equal(sample(pipe, class_labels=["star", 0]), expected)
    assert np.array_equal(sample(pipeline(wrapped), class_labels=["star", 0]), expected)


def test_the_size_multiple():
    assert size_multiple(tiny_unet()) == 1 and size_multiple(TinyUViT()) == 2
    unet = unet2d()
    assert size_multiple(unet) == 2 ** (len(unet.config.block_out_channels) - 1)


# --------------------------------------------------------------------------------------------- another backbone
@pytest.fixture
def uvit():
    torch.manual_seed(0)
    return TinyUViT().eval()


def test_another_backbone_samples_under_every_setting(uvit, tmp_path):
    text_encoder, tokenizer = new_text_encoder(["a star", "a red circle"], hidden_size=16, num_layers=1)
    adapter = trained(TextAdapter.for_unet(uvit, text_encoder=text_encoder))
    assert (adapter.config.token_dim, adapter.config.pooled_dim) == socket(uvit) == (8, 12)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    text = quiet(ConditionalPipeline(uvit, scheduler, adapter, None, text_encoder, tokenizer))
    images = sample(text, condition=["a star", "a red circle"])
    assert images.shape == (2, 8, 8, 3) and np.isfinite(images).all() and np.ptp(images) > 0
    assert not np.array_equal(images, sample(text, condition=[None, "a star"]))
    with pytest.raises(ValueError, match="height 7 and width 8 must be multiples of 2"):
        text(["a star"], height=7, width=8)


def test_another_backbone_learns(uvit):
    """Through the module that training wraps: the loss falls, and every weight gets a gradient."""
    pipe = pipeline(uvit)
    denoiser = ConditionalDenoiser(pipe, [pipe.unet, pipe.adapter]).train()
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-2)
    features = pipe.adapter.preprocess(["star", "circle", None, "square"])
    x_t, target = torch.randn(2, 4, 3, 8, 8, generator=generators(1)[0])
    losses = []
    for _ in range(20):
        prediction = denoiser(x_t, torch.full((4,), 500.0), features, torch.tensor([True, True, True, False]))
        loss = (prediction - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in denoiser.parameters()) and losses[-1] < 0.8 * losses[0]


def test_another_backbone_is_saved_and_loaded(uvit, tmp_path):
    pipe = pipeline(uvit)
    pipe.save_pretrained(tmp_path)
    loaded = quiet(ConditionalPipeline.from_pretrained(tmp_path))
    assert type(loaded.unet) is TinyUViT
    assert np.array_equal(sample(loaded, class_labels=["star", 0]), sample(pipe, class_labels=["star", 0]))


def test_another_backbone_is_trained_by_its_row_of_the_table(tmp_path):
    folder = run(tmp_path, unet_size="tiny_uvit:TINY_UVIT", conditioning="class", learning_rate=None)
    assert np.isfinite(log_of(folder)).all()
    pipe = quiet(ConditionalPipeline.from_pretrained(folder))
    assert type(pipe.unet) is TinyUViT and np.isfinite(sample(pipe, class_labels=["circle", 0])).all()


class OneLayer(ModelMixin, ConfigMixin):
    """A network that is compiled in seconds."""

    @register_to_config
    def __init__(self, sample_size=8, in_channels=3, cross_attention_dim=4, projection_class_embeddings_input_dim=4):
        super().__init__()
        self.conv = torch.nn.Conv2d(in_channels, in_channels, 1)
        self.proj = torch.nn.Linear(projection_class_embeddings_input_dim, in_channels)

    def forward(self, sample, timestep, encoder_hidden_states, encoder_attention_mask, class_labels, return_dict=True):
        return (self.conv(sample) + self.proj(class_labels)[:, :, None, None],)


ONE_LAYER = NetworkSize(0.001, 1e-2, backbone=OneLayer)


def test_compile(tmp_path):
    """`--compile` for real: a compiled graph is called, its losses are the same, what it saves is not compiled."""
    graphs = torch._dynamo.utils.counters["stats"]
    folders, num_graphs = [], []
    for is_compiled in (False, True):
        before = graphs["unique_graphs"]
        changes = {"unet_size": f"{__name__}:ONE_LAYER", "conditioning": "class", "compile": is_compiled}
        folders.append(run(tmp_path / str(is_compiled), **changes))
        num_graphs.append(graphs["unique_graphs"] - before)
    assert num_graphs[0] == 0 and num_graphs[1] > 0
    eager, compiled = map(log_of, folders)
    assert len(eager) == 4 and np.allclose(eager, compiled, rtol=ROUNDING_OF_LOSS)
    for folder in folders:
        pipe = quiet(ConditionalPipeline.from_pretrained(folder))
        assert type(pipe.unet) is OneLayer and np.isfinite(sample(pipe, class_labels=["circle", 0])).all()


def test_a_network_size_that_is_none():
    with pytest.raises(ValueError, match="'tiny_uvit:TinyUViT' is a type, and a NetworkSize is needed"):
        TrainingConfig(unet_size="tiny_uvit:TinyUViT")


def test_denoise_is_the_network(uvit):
    cond = ClassLabelAdapter.for_unet(uvit, num_classes=2)
    cond = trained(cond)(cond.preprocess([0, None]))
    x_t, t = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0])
    expected = uvit(x_t, t, cond.tokens, cond.mask, cond.pooled)[0]
    assert torch.equal(denoise(uvit, x_t, t, cond), expected)
