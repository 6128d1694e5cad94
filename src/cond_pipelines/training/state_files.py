"""The state of a run as files that hold data and nothing that runs: safetensors, JSON, and tensors of `torch.save`.

model.safetensors                 the weights that are trained now
averages.safetensors              their moving averages
random_states_<rank>.safetensors  the random numbers of each process
state.json                        the scale of the loss, where there is one
optimizer.bin                     read by `torch.load(weights_only=True)`, which makes tensors and plain values only

accelerate's own `load_state` unpickles what is registered with it, and torch.distributed.checkpoint its metadata: both
run the code of whoever wrote the folder. So neither is used.
"""

import json
import os
import random
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ..errors import UserError, read_json, reading
from ..files import write_json

if TYPE_CHECKING:
    from .ema import WeightAverage

_MODEL, _OPTIMIZER, _AVERAGES, _STATE = "model.safetensors", "optimizer.bin", "averages.safetensors", "state.json"
_FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # read by torch.load, above its own argument
# Files of a checkpoint; under DeepSpeed its own too, in a folder.
_OF_DEEPSPEED = r"pytorch_model/[\w.-]+\.pt|latest|zero_to_fp32\.py"
KNOWN_FILE = re.compile(
    rf"{_MODEL}|{_OPTIMIZER}|{_AVERAGES}|{_STATE}|progress\.json|random_states_\d+\.safetensors|{_OF_DEEPSPEED}"
)
OLD_FILE = re.compile(r"custom_checkpoint_\d+\.pkl|random_states_\d+\.pkl|(pytorch_model_fsdp|optimizer)_0/.*")


def write_state(accelerator: Accelerator, folder: Path, averages: "Sequence[WeightAverage]") -> None:
    """Write all that was prepared, and the averages, into `folder`; every process must call it."""
    folder.mkdir(parents=True, exist_ok=True)
    kind, is_main = accelerator.distributed_type, accelerator.is_main_process
    for model in accelerator._models:
        if kind == DistributedType.DEEPSPEED:
            model.save_checkpoint(str(folder), "pytorch_model")
        elif kind == DistributedType.FSDP:
            weights = accelerator.get_state_dict(model)
            if is_main:
                save_file(_separate(weights), folder / _MODEL)
        elif is_main:
            save_model(accelerator.unwrap_model(model), str(folder / _MODEL))
    for optimizer in accelerator._optimizers if kind != DistributedType.DEEPSPEED else []:
        if kind == DistributedType.FSDP:
            state = get_optimizer_state_dict(accelerator._models[0], optimizer, options=_whole(accelerator))
        else:
            state = optimizer.state_dict()
        if is_main:
            torch.save(state, folder / _OPTIMIZER)
    states = [average.state_dict() for average in averages]
    if is_main and states:
        write_averages(folder, states)
    if is_main and accelerator.scaler is not None:
        write_json(folder / _STATE, {"loss_scale": accelerator.scaler.state_dict()})
    write_random_state(folder, accelerator.process_index, _random_state(accelerator))


def read_state(accelerator: Accelerator, folder: Path, averages: "Sequence[WeightAverage]") -> None:
    """Restore what `write_state` wrote; every process must call it.

    Raises:
        UserError: a file holds something else than tensors and plain values, or is not as it was written.
        RuntimeError: the weights are of another network.
    """
    kind = accelerator.distributed_type
    for model in accelerator._models:
        if kind == DistributedType.DEEPSPEED:
            with _weights_only():
                model.load_checkpoint(str(folder), "pytorch_model")
        elif kind == DistributedType.FSDP:
            whole = load_file(folder / _MODEL) if accelerator.is_main_process else {}
            set_model_state_dict(model, whole, options=_whole(accelerator))
        else:
            load_model(accelerator.unwrap_model(model), str(folder / _MODEL))
    _restore_loss_scale(accelerator, folder)  # before the optimizer: restoring FSDP2's takes a step of it
    for optimizer in accelerator._optimizers if kind != DistributedType.DEEPSPEED else []:
        if kind == DistributedType.FSDP:
            state = read_tensors(folder / _OPTIMIZER) if accelerator.is_main_process else {}
            set_optimizer_state_dict(accelerator._models[0], optimizer, state, options=_whole(accelerator))
        else:
            optimizer.load_state_dict(read_tensors(folder / _OPTIMIZER))
            _lay_out_as_weights(optimizer.optimizer)
    if averages:
        states = read_averages(folder)
        if len(states) != len(averages):
            raise UserError(f"{folder / _AVERAGES} holds {len(states)} averages, and this run has {len(averages)}")
        for average, state in zip(averages, states, strict=True):
            average.load_state_dict(state)
    path = folder / f"random_states_{accelerator.process_index}.safetensors"
    if path.is_file():  # of a run with fewer processes there is none
        _restore_random_state(accelerator, path)


def _lay_out_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """A state keeps the layout of the run that saved it, and AdamW's fused step on a CPU compares no layouts."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def read_tensors(path: Path) -> dict[str, Any]:
    """A file of `torch.save` that holds tensors and plain values. Raises UserError for anything else."""
    with reading(str(path)):
        _check_packed(path)
    with reading(f"{path} holds what is not read, since it could run code"):
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return found


def _check_packed(path: Path) -> None:
    """Refuse a file that unpacks to more than it has: torch.save compresses nothing."""
    with zipfile.ZipFile(path) as file:
        unpacked = sum(info.file_size for info in file.infolist())
    if unpacked > path.stat().st_size:
        raise UserError(f"{path} unpacks to {unpacked:,} bytes, which is more than it has: torch.save wrote it not")


def _whole(accelerator: Accelerator) -> StateDictOptions:
    """All of the sharded weights, in the main process, from which the others get theirs."""
    several = accelerator.num_processes > 1  # FSDP refuses a copy to the CPU in a single process
    return StateDictOptions(full_state_dict=True, cpu_offload=several, broadcast_from_rank0=several)


def _separate(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors takes no two tensors that share memory."""
    seen: set[int] = set()
    result = {}
    for name, value in weights.items():
        shared = value.untyped_storage().data_ptr() in seen
        seen.add(value.untyped_storage().data_ptr())
        result[name] = value.clone() if shared else value.contiguous()
    return result


@contextmanager
def _weights_only() -> Iterator[None]:
    """Within, `torch.load` reads tensors and plain values, whatever it is called with: DeepSpeed asks for objects."""
    before = os.environ.get(_FORCE_WEIGHTS_ONLY)
    os.environ[_FORCE_WEIGHTS_ONLY] = "1"
    try:
        with torch.serialization.safe_globals(_deepspeed_values()):
            yield
    finally:
        os.environ.pop(_FORCE_WEIGHTS_ONLY)
        if before is not None:
            os.environ[_FORCE_WEIGHTS_ONLY] = before


def _deepspeed_values() -> list[Callable[..., Any]]:
    """DeepSpeed's classes of plain values, which its checkpoints hold."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


# --------------------------------------------------------------------------------------------------- averages
def write_averages(folder: Path, states: Sequence[dict[str, Any]]) -> None:
    """averages.safetensors, of the state of each average."""
    tensors = {f"{i}.{j}": value for i, state in enumerate(states) for j, value in enumerate(state["values"])}
    steps = json.dumps([state["num_steps"] for state in states])
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / _AVERAGES, {"num_steps": steps})


def read_averages(folder: Path) -> list[dict[str, Any]]:
    """What `write_averages` wrote; none where there is no file. Raises UserError."""
    path = folder / _AVERAGES
    if not path.is_file():
        return []
    with reading(str(path)), safe_open(path, "pt") as file:
        steps = json.loads((file.metadata() or {})["num_steps"])
        counts = Counter(name.partition(".")[0] for name in file.keys())  # noqa: SIM118
        return [
            {"num_steps": int(step), "values": [file.get_tensor(f"{i}.{j}") for j in range(counts[str(i)])]}
            for i, step in enumerate(steps)
        ]


# ---------------------------------------------------------------------------------------------- random numbers
def _random_state(accelerator: Accelerator) -> dict[str, Any]:
    device = _device_module(accelerator)
    of_devices = device.get_rng_state_all() if hasattr(device, "get_rng_state_all") else []
    return {
        "step": accelerator.step,
        "torch_manual_seed": torch.get_rng_state(),
        "devices": of_devices,
        "random_state": random.getstate(),
        "numpy_random_seed": np.random.get_state(),
    }


def _device_module(accelerator: Accelerator) -> Any:
    """torch.cuda or its like; None for a CPU, whose numbers are torch's own."""
    return None if accelerator.device.type == "cpu" else torch.get_device_module(accelerator.device)


def write_random_state(folder: Path, rank: int, state: dict[str, Any]) -> None:
    """The random numbers of a process, named as accelerate names them."""
    version, words, gauss = state["random_state"]
    name, keys, position, has_gauss, cached = state["numpy_random_seed"]
    tensors = {"torch": state["torch_manual_seed"]}
    tensors |= {f"device.{i}": value for i, value in enumerate(state.get("devices", []))}
    tensors |= {"python": torch.tensor(words), "numpy": torch.tensor(keys.astype(np.int64))}
    rest = {"step": state["step"], "python": [version, gauss], "numpy": [name, position, has_gauss, cached]}
    save_file(tensors, folder / f"random_states_{rank}.safetensors", {"rest": json.dumps(rest)})


def _restore_random_state(accelerator: Accelerator, path: Path) -> None:
    with reading(str(path)), safe_open(path, "pt") as file:
        rest = json.loads((file.metadata() or {})["rest"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with reading(str(path)):
        accelerator.step = int(rest["step"])
        torch.set_rng_state(tensors["torch"])
        version, gauss = rest["python"]
        random.setstate((version, tuple(tensors["python"].tolist()), gauss))
        name, position, has_gauss, cached = rest["numpy"]
        np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
        of_devices = [tensors[f"device.{i}"] for i in range(sum(name.startswith("device.") for name in tensors))]
        device = _device_module(accelerator)
        if hasattr(device, "set_rng_state_all") and len(of_devices) == device.device_count():
            device.set_rng_state_all(of_devices)


def _restore_loss_scale(accelerator: Accelerator, folder: Path) -> None:
    if accelerator.scaler is None:
        return
    with reading(str(folder / _STATE)):
        accelerator.scaler.load_state_dict(read_json(folder / _STATE)["loss_scale"])
    if accelerator.is_fsdp2:
        accelerator.scaler._lazy_init_scale_growth_tracker(accelerator.scaler._device)


# ------------------------------------------------------------------------------------------ of earlier versions
def convert_state(old: Path, new: Path) -> None:
    """Write the state of a checkpoint of an earlier version into the folder `new`, reading tensors and numbers only.

    Raises:
        UserError: it holds something else, or was sharded into parts.
    """
    if next(old.glob("*_0/.metadata"), None):
        raise UserError(f"{old} was written in parts by FSDP: it cannot be converted; train with FULL_STATE_DICT")
    with reading(f"{old} cannot be converted"):
        weights = old / _MODEL
        tensors = load_file(weights) if weights.is_file() else read_tensors(old / "pytorch_model_fsdp.bin")
        if all(name.startswith("module.") for name in tensors):  # of several processes
            tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
        save_file(_separate(tensors), new / _MODEL)
        torch.save(read_tensors(old / _OPTIMIZER), new / _OPTIMIZER)
        averages = sorted(old.glob("custom_checkpoint_*.pkl"), key=lambda path: int(path.stem.rpartition("_")[2]))
        if averages:
            write_averages(new, [read_tensors(path) for path in averages])
        if (old / "scaler.pt").is_file():
            write_json(new / _STATE, {"loss_scale": read_tensors(old / "scaler.pt")})
        numbers = [np.ndarray, np.dtype, np.dtypes.UInt32DType, np.empty(0).__reduce__()[0]]
        for path in old.glob("random_states_*.pkl"):
            with torch.serialization.safe_globals(numbers):
                state = read_tensors(path)
            devices: list[Tensor] = next((v for k, v in state.items() if re.fullmatch(r"torch_\w+_manual_seed", k)), [])
            rank = int(path.stem.rpartition("_")[2])
            write_random_state(new, rank, {"step": 0, "devices": devices} | state)
