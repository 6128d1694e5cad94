"""Saving with the code that others need; loading without running theirs.

A saved pipeline holds its own code in addition to the files of diffusers:

    model_index.json                    "_class_name": ["pipeline_cond_1a2b3c4d5e", "TextToImagePipeline"], ...
    pipeline_cond_1a2b3c4d5e.py         the pipelines in one file
    adapter/modeling_cond_6f7a8b9c0d.py the adapter

diffusers alone runs that code with trust_remote_code=True. The installed package never does: it reads the names as
those of its own classes. The file names hold a hash of their text, since diffusers keeps the code of all repositories
in one folder.

This file is self-contained on purpose: it travels with a checkpoint.
"""

import hashlib
import importlib
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging
from torch import Tensor

from .joined_code import _PACKAGE, adapter_code, pipeline_code

if TYPE_CHECKING:
    from PIL.Image import Image

    from cond_pipelines.evaluation.likelihood import Classification

logger = logging.get_logger(__name__)
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token", "revision")
_INSTALLED = __name__.startswith(f"{_PACKAGE}.")  # otherwise this is the copy in a checkpoint
_LIBRARIES = ("diffusers", "diffusers.guiders", "transformers")
_CODE_FILE = re.compile(r"(pipeline|modeling)_cond_[0-9a-f]{10}")


class PortablePipeline(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    """A DiffusionPipeline of this package that loads wherever diffusers is, and takes diffusers' LoRA files."""

    text_encoder: Any = None  # the mixin asks for it in the settings that have none

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """As diffusers' own, with the code of the pipeline and its adapter.

        Weights are saved as safetensors only: with safe_serialization=False too, and a warning says so.
        """
        if not safe_serialization:
            logger.warning("safe_serialization=False: pickled weights can run code, so safetensors are written instead")
        pushing = ("repo_id", "private", "token", "commit_message", "create_pr", "revision")
        push_kwargs = {name: kwargs.pop(name) for name in pushing if name in kwargs}
        before = {path: path.stat().st_mtime_ns for path in Path(save_directory).glob("*/*.safetensors.index.json")}
        super().save_pretrained(save_directory, variant=variant, max_shard_size=max_shard_size, **kwargs)
        _remove_replaced_shards(before)
        add_code(self, Path(save_directory))
        if push_to_hub:
            repo_id = push_kwargs.pop("repo_id", Path(save_directory).name)
            self.push_to_hub(repo_id, variant=variant, **push_kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Save this pipeline with its code and a model card, and upload it in one commit.

        Args:
            repo_id: "name" or "user/name"; made where it does not exist.
            private, token, commit_message, create_pr, variant: as diffusers' own.
            revision: the branch to commit to; made where it does not exist.

        Returns:
            The address of the commit.

        Raises:
            RuntimeError: the Hub did not take it, in one line; the repository is then as it was.

        Example:
            >>> pipe.push_to_hub("me/flowers", private=True)
        """
        if _INSTALLED:
            commit: str = self._installed("sharing.push").push_pipeline(self, repo_id, **kwargs)
            return commit  # with attributes of its own, such as pr_url
        kwargs.pop("revision", None)  # diffusers' own has no such argument
        return str(super().push_to_hub(repo_id, **kwargs))

    @classmethod
    def load_lora_into_text_encoder(cls, state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """As diffusers' own, which warns of every file that has nothing for a text encoder."""
        if any(name.startswith(f"{cls.text_encoder_name}.") for name in state_dict):
            super().load_lora_into_text_encoder(state_dict, *args, **kwargs)

    def classify(self, images: "Tensor | list[Image]", conditions: list[object], **kwargs: int) -> "Classification":
        """p(y|x) from p(x|y): under which of several conditions each image was drawn."""
        result: Classification = self._installed("evaluation.likelihood").classify(self, images, conditions, **kwargs)
        return result

    def bits_per_dim(
        self, images: "Tensor | list[Image]", conditions: list[object] | None = None, **kwargs: int
    ) -> Tensor:
        """The variational bound on -log2 p(image) a pixel value, (N,); see `evaluation.likelihood`."""
        return self._installed("evaluation.likelihood").bits_per_dim(self, images, conditions, **kwargs)

    def grid(
        self, rows: Sequence[object] = (None,), columns: dict[str, Sequence[object]] | None = None, **kwargs: Any
    ) -> "Image":
        """One picture, a row for each condition and a column for each setting; see `cond_pipelines.sample_grid`.

        Example:
            >>> pipe.grid(rows=["circle", "ring"], columns={"guidance_scale": [1, 2, 4]}).save("grid.png")
        """
        picture: Image = self._installed("grids").sample_grid(self, rows, columns, **kwargs)
        return picture

    def _repr_html_(self) -> str | None:
        """What a notebook shows of it; None: its plain text."""
        return str(self._installed("display").html_of(self)) if _INSTALLED else None

    def to_stable_diffusion(self) -> DiffusionPipeline:
        """diffusers' StableDiffusionPipeline with the same parts and the same images; see `networks.pretrained`."""
        return self._installed("networks.pretrained").to_stable_diffusion(self)

    @classmethod
    def _installed(cls, module: str) -> ModuleType:
        if not _INSTALLED:
            raise ImportError("this needs cond_pipelines, the package of the model: run pip install . in a clone of it")
        return importlib.import_module(f"{_PACKAGE}.{module}")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> "PortablePipeline":
        """As diffusers' own; on `ConditionalPipeline` it returns the subclass that was saved.

        A checkpoint of diffusers' own (Stable Diffusion, DDPM, DDIM, LDM) becomes a pipeline of the same setting, see
        `networks.pretrained`. Installed code only: no code of a repository is run, and no weights but safetensors are
        read. Without `dtype` every network is float32, whatever the files are: otherwise transformers would keep a text
        encoder in half precision, while diffusers' UNet is in float32.

        Raises:
            ValueError: the model is of another setting (the message names its class), holds pickled weights, or has
                a component of a package that is not imported.
        """
        if Path(pretrained_model_name_or_path).is_file():
            return cls._from_single_file(Path(pretrained_model_name_or_path), **kwargs)
        path = pretrained_model_name_or_path
        known = {c.__name__: c for c in _subclasses(PortablePipeline) if hasattr(c, "sample")}
        if _INSTALLED and Path(path).is_dir():
            cls._installed("folders").check_model_folder(path)
        parents = cls._installed("networks.pretrained") if _INSTALLED else None
        hub = {k: kwargs[k] for k in _HUB_ARGUMENTS if k in kwargs}
        try:
            index = cls.load_config(path, **hub)
        except OSError:  # a UNet without a pipeline around it
            index = parents and parents.index_of_unet(path, **hub)
            if index is None:
                raise
        name = index["_class_name"]
        is_parent = parents is not None and name in parents.PARENTS
        if name not in known and not is_parent:
            raise ValueError(
                f"{path} holds a {name}, which is none of {', '.join(known)}: if it is of another package, import that "
                f"first; if it is diffusers' own, use diffusers.{name}.from_pretrained"
            )
        if kwargs.get("use_safetensors") is False:
            raise ValueError("use_safetensors=False would read pickled weights, which can run code: leave it out")
        kwargs["use_safetensors"] = True
        if _INSTALLED:
            kwargs.pop("trust_remote_code", None)  # there is nothing to trust
            if kwargs.get("torch_dtype") is None and kwargs.get("dtype") is None:
                kwargs["dtype"] = torch.float32
        try:
            pipe: PortablePipeline
            if parents is not None and is_parent:
                pipe = parents.load(cls, path, index, **kwargs)
                return pipe
            if not issubclass(known[name], cls):
                raise ValueError(f"{path} holds a {name}: use {name}.from_pretrained")
            absent = [component for component, value in index.items() if value == [None, None]]
            kwargs = dict.fromkeys(absent) | kwargs  # whether diffusers has them for optional or not
            pipe = DiffusionPipeline.from_pretrained.__func__(known[name], path, **kwargs)
            return pipe
        except Exception as error:  # safetensors' own is no OSError
            refused = cls._what_lacks(path, error)
            if refused is None:
                raise
            raise ValueError(refused) from error

    @classmethod
    def _what_lacks(cls, path: str | os.PathLike[str], error: Exception) -> str | None:
        """What to say of weights that cannot be read; None where it is something else."""
        damaged = cls._installed("folders").damaged_weights(path, error) if _INSTALLED and Path(path).is_dir() else None
        if damaged is not None or not isinstance(error, OSError) or "safetensors" not in str(error):
            return damaged
        return (
            f"{path} lacks weights as safetensors (pickled ones can run code when they are read, and are refused): "
            f"{' '.join(str(error).split())}"
        )

    @classmethod
    def _from_single_file(cls, path: Path, **kwargs: Any) -> "PortablePipeline":
        """Stable Diffusion 1.x or 2.x in one .safetensors file, by diffusers' `from_single_file`."""
        if path.suffix != ".safetensors":
            raise ValueError(f"{path} is no .safetensors file (a .ckpt can run code when it is read): convert it first")
        kwargs.setdefault("dtype", torch.float32)
        pipe: PortablePipeline = cls._installed("networks.single_file").load_single_file(cls, path, **kwargs)
        return pipe

    @classmethod
    def download(cls, pretrained_model_name: str | os.PathLike[str], **kwargs: Any) -> str | os.PathLike[str]:
        """As diffusers' own; what came is looked at before it is loaded."""
        folder: str | os.PathLike[str] = super().download(pretrained_model_name, **kwargs)
        if _INSTALLED:
            cls._installed("folders").check_model_folder(folder)
        return folder

    @classmethod
    def lora_state_dict(cls, pretrained_model_name_or_path_or_dict: Any, **kwargs: Any) -> Any:
        """As diffusers' own, of safetensors only. Raises ValueError for weights that are pickled."""
        given = pretrained_model_name_or_path_or_dict
        for name in (kwargs.get("weight_name"), given if os.path.isfile(str(given)) else None):
            if name is not None and not str(name).endswith(".safetensors"):
                raise ValueError(f"{name} is no safetensors file: pickled weights can run code when they are read")
        kwargs["use_safetensors"] = True
        if not _INSTALLED:
            return super().lora_state_dict(given, **kwargs)
        lora_files = cls._installed("networks.lora_files")
        return lora_files.with_plain_metadata(super().lora_state_dict(lora_files.checked_place(given), **kwargs), given)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike[str]) -> dict[str, Any]:
        config: dict[str, Any] = super()._dict_from_json_file(json_file)
        name = config.get("_class_name")
        if isinstance(name, list):  # [file, class]: the class is ours, the file is not needed
            config["_class_name"] = name[1]
        return config

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        config = super().load_config(pretrained_model_name_or_path, *args, **kwargs)
        if _INSTALLED:
            _use_installed(config[0] if isinstance(config, tuple) else config, pretrained_model_name_or_path)
        return config


def _use_installed(config: dict[str, Any], name_or_path: str | os.PathLike[str]) -> None:
    """Replace the adapter's file by the module of the class of that name, and refuse components of anything else."""
    adapters = importlib.import_module(f"{_PACKAGE}.adapters")
    importlib.import_module(f"{_PACKAGE}.pipelines")
    pretrained = importlib.import_module(f"{_PACKAGE}.networks.pretrained")
    pretrained.check_components(config, name_or_path)
    ignored = pretrained.IGNORED.get(config.get("_class_name"), ())
    for component, value in config.items():
        if not isinstance(value, list) or component.startswith("_") or len(value) != 2 or value[1] is None:
            continue
        module, name = value
        if component == "adapter":
            home = config.get("_adapter_from", None if _CODE_FILE.fullmatch(str(module)) else module)
            named = [c for c in _subclasses(adapters.ConditioningAdapter) if c.__name__ == name]
            named = [c for c in named if home in (None, c.__module__)] or named
            if not named:
                package = str(home).split(".")[0]
                raise ValueError(
                    f"{name_or_path} has an adapter {name} of the package {package!r}, which is not imported: "
                    f"install it, `import {package}`, then load again"
                )
            config[component] = [named[0].__module__, name]
        elif component not in ignored and module not in _LIBRARIES and not _is_imported(*value):
            raise ValueError(
                f"{name_or_path} has a component {component!r} of {module!r}, which is not loaded without trust: only "
                "diffusers, transformers and networks that you have imported are. If you have read the "
                "repository's code, use diffusers.DiffusionPipeline.from_pretrained(..., trust_remote_code=True)"
            )


def _is_imported(module: str, name: str) -> bool:
    """Whether this is a network of a module that the user has imported: loading it runs nothing new."""
    return any(c.__name__ == name and c.__module__ == module for c in _subclasses(ModelMixin))


def _subclasses(cls: type) -> list[type]:
    direct: list[type] = cls.__subclasses__()
    return [cls, *(deeper for each in direct for deeper in _subclasses(each))]


# ------------------------------------------------------------------------------------------------------ saving


def add_code(pipe: DiffusionPipeline, folder: Path) -> None:
    """Write the code of the pipeline and its adapter into `folder`, and name it in model_index.json."""
    index_file = folder / "model_index.json"
    index = json.loads(index_file.read_text(encoding="utf-8"))
    file_name = _write(folder, "pipeline", pipeline_code(type(pipe)))
    index["_class_name"] = [file_name, type(pipe).__name__]
    index.pop("_name_or_path", None)  # a path of this machine
    if pipe.guider is not None and not hasattr(diffusers, type(pipe.guider).__name__):
        index["guider"][0] = "diffusers.guiders"  # diffusers 0.42 does not export all of its guiders
    if pipe.adapter is not None:
        index |= _add_adapter_code(pipe.adapter, folder / "adapter")
    index_file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _add_adapter_code(module: ModelMixin, folder: Path) -> dict[str, object]:
    """Write the adapter's code; returns its entries in model_index.json."""
    adapter = type(module)
    parts = [type(m) for m in module.modules() if hasattr(m, "conditioning")]
    file_name = _write(folder, "modeling", adapter_code(adapter, *parts))
    home = getattr(sys.modules[adapter.__module__], "_ADAPTER_FROM", adapter.__module__)
    return {"adapter": [file_name, adapter.__name__], "_adapter_from": home}


def _remove_replaced_shards(indices: dict[Path, int]) -> None:
    """Remove shards that the folder held before, where weights in one file now replace them.

    diffusers and transformers would read the shards: the old weights.

    Args:
        indices: the index files of before, and when each was written.
    """
    for index, written in indices.items():
        whole = index.with_name(index.name.removesuffix(".index.json"))
        if index.is_file() and index.stat().st_mtime_ns == written and whole.is_file():
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            index.unlink()
            for name in names:
                index.with_name(name).unlink(missing_ok=True)


def _write(folder: Path, kind: str, text: str) -> str:
    name = f"{kind}_cond_{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    for old in folder.glob(f"{kind}_cond_*.py"):
        if _CODE_FILE.fullmatch(old.stem):
            old.unlink()
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return name
