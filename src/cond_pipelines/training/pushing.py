"""Pushing to the Hub from a training run, which no failure of the Hub may stop."""

import shlex
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..errors import UserError
from ..pipelines.conditional import ConditionalPipeline
from ..sharing.push import push_folder
from .config import TrainingConfig
from .lora import save_model


class HubPush:
    """Pushes checkpoints in the background, and the finished model at the end.

    Args:
        config: push_to_hub, hub_model_id, hub_token, hub_private_repo, hub_strategy.
        is_main_process: only one process pushes.

    Raises:
        UserError: no model on the Hub can have this name.
    """

    def __init__(self, config: TrainingConfig, is_main_process: bool = True):
        self.config, self.is_main_process = config, is_main_process
        self.every_save = config.push_to_hub and config.hub_strategy == "every_save"
        self.repo_id = config.hub_model_id or Path(config.output_dir).resolve().name
        if config.push_to_hub:
            flag = "--hub_model_id" if config.hub_model_id else "the name of --output_dir, for want of --hub_model_id:"
            try:
                validate_repo_id(self.repo_id)
            except HFValidationError as error:
                raise UserError(f"{flag} {self.repo_id}: {error}") from error
        self.running: threading.Thread | None = None
        self.failures: list[str] = []

    def checkpoint(self, pipe: ConditionalPipeline, parent: ConditionalPipeline | None, step: int) -> None:
        """Save the model as it is now into a folder, uploaded while training goes on; not while one is under way.

        The processes other than the main one do nothing.
        """
        if not self.is_main_process or (self.running is not None and self.running.is_alive()):
            return
        folder = tempfile.TemporaryDirectory()
        save_model(pipe, folder.name, parent)
        push = (folder.name, f"Training, step {step}", folder)
        self.running = threading.Thread(target=self._push, args=push, daemon=True)  # a run that ends is not held up
        self.running.start()

    def finish(self, stopped: Callable[[], bool] = lambda: False) -> list[str]:
        """Push the finished model; returns lines for the user, none where all went well.

        Args:
            stopped: whether to skip the push, or to leave it behind; called several times a second.
        """
        if not self.config.push_to_hub:
            return []
        if not self._wait(stopped):
            return [self.how_to_push()]
        before = len(self.failures)
        last = (self.config.output_dir, "Training finished")
        self.running = threading.Thread(target=self._push, args=last, daemon=True)
        self.running.start()
        if not self._wait(stopped):
            return [self.how_to_push()]
        return [] if len(self.failures) == before else [self.failures[-1], self.how_to_push()]

    def _wait(self, stopped: Callable[[], bool]) -> bool:
        """For the push under way; False where it is left behind."""
        while self.running is not None and self.running.is_alive() and not stopped():
            self.running.join(0.2)
        return self.running is None or not self.running.is_alive()

    def how_to_push(self) -> str:
        """The line that says how to push the finished model later."""
        command = ["cond-pipelines", "push", self.config.output_dir, self.repo_id]
        private = self.config.hub_private_repo
        command += [] if private is None else ["--private" if private else "--no-private"]
        return f"the model is safe in {self.config.output_dir}; push it later: {shlex.join(command)}"

    def _push(self, folder: str, message: str, temporary: tempfile.TemporaryDirectory[str] | None = None) -> None:
        try:
            push_folder(
                folder,
                self.repo_id,
                private=self.config.hub_private_repo,
                token=self.config.hub_token,
                commit_message=message,
            )
        except (RuntimeError, ValueError, OSError) as error:
            self.failures.append(str(error))
        finally:
            if temporary is not None:
                temporary.cleanup()
