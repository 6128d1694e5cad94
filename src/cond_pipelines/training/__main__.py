"""accelerate launch -m cond_pipelines.training --conditioning class --train_data_dir flowers --resolution 32"""

import sys
from typing import Any

from tqdm.auto import tqdm


def main(args: list[str] | None = None, **defaults: Any) -> None:
    """Parse the command line and train; bad arguments or data end in one line on stderr and exit code 2."""
    from .config import parse_args
    from .loop import train

    config = parse_args(args, **defaults)
    try:
        train(config)
    except ValueError as error:
        message = str(error).strip()
        if "Original Traceback" in message:  # from a DataLoader's worker
            message = message.splitlines()[-1].partition(": ")[2]
        tqdm.write(f"error: {' '.join(message.split())}", file=sys.stderr)  # on a line of its own, above any bar
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
