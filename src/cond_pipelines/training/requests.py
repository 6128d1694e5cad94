"""Wishes of somebody who watches a run: a file in its output folder, which the run takes after the step under way.

    touch my_model/sample-now    draws a grid of samples and measures the held-out loss
    touch my_model/save-now      saves a checkpoint

Neither changes the run: its weights are bit for bit those of a run without.
"""

from pathlib import Path

import torch
from accelerate import Accelerator

from ..folders import REQUESTS

_CHECK_EVERY = 8  # steps, where several processes must agree


class Requests:
    """What was wished since the last look, the same in all processes.

    Args:
        folder: the run's output folder; wishes that an earlier run left there are deleted.

    Example:
        >>> requests = Requests(folder, accelerator)
        >>> "save" in requests.taken(step)
        False
    """

    def __init__(self, folder: Path, accelerator: Accelerator):
        self.folder, self.accelerator = folder, accelerator
        self.paths = {name: folder / file for name, file in REQUESTS.items()}
        self._take()

    def taken(self, step: int) -> set[str]:
        """The wishes after `step`; each is taken once."""
        if self.accelerator.num_processes == 1:
            return self._take()
        if step % _CHECK_EVERY:
            return set()
        mine = self._take()
        flags = torch.tensor([float(name in mine) for name in REQUESTS], device=self.accelerator.device)
        return {
            name for name, flag in zip(REQUESTS, self.accelerator.reduce(flags, "sum").tolist(), strict=True) if flag
        }

    def _take(self) -> set[str]:
        wished = set()
        for name, path in self.paths.items() if self.accelerator.is_main_process else ():
            try:
                path.unlink()
            except FileNotFoundError:
                continue
            except OSError:  # a folder, or one that may not be deleted: it would be taken at each step
                continue
            wished.add(name)
        return wished
