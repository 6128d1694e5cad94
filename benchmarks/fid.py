"""FID by EDM's protocol: 50,000 samples against all training images, three times with other seeds.

    python benchmarks/fid.py output/cifar10 --dataset_name uoft-cs/cifar10 --inception inception-2015-12-05.pt

EDM (Karras et al. 2022, arXiv 2206.00364, section 2) reports the lowest of three. This prints that and the mean, and
writes both to fid.json in the model's folder. Samples that are there are kept, so a killed command goes on.
"""

import argparse
from pathlib import Path

import numpy as np

from cond_pipelines.evaluation.config import EvaluationConfig
from cond_pipelines.evaluation.evaluate import evaluate
from cond_pipelines.files import write_json
from cond_pipelines.processes import use_all_cores

_ALL = 10**9  # real images: more than there are


def fid(options: argparse.Namespace) -> dict[str, object]:
    """The values of the seeds, the lowest and the mean."""
    extractor = options.feature_extractor or f"fid={options.inception}"
    values = []
    for seed in range(options.num_seeds):
        config = EvaluationConfig(
            model=options.model,
            train_data_dir=options.train_data_dir,
            dataset_name=options.dataset_name,
            num_samples=options.num_samples,
            num_real=_ALL,
            num_likelihood=0,
            feature_extractor=extractor,
            seed=seed,
            output_dir=str(Path(options.model) / f"evaluation_fid/{seed}"),
            features_dir=str(Path(options.model) / "evaluation_fid"),
        )
        report = evaluate(config)
        values += [row["value"] for row in report["measures"] if row["name"] == "Frechet distance"]
    return {
        "lowest": min(values),
        "mean": float(np.mean(values)),
        "of_each_seed": values,
        "num_samples": options.num_samples,
        "feature_extractor": extractor if options.feature_extractor else "fid",
    }


def main(args: list[str] | None = None) -> None:
    """Measure, print, write fid.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--train_data_dir")
    parser.add_argument("--dataset_name")
    parser.add_argument("--inception", default="inception-2015-12-05.pt", help="NVIDIA's TorchScript file")
    parser.add_argument("--feature_extractor", help="another one, in place of Inception")
    parser.add_argument("--num_samples", type=int, default=50_000)
    parser.add_argument("--num_seeds", type=int, default=3)
    options = parser.parse_args(args)
    use_all_cores()
    result = fid(options)
    write_json(Path(options.model) / "fid.json", result)
    print(f"lowest of {options.num_seeds}: {result['lowest']:g}; mean: {result['mean']:g}")


if __name__ == "__main__":
    main()
