"""The studio over HTTP, without a browser: from a folder with bad files to a model on the Hub."""

import base64
import io
import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest
from hub_server import TOKEN
from PIL import Image
from studio_common import Server, environment, folder_of_shapes, locker, tiny

from cond_pipelines.background import Jobs
from cond_pipelines.files import sha256_of
from cond_pipelines.training.config import TrainingConfig
from cond_pipelines.training.loop import train

pytestmark = pytest.mark.timeout(600)  # with what the module sets up, on a busy machine


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(folder, cache) of a studio with a data set."""
    folder = tmp_path_factory.mktemp("work")
    folder_of_shapes(folder / "shapes")
    home = tmp_path_factory.mktemp("home")
    yield folder, home
    for job in Jobs(home / "jobs").all():  # the studio leaves runs alone, also where a test has failed
        for process in job.processes():
            process.kill()


@pytest.fixture(scope="module")
def studio(place, subprocess_env):
    """A function that starts the server; the last one is stopped at the end."""
    servers = []

    def start() -> Server:
        servers.append(Server(*place, environment(subprocess_env) | {"HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}))
        return servers[-1]

    yield start
    servers[-1].close()


@pytest.fixture(scope="module")
def first(studio):
    return studio()


@pytest.fixture(scope="module")
def paused(first, place):
    """A run that was sampled from, saved and paused on its way. It is too long to end by itself."""
    run = place[0] / "model"
    first.post("train/start", args=endless(place[0] / "shapes", run))
    first.wait_for(lambda: first.run(run).get("state") == "running" and (first.run(run)["step"] or 0) > 3)
    before = first.run(run)
    first.post("runs/sample", path=str(run))
    first.post("runs/save", path=str(run))
    first.wait_for(lambda: first.run(run)["checkpoints"] and first.run(run)["held_out_loss"])
    first.wait_for(lambda: first.run(run)["step"] > first.run(run)["checkpoints"][0])
    first.post("runs/pause", path=str(run))
    first.wait_for(lambda: first.run(run)["state"] == "paused")
    return run, before, first.run(run)


@pytest.fixture(scope="module")
def killed(first, paused, studio):
    """A new server, after the run went on and was killed with the first one."""
    run, _, then = paused
    first.post("runs/continue", path=str(run))
    assert "at work" in first.post("runs/continue", 400, path=str(run))["error"]
    first.wait_for(lambda: first.run(run)["checkpoints"][-1] > then["checkpoints"][-1])
    process = psutil.Process(locker(run))
    first.kill()
    process.send_signal(signal.SIGKILL)  # the server has not taken it along
    process.wait(60)
    return studio()


def endless(data: Path, run: Path) -> dict[str, object]:
    """At a constant rate: a run of any number of steps begins with the same ones."""
    return tiny(data, run, max_train_steps=100_000, lr_scheduler="constant", lr_warmup_steps=0, checkpointing_steps=20)


# --------------------------------------------------------------------------------------------------------- data
def test_the_three_bad_files_are_seen_with_their_reasons(first, place):
    names = first.post("data/look", path=str(place[0] / "shapes"), conditioning="class", args={"resolution": 8})
    assert (names["is_checked"], names["total"], names["bad_rows"]) == (False, 51, [])
    items = first.get("data/wall", key=names["key"], start=23, count=4)["items"]
    shown = [item["name"].rpartition("shapes/")[2] for item in items]
    assert shown == ["dark/23.png)", "dark/empty.png)", "dark/text.png)", "light/00.png)"]
    seen = first.post("data/check", path=str(place[0] / "shapes"), conditioning="class", args={"resolution": 8})
    reasons = {line.split("/")[-1].split(")")[0]: line for line in seen["bad_rows"]}
    assert set(reasons) == {"text.png", "empty.png", "cut.png"}
    assert "no format that can be read" in reasons["text.png"] and "truncated" in reasons["cut.png"]
    assert (seen["total"], seen["num_train"] + seen["num_held_out"]) == (48, 48)
    assert seen["classes"] == [{"name": "dark", "count": 24}, {"name": "light", "count": 24}]
    again = first.post("data/look", path=str(place[0] / "shapes"), conditioning="class", args={"resolution": 8})
    assert seen["is_checked"] and again == names and seen["key"] == names["key"]  # bad files are looked at anew
    assert seen["text"].startswith("images: 48 usable of 51, 8 px, 3 channel(s)")
    assert "--on_bad_image=skip" in seen["command"] and seen["command"].startswith("cond-pipelines train ")
    wall = first.get("data/wall", key=seen["key"], start=23, count=2)
    assert wall["total"] == 48 and [item["condition"] for item in wall["items"]] == ["dark", "light"]
    assert first.get("data/wall", key=seen["key"], **{"class": "light"})["total"] == 24
    held_out = first.get("data/wall", key=seen["key"], held_out=1)
    assert held_out["total"] == seen["num_held_out"] and all(item["held_out"] for item in held_out["items"])
    picture = Image.open(io.BytesIO(first.get("data/thumb", key=seen["key"], i=wall["items"][1]["i"])))
    assert picture.size == (8, 8) and picture.getpixel((0, 0)) == (128, 0, 155)
    assert first.get("data/thumb", 404, key=seen["key"], i=999)["error"]
    assert "look at the data again" in first.get("data/wall", 400, key="0" * 20)["error"]
    assert (
        "--resolution 0" in first.post("data/look", 400, path=str(place[0] / "shapes"), args={"resolution": 0})["error"]
    )


def test_a_file_is_bad_as_long_as_its_reason_lasts_and_all_copies_are_counted(first, place):
    """The reason goes while size and time stay: here the content, elsewhere a permission or a missing package."""
    folder, data = place[0] / "mended", {"conditioning": "none", "args": {"resolution": 8}}
    folder.mkdir()
    for i in range(202):
        Image.new("RGB", (8, 8), (i // 2, 0, 0)).save(folder / f"{i:03d}.png")
    bad, whole = folder / "000.png", (folder / "000.png").read_bytes()
    bad.write_bytes(bytes(len(whole)))
    times = bad.stat()
    names = first.post("data/look", path=str(folder), **data)
    thumb = f"/api/data/thumb?key={names['key']}&i=0"
    assert len(first.post("data/check", path=str(folder), **data)["bad_rows"]) == 1
    status, headers, _ = first.raw("GET", thumb, first._known())
    assert (status, headers["content-type"], headers["cache-control"]) == (200, "image/svg+xml", "no-store")
    bad.write_bytes(whole)
    os.utime(bad, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert first.post("data/look", path=str(folder), **data) == names and not names["is_checked"]
    seen = first.post("data/check", path=str(folder), **data)
    assert (seen["bad_rows"], seen["total"], seen["key"]) == ([], 202, names["key"])
    assert seen["num_duplicates"] == 101 and len(seen["duplicates"]) == 100
    status, headers, _ = first.raw("GET", thumb, first._known())
    assert (status, headers["content-type"]) == (200, "image/png") and "immutable" in headers["cache-control"]
    assert first.post("data/look", path=str(folder), **data) == seen


def test_the_form_has_each_flag_with_its_help_and_the_plan_says_what_would_be_chosen(first, place):
    groups = first.get("train/form")["groups"]
    fields = {field["name"]: field for group in groups for field in group["fields"]}
    assert groups[0]["title"] == "Most used" and groups[0]["fields"][0]["name"] == "train_data_dir"
    assert {"resolution", "max_train_steps", "validation_prompts"} <= set(fields) and "hub_token" not in fields
    assert fields["hub_strategy"]["choices"] == ["end", "every_save"] and fields["validation_prompts"]["type"] == "list"
    assert all(field["help"] for field in fields.values())
    args = tiny(place[0] / "shapes", place[0] / "planned") | {"train_batch_size": None}
    plan = first.post("train/plan", args=args)
    assert plan["decided"]["train_batch_size"] == 32 and plan["decided"]["learning_rate"] > 0
    assert "skipped: 3" in plan["lines"] and not (place[0] / "planned").exists()
    assert "unet_size" in first.post("train/plan", args=args | {"unet_size": "huge"})["problem"]
    assert {"num_samples", "classify"} <= {f["name"] for g in first.get("evaluate/form")["groups"] for f in g["fields"]}


# ---------------------------------------------------------------------------------------------------------- runs
def test_a_run_is_sampled_saved_and_paused(first, paused):
    run, before, now = paused
    assert before["conditioning"] == "class" and before["num_steps"] == 100_000 and before["left_sec"] > 0
    assert now["checkpoints"] and now["samples"] and now["held_out_loss"] > 0 and "SIGTERM" in now["message"]
    assert any(step % 20 for step in now["checkpoints"])  # of save, or of the pause
    (log,) = first.get("runs/log", path=str(run))["logs"]
    assert log["step"][:2] == [2, 4] and log["held_out"] and len(log["loss"]) == len(log["lr"])
    assert "trained parameters" in first.get("runs/output", path=str(run))["text"]
    for action in ("pause", "stop", "sample", "save"):
        assert "nothing runs" in first.post(f"runs/{action}", 400, path=str(run))["error"]


def test_a_paused_run_draws_at_each_checkpoint_from_one_noise(first, paused):
    run = paused[0]
    points = first.get("watch", path=str(run))["points"][-2:]
    drawn = {}
    for point in points:
        asked = {"model": point["model"], "conditions": ["dark", "light", None], "seeds": [1, 1, 1]}
        drawn[point["step"]] = first.post("draw", **asked)
        assert first.post("draw", **asked) == drawn[point["step"]]  # of the cache
    one, two = (answer["images"] for answer in drawn.values())
    assert len({*one, *two}) == 6
    for address in one:
        content = first.raw("GET", address, {"Authorization": f"Bearer {first.token}"})[2]
        assert Image.open(io.BytesIO(content)).size == (8, 8)
    assert "seeds" in first.post("draw", 400, model=points[0]["model"], conditions=["dark"], seeds=[])["error"]
    assert "cat" in first.post("draw", 400, model=points[0]["model"], conditions=["cat"], seeds=[1])["error"]


def test_killed_with_its_server_it_goes_on_bit_for_bit(killed, paused, place):
    """A run without any interruption, and without the wishes of those who watched it, has the same weights."""
    run = paused[0]
    state = killed.run(run)
    last = state["checkpoints"][-1]
    assert (state["state"], state["message"]) == ("paused", f"ended by SIGKILL; it can go on after step {last:,}")
    killed.post("runs/continue", path=str(run))
    killed.wait_for(lambda: killed.run(run)["checkpoints"][-1] > state["checkpoints"][-1])
    killed.post("runs/stop", path=str(run))
    killed.wait_for(lambda: killed.run(run)["state"] in ("paused", "failed"))
    step = max(n for n in killed.run(run)["checkpoints"] if n % 20 == 0)
    whole = place[0] / "whole"
    train(
        TrainingConfig(**endless(place[0] / "shapes", whole) | {"max_train_steps": step, "validation_steps": 100_000})
    )
    for name in ("model.safetensors", "averages.safetensors"):
        one, other = (sha256_of(folder / f"checkpoint-{step}" / name) for folder in (run, whole))
        assert one == other, (name, step)
    rows = {row["name"] for row in killed.get("runs/differences", path=[str(run), str(whole)])["rows"]}
    assert {"max_train_steps", "validation_steps"} <= rows and "learning_rate" not in rows


# ------------------------------------------------------------------------------------- a finished model
@pytest.fixture(scope="module")
def model(killed, place):
    """A finished run; it was started by nobody of the studio."""
    folder = place[0] / "finished"
    train(TrainingConfig(**tiny(place[0] / "shapes", folder, max_train_steps=20, validation_steps=1000)))
    return str(folder)


def test_a_run_of_somebody_else_shows_as_well(killed, model):
    state = killed.run(Path(model))
    assert (state["state"], state["step"], state["fraction"], state["message"]) == ("finished", 20, 1.0, None)
    assert model in [shown["path"] for shown in killed.get("state")["models"]]
    watched = killed.get("watch", path=model)
    assert [point["step"] for point in watched["points"]] == [10, 20, 20] and watched["ema_lengths"] == [0.05, 0.1]


def test_a_checkpoint_and_an_average_become_models(killed, model):
    drawn = {"conditions": ["dark"], "seeds": [3]}
    checkpoint = f"{model}/checkpoint-10"
    made = killed.post("watch/choose", path=model, model=checkpoint)["path"]
    assert (
        killed.post("draw", model=made, **drawn)["images"] == killed.post("draw", model=checkpoint, **drawn)["images"]
    )
    made = killed.post("watch/choose", path=model, ema_length=0.07, name="averaged")["path"]
    assert Path(made).name == "averaged" and (Path(made) / "README.md").is_file()
    with_length = killed.post("draw", model=model, ema_length=0.07, **drawn)
    assert killed.post("draw", model=made, **drawn)["images"] == with_length["images"]
    again = killed.post("watch/choose", 400, path=model, ema_length=0.07, name="averaged")
    assert again["error"].endswith("is there already: give another name")
    unfinished = Path(model).with_name("unfinished")
    shutil.copytree(model, unfinished)
    (unfinished / "model_index.json").unlink()  # as after `kill -9` before the model was written
    assert killed.get("watch", path=str(unfinished))["ema_lengths"] == [0.05, 0.1]
    made = killed.post("watch/choose", path=str(unfinished), ema_length=0.07)["path"]
    assert Path(made).name == "unfinished-ema-0.07"
    assert killed.post("draw", model=made, **drawn)["images"] == with_length["images"]
    last = killed.post("draw", model=f"{model}/checkpoint-20", **drawn)
    assert last["images"] == killed.post("draw", model=model, **drawn)["images"]


def test_play(killed, model):
    info = killed.get("model", path=model)
    assert (info["setting"], info["classes"], info["width"], info["embedding_dim"]) == (
        "class",
        ["dark", "light"],
        8,
        None,
    )
    film = killed.post("draw", model=model, conditions=["dark", None], seeds=[0, 1], num_inference_steps=3, film=True)
    assert [len(frames) for frames in film["films"]] == [3, 3] and film["films"][0][-1] == film["images"][0]
    by_name = [killed.post("draw", model=model, conditions=[None], seeds=[0], scheduler=s) for s in info["schedulers"]]
    assert len({answer["images"][0] for answer in by_name}) > 1
    between = killed.post("interpolate", model=model, first="dark", second="light", num_steps=3, num_inference_steps=2)
    assert len(set(between["images"])) == 3
    picture = io.BytesIO()
    Image.new("RGB", (20, 12), (128, 0, 155)).save(picture, "PNG")
    address = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    near = killed.post("nearest", model=model, image=address)["items"]
    assert near[0]["distance"] < 1e-3 and near[0]["condition"] == "light" and near[0]["name"].endswith("light/00.png)")
    classes = killed.post("classify", model=model, image=address)["probabilities"]
    assert {row["name"] for row in classes} == {"dark", "light"} and abs(sum(row["p"] for row in classes) - 1) < 1e-5
    mask = film["images"][0]
    edited = {"image": address, "mask": mask, "strength": 0.5, "conditions": ["dark"], "seeds": [0]}
    assert len(killed.post("draw", model=model, **edited)["images"]) == 1
    for bad in ("x", "data:text/html;base64,eA==", "data:image/png;base64,eA==", "/api/drawn/../../x", None, 3):
        assert killed.post("nearest", 400, model=model, image=bad)["error"]


def test_judge_and_share(killed, model, hub):
    """Evaluated, looked at, pushed: what the page shows comes from the files that the commands leave."""
    wanted = {"num_samples": 32, "feature_extractor": "pixels", "num_inference_steps": 2, "num_likelihood": 0}
    job = killed.post("evaluate", model=model, args=wanted)["job"]
    share = killed.get("share", path=model, repo_id="me/shapes")
    names = {file["name"] for file in share["files"]}
    assert "unet/diffusion_pytorch_model.safetensors" in names and "checkpoint-10" in share["stays"]
    assert "me/shapes" in share["card"] and share["problem"] is None
    assert killed.job(job)["state"] == "done", killed.job(job)["output"]
    shown = killed.get("report", path=model)
    assert shown["report"]["num_samples"] == 32 and shown["sweep"] is None
    assert any(path.endswith("samples.png") for path in shown["files"])
    assert [report["path"] for report in killed.get("reports")["reports"]] == [model]
    (pair,) = killed.get("compare", path=[model, f"{model}/evaluation/report.json"])["pairs"]
    assert {row["verdict"] for row in pair["rows"]} <= {"within chance", "no interval"} and pair["rows"]
    pushed = killed.job(killed.post("push", path=model, repo_id="me/shapes", private=True)["job"])
    assert pushed["state"] == "done", pushed["output"]
    assert names - {".eval_results/cond_pipelines.yaml"} <= set(hub.repos["me/shapes"].files())
    assert killed.post("jobs/stop", id=pushed["id"])["done"] == "it has ended already"
    assert "there is no job" in killed.get("jobs/1", 400)["error"]


def test_an_export_and_a_sweep_are_commands_whose_files_are_shown(killed, model):
    exported = killed.post("export", path=model, to="onnx")
    assert exported["path"] == f"{model}-onnx"
    wanted = {"num_samples": 16, "feature_extractor": "pixels", "num_inference_steps": 2, "num_likelihood": 0}
    swept = killed.post("evaluate", model=model, args=wanted | {"sweep": ["guidance_scale=1,2"]})["job"]
    for job in (exported["job"], swept):
        assert killed.job(job)["state"] == "done", killed.job(job)["output"]
    assert (Path(exported["path"]) / "unet.onnx").is_file()
    settings = [report["guidance_scale"] for report in killed.get("report", path=model)["sweep"]]
    assert settings == [1.0, 2.0]
    assert {"path": model, "sweep": True}.items() <= killed.get("reports")["reports"][0].items()
    kinds = [job["kind"] for job in killed.get("state")["jobs"][:2]]
    assert kinds == ["sweep", "export"]
    failed = killed.job(killed.post("export", path=model, to="ddpm")["job"])
    assert failed["state"] == "failed" and "a DDPMPipeline takes no condition" in failed["message"]
    assert "not in the folders" in killed.post("export", 403, path=model, to="onnx", output_dir="/elsewhere")["error"]
