"""accelerate launch -m cond_pipelines.training --conditioning class --train_data_dir flowers --resolution 32"""

from ..errors import one_line_errors
from ..processes import command_line


@command_line
def main(args: list[str] | None = None, **defaults: object) -> None:
    """Parse the command line and train.

    Each ends in one line on stderr: bad arguments or data (exit code 2), a failure in the middle of the run (1), a
    signal (0, for the run is saved and can go on).
    """
    with one_line_errors():
        from .command_line import parse_args

        config = parse_args(args, **defaults)  # help and bad arguments are answered before torch is imported
        config.data.check_source()
        from .loop import train
        from .trackers import hide_token

        hide_token(config.hub_token)
        train(config)


if __name__ == "__main__":
    main()
