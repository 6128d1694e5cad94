"""Where the arguments of the data used to be: see `cond_pipelines.data.config`."""

from ...data.config import DataArguments

__all__ = ["DataArguments"]
