"""Module names of before 0.1, as imports that still work for one release."""

import importlib
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType

_PACKAGE = __name__.rpartition(".")[0]
MOVED = {
    "conditional_pipeline": "pipelines.conditional",
    "inputs": "pipelines.image_inputs",
    "vae": "pipelines.vae",
    "portable": "pipelines.remote_code",
    "text_adapters": "adapters.text",
    "embedding_adapter": "adapters.embedding",
    "composite_adapter": "adapters.composite",
    "unet": "networks.unet_sizes",
    "surgery": "networks.surgery",
    "text_encoders": "networks.text_encoders",
    "parents": "networks.pretrained",
    "likelihood": "evaluation.likelihood",
    "card": "sharing.card",
    "hub": "sharing.push",
    "training.interruptions": "training.failures",
    "evaluation.run": "evaluation.evaluate",
    "evaluation.rows": "evaluation.questions",
    "training.evaluating": "training.small_evaluation",
    "training.setup": "training.model",
}


class _OldName:
    """Finds `cond_pipelines.<old name>` and puts the module of the new name in its place."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        known = name.startswith(f"{_PACKAGE}.") and name.removeprefix(f"{_PACKAGE}.") in MOVED
        return ModuleSpec(name, self) if known else None  # type: ignore[arg-type]  # its base class is slow to import

    def create_module(self, spec: ModuleSpec) -> None:
        """An ordinary one, which `exec_module` replaces."""

    def exec_module(self, module: ModuleType) -> None:
        new = f"{_PACKAGE}.{MOVED[module.__name__.removeprefix(f'{_PACKAGE}.')]}"
        warnings.warn(f"{module.__name__} is now {new}", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(new)


sys.meta_path.append(_OldName())
