"""accelerate launch -m cond_pipelines.evaluate MODEL --num_samples 10000"""

from .console import for_terminal, lines_for_terminal
from .errors import one_line_errors
from .processes import command_line, use_all_cores


@command_line
def main(args: list[str] | None = None) -> None:
    """Parse the command line, evaluate, print the table; bad arguments end in one line and exit code 2."""
    with one_line_errors():
        from .evaluation.config import parse_args

        config = parse_args(args)  # help and bad arguments are answered before torch is imported
        use_all_cores()
        from .evaluation.evaluate import evaluate
        from .evaluation.sweep import sweep, table

        if config.sweep:
            print(lines_for_terminal(table(sweep(config))))
            return
        for row in evaluate(config).get("measures", []):
            real = "" if row["real"] is None else f"  (held-out real images {row['real']})"
            print(for_terminal(f"{row['question']:16} {row['name']}: {row['value']}{real}"))


if __name__ == "__main__":
    main()
