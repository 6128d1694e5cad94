"""training/accelerate/: what accelerate reads there; and a run that does not get what was asked for says so."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from training_common import flags

FOLDER = Path(__file__).parents[2] / "training/accelerate"


@pytest.mark.parametrize(
    ("name", "kind", "facts"),
    [
        ("ddp", "MULTI_GPU", {}),
        ("fsdp2", "FSDP", {"fsdp_version": 2, "fsdp_reshard_after_forward": True}),
        ("deepspeed_zero2", "DEEPSPEED", {"zero_stage": 2}),
    ],
)
def test_accelerate_reads_it(name, kind, facts):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))  # refuses keys that it does not know
    assert str(getattr(config.distributed_type, "value", config.distributed_type)) == kind
    assert config.mixed_precision == "bf16" and config.num_processes == 8
    assert facts.items() <= {**config.fsdp_config, **config.deepspeed_config}.items()


def test_all_are_here():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {"ddp", "fsdp2", "deepspeed_zero2"}


def test_sharding_that_is_not_to_be_had(tmp_path, warm):
    """On a CPU accelerate 1.15 trains without FSDP, and says nothing."""
    env = warm.env | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    process = warm.start(["-m", "cond_pipelines.training", *flags(output_dir=tmp_path, max_train_steps=1)], env)
    told = process.communicate(timeout=240)[1]
    assert process.returncode == 0, told[-2000:]
    (line,) = [line for line in told.splitlines() if line.startswith("warning: FSDP")]
    assert line.startswith("warning: FSDP is configured, this run is NO: nothing is sharded, each of 1 process(es)")
