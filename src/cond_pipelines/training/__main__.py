"""accelerate launch -m cond_pipelines.training --conditioning class --train_data_dir flowers --resolution 32"""

import sys
from typing import Any


def main(args: list[str] | None = None, **defaults: Any) -> None:
    """Parse the command line and train.

    Each ends in one line on stderr: bad arguments or data (exit code 2), a failure in the middle of the run (1), a
    signal (0, for the run is saved and can go on).
    """
    from .command_line import parse_args

    config = parse_args(args, **defaults)  # help and bad arguments are answered before torch is imported
    from .interruptions import Interrupted, TrainingFailure
    from .loop import train

    try:
        train(config)
    except ValueError as error:
        _end(f"error: {_last_line(error)}", 2, error)
    except TrainingFailure as error:
        _end(f"error: {_last_line(error)}", 1, error)
    except OSError as error:
        if error.errno is None:  # not of the disk
            raise
        _end(f"error: {_last_line(error)}: make room, or mend the path", 1, error)
    except Interrupted as error:
        _end(f"{error}; go on with the same command and --resume_from_checkpoint latest", 0, error)


def _end(line: str, code: int, error: Exception) -> None:
    from tqdm.auto import tqdm

    tqdm.write(" ".join(line.split()), file=sys.stderr)  # on a line of its own, above any bar
    raise SystemExit(code) from error


def _last_line(error: Exception) -> str:
    message = str(error).strip()
    if "Original Traceback" in message:  # from a DataLoader's worker
        message = message.splitlines()[-1].partition(": ")[2]
    return message


if __name__ == "__main__":
    main()
