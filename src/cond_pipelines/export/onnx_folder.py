"""A model's networks as ONNX in one folder, each compared with PyTorch before the folder gets its name.

text_encoder.onnx   token ids -> features                       of a model of captions
adapter.onnx        features -> the condition, and "no condition"
unet.onnx           noised images, timestep, condition -> prediction
vae_decoder.onnx    latents -> images                           of a latent model
model.json          inputs, outputs, defaults; scheduler/ and tokenizer/ as diffusers and transformers save them
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..adapters.base import Conditioning
from ..adapters.denoiser import denoise, takes_end_time
from ..errors import UserError, reading
from ..files import write_json

if TYPE_CHECKING:
    from ..pipelines.conditional import ConditionalPipeline

_MAX_DIFFERENCE = 1e-4  # of the largest number of an output, or of 1 where that is smaller
_OPSET = 18


class _TextEncoder(nn.Module):
    """Token ids to features, as the adapter takes them."""

    def __init__(self, pipe: "ConditionalPipeline", names: Sequence[str]):
        super().__init__()
        self.adapter, self.encoder, self.names = pipe.adapter, pipe.text_encoder, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.adapter.encode(dict(zip(self.names, inputs, strict=True)), self.encoder).values())


class _Adapter(nn.Module):
    """Features to (tokens, mask, pooled) of the condition, then of no condition; those that the network takes."""

    def __init__(self, pipe: "ConditionalPipeline", names: Sequence[str]):
        super().__init__()
        self.adapter, self.names = pipe.adapter, names

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        cond = self.adapter(dict(zip(self.names, features, strict=True)))
        return (*_parts(cond).values(), *_parts(self.adapter.null_like(cond)).values())


class _Network(nn.Module):
    """The denoiser: (sample, timestep, [end_timestep,] tokens, mask, pooled) to the prediction."""

    def __init__(self, network: nn.Module, names: Sequence[str]):
        super().__init__()
        self.network, self.names = network, names

    def forward(self, sample: Tensor, timestep: Tensor, *others: Tensor) -> Tensor:
        given = dict(zip(self.names, others, strict=True))
        end = given.pop("end_timestep", None)
        return denoise(self.network, sample, timestep, Conditioning(**given), end)


class _Decoder(nn.Module):
    """Latents to images in [-1, 1]."""

    def __init__(self, pipe: "ConditionalPipeline"):
        super().__init__()
        self.vae, self.decode = pipe.vae, pipe.decode

    def forward(self, latents: Tensor) -> Tensor:
        return self.decode(latents)


def _parts(cond: Conditioning) -> dict[str, Tensor]:
    """The tensors of a condition, with a mask wherever there are tokens."""
    parts = {} if cond.tokens is None else {"tokens": cond.tokens, "mask": cond.mask}
    if cond.tokens is not None and cond.mask is None:
        parts["mask"] = torch.ones_like(cond.tokens[..., 0], dtype=torch.bool)
    return parts if cond.pooled is None else parts | {"pooled": cond.pooled}


@torch.no_grad()
def write_onnx(pipe: "ConditionalPipeline", folder: Path) -> float:
    """Write a model's networks into a folder, and run each with onnxruntime on other conditions than it was made with.

    Returns:
        The largest difference from PyTorch, as a share of the largest number of an output (or of 1).

    Raises:
        UserError: a package is missing, a network cannot be exported, or one differs by more than 1e-4.

    Example:
        >>> write_onnx(ConditionalPipeline.from_pretrained("path/to/model"), Path("onnx"))
    """
    try:
        import onnx  # noqa: F401 (torch.onnx needs it)
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(f"--to onnx needs the package {error.name}: pip install onnx onnxruntime") from error
    folder.mkdir(parents=True, exist_ok=True)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    made_of, checked_with = _conditions(pipe)
    inputs = [pipe.adapter.preprocess(raw, getattr(pipe, "tokenizer", None)) for raw in (made_of, checked_with)]
    written, differences = {}, []

    def write(
        name: str, module: nn.Module, names: Sequence[str], outputs: Sequence[str], *two: Sequence[Tensor]
    ) -> None:
        with reading(f"{name} to onnx"):
            _export(module.eval(), folder / f"{name}.onnx", names, outputs, two[0])
            difference = _difference(module, folder / f"{name}.onnx", names, two[1])
        if not difference <= _MAX_DIFFERENCE:
            raise UserError(f"{name}.onnx differs from PyTorch by {difference:.1e}: nothing is written")
        written[name] = {"inputs": list(names), "outputs": list(outputs)}
        differences.append(difference)

    features = inputs
    if getattr(pipe, "text_encoder", None) is not None:
        module = _TextEncoder(pipe, list(inputs[0]))
        features = [pipe.adapter.encode(x, pipe.text_encoder) for x in inputs]
        write("text_encoder", module, list(inputs[0]), list(features[0]), *(list(x.values()) for x in inputs))
    conditions = [_parts(pipe.adapter(x)) for x in features]
    names = list(conditions[0])
    outputs = [f"{kind}_{name}" for kind in ("cond", "null") for name in names]
    write(
        "adapter", _Adapter(pipe, list(features[0])), list(features[0]), outputs, *(list(x.values()) for x in features)
    )
    for name in ("unet", "guide"):
        if (network := pipe.components.get(name)) is not None:
            others = (["end_timestep"] if takes_end_time(network) else []) + names
            two = [_network_inputs(pipe, network, condition) for condition in conditions]
            write(name, _Network(network, others), ["sample", "timestep", *others], ["prediction"], *two)
    if pipe.components.get("vae") is not None:
        two = [[x[0][:, : pipe.unet.config.out_channels]] for x in two]
        write("vae_decoder", _Decoder(pipe), ["latents"], ["images"], *two)
    _describe(pipe, folder, written)
    return max(differences)


def _conditions(pipe: "ConditionalPipeline") -> tuple[list[object], list[object]]:
    """Raw conditions to make the networks with, two, and others to compare them with, three."""
    adapter = pipe.adapter
    one: object = None
    other: object = None
    if hasattr(adapter, "id2label"):
        one, other = 0, adapter.config.num_classes - 1
    elif getattr(pipe, "text_encoder", None) is not None:
        one, other = "a picture of two words", "another picture with a longer caption than the one that came before it"
    elif "embedding_dim" in adapter.config:
        one, other = [0.5] * adapter.config.embedding_dim, [-1.0] * adapter.config.embedding_dim
    return [one, None], [other, None, one]


def _network_inputs(pipe: "ConditionalPipeline", network: nn.Module, condition: dict[str, Tensor]) -> list[Tensor]:
    size = pipe.unet.config.sample_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    count = len(next(iter(condition.values())))
    generator = torch.Generator().manual_seed(count)
    sample = torch.randn(count, network.config.in_channels, height, width, generator=generator)
    timestep = torch.linspace(900, 50, count)  # (B,)
    end = [timestep / 2] if takes_end_time(network) else []
    return [sample, timestep, *end, *condition.values()]


def _export(
    module: nn.Module, path: Path, names: Sequence[str], outputs: Sequence[str], inputs: Sequence[Tensor]
) -> None:
    """Write one network; the number of images and of tokens stay free."""
    axes = {name: {0: "images"} for name in [*names, *outputs]}
    for name, x in zip(names, inputs, strict=True):
        if (x.ndim == 2 and not x.is_floating_point()) or x.ndim == 3:
            axes[name][1] = f"length_of_{name}"
    for name in outputs:
        if name.endswith(("tokens", "mask", "hidden_states")):
            axes[name][1] = f"length_of_{name}"
    with warnings.catch_warnings():
        # The tracer warns that it may have taken a number for a constant: `_difference` runs it with other numbers.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(inputs),
            str(path),
            input_names=list(names),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=_OPSET,
            dynamo=False,  # the newer exporter of torch 2.13 takes no mask of a free length
        )


def _difference(module: nn.Module, path: Path, names: Sequence[str], inputs: Sequence[Tensor]) -> float:
    """The largest difference of an output between onnxruntime and PyTorch, relative to its largest number."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    order = [entry.name for entry in session.get_inputs()]
    given = dict(zip(names, inputs, strict=True))
    outputs = session.run(None, {name: given[name].numpy() for name in order})  # an input without effect is left out
    expected = module(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    worst = 0.0
    for ours, theirs in zip(expected, map(torch.from_numpy, outputs), strict=True):
        if ours.shape != theirs.shape:
            return float("inf")
        scale = max(1.0, float(ours.float().abs().max()))
        worst = max(worst, float((ours.float() - theirs.float()).abs().max()) / scale)
    return worst


def _describe(pipe: "ConditionalPipeline", folder: Path, written: Mapping[str, object]) -> None:
    """Write what a program needs to draw with the networks."""
    size = pipe.unet.config.sample_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = pipe.unet.config.in_channels
    facts = {
        "pipeline": type(pipe).__name__,
        "networks": written,
        "sample_shape": [channels, height, width],
        "num_inference_steps": pipe.config.default_num_inference_steps,
        "guidance_scale": pipe.config.default_guidance_scale,
        "id2label": {str(i): name for i, name in getattr(pipe.adapter, "id2label", {}).items()} or None,
        "objective": pipe.config.objective,
    }
    write_json(folder / "model.json", facts)
    pipe.scheduler.save_pretrained(folder / "scheduler")
    if getattr(pipe, "tokenizer", None) is not None:
        pipe.tokenizer.save_pretrained(folder / "tokenizer")
