"""Prior preservation: class images beside the others, as often as the weight says."""

import json

import numpy as np
import pytest
from training_common import log_of, run

from cond_pipelines import TrainingConfig
from cond_pipelines.data.load import load_data
from cond_pipelines.data.prior import balanced
from cond_pipelines.data.shapes import SHAPES, load_shapes

OWN = ["mine", "mine", "yours"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Few images of one's own, and ten of the class, with captions and without."""
    found = {}
    for name, count, folders in (("own", 3, True), ("class", 10, True), ("bare", 10, False)):
        found[name] = tmp_path_factory.mktemp(name)
        lines = []
        for number, row in enumerate(load_shapes(count, seed=count)):
            file = (
                f"{OWN[number] if name == 'own' else SHAPES[row['label']]}/{number}.png" if folders else f"{number}.png"
            )
            (found[name] / file).parent.mkdir(exist_ok=True)
            row["image"].save(found[name] / file)
            lines.append(json.dumps({"file_name": file, "text": f"{name} {number}"}) + "\n")
        if folders:
            (found[name] / "captions").write_text("".join(lines))
    return found


def load(folders, conditioning, prior="class", **more):
    more = {"resolution": 8, "with_prior_preservation": True, "class_data_dir": str(folders[prior])} | more
    return load_data(TrainingConfig(conditioning=conditioning, train_data_dir=str(folders["own"]), **more))


def told(data):
    return [data.dataset.read_condition(int(data.dataset.usable[i])) for i in data.train]


def test_the_balance():
    is_prior = np.array([0, 0, 1, 1, 1, 1, 1], dtype=bool)
    for weight in (0.5, 1.0, 3.0):
        train, held_out = balanced(np.array([0, 2, 3, 4, 5]), np.array([1, 6]), is_prior, weight)
        counts = np.bincount(train, minlength=7)
        assert counts[2:].sum() == pytest.approx(weight * counts[:2].sum(), abs=1)
        assert held_out.tolist() == [1] and counts[1] == 0
        assert (counts[2:] > 0).all()  # those held out are trained on


def test_classes(folders):
    data = load(folders, "class")
    assert list(data.id2label.values()) == sorted({*OWN, *(SHAPES[r["label"]] for r in load_shapes(10, seed=10))})
    mine = [data.id2label[i] in OWN for i in told(data)]
    assert (len(mine), sum(mine)) == (20, 10)
    named = load(folders, "class", "bare", class_prompt="shape", prior_loss_weight=2.0)
    assert set(named.id2label.values()) == {"mine", "yours", "shape"}
    mine = [named.id2label[i] in OWN for i in told(named)]
    assert sum(mine) == 5 and len(mine) == 15


def test_captions(folders):
    for name in ("own", "class"):
        (folders[name] / "captions").replace(folders[name] / "metadata.jsonl")
    both = told(load(folders, "text"))
    assert {c.split()[0] for c in both} == {"own", "class"}
    with_prompt = told(load(folders, "text", "bare", class_prompt="a shape"))
    assert with_prompt.count("a shape") == 10 and len(with_prompt) == 20


def test_what_is_refused(folders):
    with pytest.raises(ValueError, match=r"no (caption|label) column"):
        load(folders, "text", "bare")
    with pytest.raises(ValueError, match="--with_prior_preservation has no effect without --conditioning none"):
        load(folders, "embedding")
    with pytest.raises(ValueError, match="is not a folder"):
        load(folders, "none", class_data_dir="nowhere")


def test_a_run(folders, tmp_path):
    arguments = {"dataset_name": None, "train_data_dir": str(folders["own"]), "with_prior_preservation": True}
    folder = run(tmp_path, conditioning="none", class_data_dir=str(folders["bare"]), **arguments)
    assert len(log_of(folder)) == 4
    assert json.loads((folder / "training_summary.json").read_text())["num_images"] == 20
