"""accelerate launch -m cond_pipelines.evaluate MODEL --num_samples 10000"""

import sys


def main(args: list[str] | None = None) -> None:
    """Parse the command line, evaluate, print the table; bad arguments end in one line and exit code 2."""
    from .evaluation.config import parse_args

    config = parse_args(args)  # help and bad arguments are answered before torch is imported
    from .evaluation.run import evaluate
    from .evaluation.sweep import sweep, table

    try:
        if config.sweep:
            print(table(sweep(config)))
            return
        report = evaluate(config)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error
    if report:
        for row in report["measures"]:
            real = "" if row["real"] is None else f"  (held-out real images {row['real']})"
            print(f"{row['question']:16} {row['name']}: {row['value']}{real}")


if __name__ == "__main__":
    main()
