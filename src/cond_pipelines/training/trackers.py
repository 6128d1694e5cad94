"""Experiment trackers: there before the run starts, and without the Hub token."""

import importlib.util
import sys
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from ..errors import UserError

_PACKAGES = {"comet_ml": "comet-ml"}  # on PyPI, where it is not the tracker's own name


def check_tracker(report_to: str | None) -> None:
    """Raise UserError, with the command that installs it, for a tracker that cannot be had."""
    if report_to in (None, "none", "all"):
        return
    if report_to not in LOGGER_TYPE_TO_CLASS:
        raise UserError(f"--report_to {report_to} is not one of {', '.join(LOGGER_TYPE_TO_CLASS)}, all or none")
    if report_to not in map(str, get_available_trackers()):
        package = _PACKAGES.get(report_to, report_to)
        installed = importlib.util.find_spec(report_to) is not None
        remedy = "set it up as its documentation says" if installed else f"pip install {package}"
        raise UserError(f"--report_to {report_to} needs the package {package}: {remedy}, or --report_to none")


def start_trackers(accelerator: Accelerator, project: str, values: dict[str, Any]) -> None:
    """Start the trackers of a run. Raises UserError, in one line, where one is there but does not start."""
    try:
        accelerator.init_trackers(project, config=values)
    except Exception as error:  # each tracker has errors of its own: no login, no server, no place for its files
        names = ", ".join(str(name) for name in accelerator.log_with)
        text = " ".join(str(error).split())
        raise UserError(
            f"--report_to {names} does not start: {type(error).__name__}: {text[:300]}; mend that, or --report_to none"
        ) from error


def hide_token(token: str | None) -> None:
    """Take a Hub token out of sys.argv: trackers record the command line. (`ps` still shows it: log in instead.)"""
    if token:
        sys.argv[:] = [word.replace(token, "***") for word in sys.argv]
