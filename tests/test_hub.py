"""Pushing: what is uploaded, what never is, and what a Hub that fails does (nothing)."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import READ_TOKEN, TOKEN
from huggingface_hub import ModelCard, get_session
from pipelines_common import make_components, quiet
from training_common import flags, run

from cond_pipelines import ClassConditionalPipeline, ConditionalPipeline
from cond_pipelines.cli import main
from cond_pipelines.sharing import hub_waiting
from cond_pipelines.sharing.push import PushError, push_folder
from cond_pipelines.training.__main__ import main as train_main
from cond_pipelines.training.config import parse_args

VISIBLE = {True: {"visibility": "private"}, False: {"visibility": "public"}}


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory):
    """What a run leaves, with checkpoints, logs, a tracker's files, and things that a user may have put there."""
    folder = tmp_path_factory.mktemp("run") / "shapes"
    run(
        folder,
        conditioning="class",
        checkpointing_steps=2,
        report_to="tensorboard",
        push_to_hub=True,  # which fails: the token is none
        hub_token="hf_very_secret",
        logging_dir="logs",
    )
    (folder / "optimizer.bin").write_bytes(b"state")
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"pickled")
    (folder / "notes.txt").write_text("mine")
    return folder


@pytest.fixture()
def pipe():
    return quiet(ClassConditionalPipeline(**make_components("class")))


@pytest.fixture()
def pauses(monkeypatch):
    """The pauses between tries, ours and those of huggingface_hub, without waiting for their end."""
    found = []
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda sec: (found.append(sec), sleep(min(sec, 0.001)))[1])
    return found


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 400
    return text


# --------------------------------------------------------------------------------------------- what is uploaded
def test_one_commit_with_the_model_and_its_page(trained_folder, hub):
    commit = push_folder(trained_folder, "me/shapes", token=TOKEN, commit_message="The first")
    repo = hub.repos["me/shapes"]
    assert repo.messages == ["initial commit", "The first"]
    assert commit.commit_url.endswith(repo.branches["main"])
    assert sum("/commit/" in r for r in hub.requests) == 1
    files = set(repo.files())
    index = json.loads(repo.files()["model_index.json"])
    assert files == {
        *(".gitattributes", "model_index.json", "README.md", "samples.png", "loss.png"),
        *("training_config.yaml", "training_summary.json", f"{index['_class_name'][0]}.py"),
        *(f"images/{i:02d}.png" for i in range(5)),
        *("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"),
        *("adapter/config.json", "adapter/diffusion_pytorch_model.safetensors", f"adapter/{index['adapter'][0]}.py"),
    }


def test_the_pipeline_pushes_the_same_as_its_folder(trained_folder, hub):
    push_folder(trained_folder, "me/a", token=TOKEN)
    ConditionalPipeline.from_pretrained(trained_folder).push_to_hub("me/b", token=TOKEN)
    a, b = hub.repos["me/a"].files(), hub.repos["me/b"].files()
    assert set(a) == set(b)
    assert {name for name in a if a[name] != b[name]} <= {"README.md", "adapter/config.json", "unet/config.json"}


def test_never_uploaded(trained_folder, hub):
    assert (trained_folder / "checkpoint-2").is_dir() and (trained_folder / "logs").is_dir()
    push_folder(trained_folder, "me/shapes", token=TOKEN)
    ConditionalPipeline.from_pretrained(trained_folder).push_to_hub("me/again", token=TOKEN)
    for repo_id in ("me/shapes", "me/again"):
        for name, content in hub.repos[repo_id].files().items():
            assert not name.startswith(("checkpoint", "logs", "log.jsonl", "optimizer", "notes")), name
            assert not name.endswith((".bin", ".pt", ".pkl")), name
            for secret in (str(trained_folder.parent), str(Path.home()) + "/", "hf_very_secret", TOKEN):
                assert secret.encode() not in content, (name, secret)


def test_pushing_changes_nothing_in_the_folder(trained_folder, hub):
    def state():
        return {p: p.read_bytes() for p in trained_folder.rglob("*") if p.is_file()}

    before = state()
    push_folder(trained_folder, "me/shapes", token=TOKEN)
    assert state() == before


def test_pushing_again_replaces_the_code_in_one_commit(pipe, hub):
    pipe.push_to_hub("me/model", token=TOKEN)
    repo = hub.repos["me/model"]
    old = repo.files() | {"pipeline_cond_0000000000.py": b"old", "adapter/modeling_cond_0000000000.py": b"old"}
    repo.commit("main", old | {"LICENSE": b"somebody's"}, "as an earlier version had left it")
    pipe.push_to_hub("me/model", token=TOKEN)
    files = repo.files()
    assert "pipeline_cond_0000000000.py" not in files and "adapter/modeling_cond_0000000000.py" not in files
    assert files["LICENSE"] == b"somebody's"
    assert len(repo.commits) == 4
    ConditionalPipeline.from_pretrained("me/model")


def test_private_branch_and_pull_request(pipe, hub):
    pipe.push_to_hub("me/model", token=TOKEN, private=True)
    repo = hub.repos["me/model"]
    assert repo.private
    pipe.push_to_hub("me/model", token=TOKEN, revision="experiment")
    assert repo.branches["experiment"] != repo.branches["main"]
    before = repo.branches["main"]
    commit = pipe.push_to_hub("me/model", token=TOKEN, create_pr=True)
    assert repo.pull_requests == 1 and repo.branches["main"] == before
    assert "model_index.json" in repo.files("refs/pr/1")
    assert commit.pr_url.endswith("discussions/1")


def test_save_pretrained_with_push(pipe, tmp_path, hub):
    pipe.save_pretrained(tmp_path / "m", push_to_hub=True, repo_id="me/saved", token=TOKEN)
    assert "model_index.json" in hub.repos["me/saved"].files()
    pipe.save_pretrained(tmp_path / "named", push_to_hub=True, token=TOKEN)
    assert "me/named" in hub.repos


def test_a_page_written_by_hand_is_kept(trained_folder, tmp_path, hub):
    folder = tmp_path / "model"
    shutil.copytree(trained_folder, folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    push_folder(folder, "me/mine", token=TOKEN)
    assert hub.repos["me/mine"].files()["README.md"] == b"---\nlicense: mit\n---\nMine.\n"


def test_the_page_names_the_repository(trained_folder, hub):
    push_folder(trained_folder, "me/shapes", token=TOKEN)
    text = hub.repos["me/shapes"].files()["README.md"].decode()
    assert 'from_pretrained("me/shapes")' in text
    data = ModelCard(text).data
    assert data.pipeline_tag is None and "class-conditional-image-generation" in data.tags


# ----------------------------------------------------------------------------------------------- a Hub that fails
FAILURES = {
    "create": (r"POST /api/repos/create", {"status": 500}, r"HTTP 500"),
    "preupload": (r"preupload", {"status": 503}, r"HTTP 503"),
    "rate limit": (r"/commit/", {"status": 429, "Retry_After": "1"}, r"too many requests.*HTTP 429"),
    "conflict": (r"/commit/", {"status": 412}, r"somebody else committed.*HTTP 412"),
    "dropped upload": (r"PUT /lfs", {"drop": True}, r"not pushed to me/model: \w+"),
    "refused upload": (r"PUT /lfs", {"status": 403}, r"HTTP 403"),
    "dropped commit": (r"/commit/", {"drop": True}, r"not pushed to me/model: \w+"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_push_that_breaks_leaves_everything_as_it_was(pipe, tmp_path, hub, pauses, case):
    pattern, failure, words = FAILURES[case]
    pipe.push_to_hub("me/model", token=TOKEN)
    before = dict(hub.repos["me/model"].files()), hub.repos["me/model"].branches["main"]
    with torch.no_grad():
        pipe.unet.conv_out.weight.add_(1)
    pipe.save_pretrained(tmp_path / "model")
    hub.fail(pattern, **failure)
    with pytest.raises(RuntimeError, match=words) as error:
        push_folder(tmp_path / "model", "me/model", token=TOKEN)
    one_line(error)
    assert (hub.repos["me/model"].files(), hub.repos["me/model"].branches["main"]) == before
    hub.failures.clear()
    ConditionalPipeline.from_pretrained("me/model")
    ConditionalPipeline.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("case", ["create", "preupload", "rate limit", "dropped upload", "dropped commit"])
def test_a_passing_failure_is_tried_again(pipe, hub, pauses, case):
    pattern, failure, _ = FAILURES[case]
    hub.fail(pattern, times=1, **failure)
    pipe.push_to_hub("me/model", token=TOKEN)
    assert "model_index.json" in hub.repos["me/model"].files()


def test_the_pause_is_what_the_hub_asks(pipe, hub, pauses):
    hub.fail(r"/commit/", status=429, times=1, Retry_After="4")
    pipe.push_to_hub("me/model", token=TOKEN)
    assert 4 in pauses  # our own first pause would be one second


@pytest.mark.parametrize(
    ("token", "repo_id", "words"),
    [
        ("hf_wrong", "me/model", "no valid token: run `hf auth login`"),
        (READ_TOKEN, "me/model", "may not write"),
        (TOKEN, "not a name!", "not pushed to not a name!: HFValidationError"),
    ],
)
def test_wrong_token_or_name(pipe, hub, pauses, token, repo_id, words):
    with pytest.raises(RuntimeError, match=words) as error:
        pipe.push_to_hub(repo_id, token=token)
    one_line(error)
    assert not hub.repos


def test_a_folder_that_is_no_model(tmp_path, hub):
    with pytest.raises(ValueError, match="no model to push"):
        push_folder(tmp_path, "me/model", token=TOKEN)
    assert not hub.repos


def test_a_repository_that_is_not_there(hub):
    with pytest.raises(OSError, match="me/nothing"):
        ConditionalPipeline.from_pretrained("me/nothing")


@pytest.fixture()
def short_silence(monkeypatch):
    monkeypatch.setattr(hub_waiting, "_SILENCE_SEC", 0.5)
    monkeypatch.setattr(hub_waiting, "_FIRST_LINE_SEC", 0.2)
    monkeypatch.setattr(hub_waiting, "_NEXT_LINES_SEC", 0.2)


@pytest.mark.parametrize("where", ["POST /api/repos/create", "/preupload/", "PUT /lfs", "/commit/"])
def test_a_hub_that_never_answers(pipe, tmp_path, hub, short_silence, capsys, where):
    """It says what it waits for, gives up after the second silence, and says what became of the repository."""
    pipe.save_pretrained(tmp_path / "model")
    hub.fail(where, silent=True)
    with pytest.raises(PushError, match=r"not pushed to me/model: the Hub does not answer: .*try again later") as error:
        push_folder(tmp_path / "model", "me/model", token=TOKEN)
    text = one_line(error)
    told = capsys.readouterr().err
    what = "the repository" if "create" in where else "the upload"
    assert re.search(rf"waiting for the Hub: {what}, \d+ s", told)
    if "create" in where:
        assert text.endswith("Whether a new repository was made there is not known")
    else:
        assert "The repository me/model is new and still empty: push again, or delete it on http" in text
        assert hub.repos["me/model"].messages == ["initial commit"]
    assert get_session().timeout.read is None  # as huggingface_hub has it: nothing of ours is left behind


def test_a_hub_that_is_slow_once(pipe, hub, short_silence):
    hub.fail("/commit/", silent=True, times=1)
    pipe.push_to_hub("me/model", token=TOKEN)
    assert "model_index.json" in hub.repos["me/model"].files()


def test_what_a_failed_push_says_of_the_repository(pipe, tmp_path, hub, pauses):
    pipe.save_pretrained(tmp_path / "model")
    hub.fail("/commit/", status=500)
    with pytest.raises(PushError, match="The repository me/model is new and still empty"):
        push_folder(tmp_path / "model", "me/model", token=TOKEN)
    with pytest.raises(PushError, match=r"\. Nothing was changed there$"):  # now it is there already
        push_folder(tmp_path / "model", "me/model", token=TOKEN)


@pytest.mark.parametrize("private", [None, True, False])
def test_the_visibility_is_sent_where_it_is_said(pipe, hub, private):
    pipe.push_to_hub("me/model", token=TOKEN, private=private)
    assert hub.created == [{"name": "model", "organization": "me"} | ({} if private is None else VISIBLE[private])]


def test_visibility_in_training_is_not_said_unless_it_is():
    for given, private in (([], None), (["--hub_private_repo"], True), (["--hub_private_repo", "False"], False)):
        assert parse_args(["--push_to_hub", *given]).hub_private_repo is private


# ------------------------------------------------------------------------------------------------ from the shell
def test_push_command(trained_folder, hub, capsys):
    main(["push", str(trained_folder), "me/shapes", "--token", TOKEN, "--private"])
    assert hub.repos["me/shapes"].private
    assert hub.repos["me/shapes"].branches["main"] in capsys.readouterr().out


def test_push_command_fails_in_one_line(trained_folder, hub, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["push", str(trained_folder), "me/shapes", "--token", "hf_wrong"])
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: not pushed to me/shapes") and "hf auth login" in last


# ------------------------------------------------------------------------------------------------- from training
def test_training_pushes_the_finished_model(tmp_path, hub):
    run(tmp_path / "flowers", push_to_hub=True, hub_model_id="me/flowers", hub_token=TOKEN, hub_private_repo=True)
    repo = hub.repos["me/flowers"]
    assert repo.private and repo.messages[1:] == ["Training finished"]
    ConditionalPipeline.from_pretrained("me/flowers", token=TOKEN)
    assert "hub_token" not in yaml.safe_load(repo.files()["training_config.yaml"])


def test_every_save_pushes_checkpoints_in_the_background(tmp_path, hub):
    run(
        tmp_path / "flowers",
        push_to_hub=True,
        hub_token=TOKEN,
        hub_strategy="every_save",
        checkpointing_steps=2,
        max_train_steps=5,
    )
    messages = hub.repos["me/flowers"].messages
    assert messages[1] == "Training, step 2" and messages[-1] == "Training finished"
    for commit, files in list(hub.repos["me/flowers"].commits.items())[1:]:
        assert "model_index.json" in files
        ConditionalPipeline.from_pretrained("me/flowers", revision=commit)


@pytest.mark.parametrize("strategy", ["end", "every_save"])
def test_training_goes_on_without_the_hub(tmp_path, hub, pauses, strategy, capsys):
    """The whole Hub is down: the model is trained and saved, and the last lines say how to push it later."""
    hub.fail(".*/api/repos/create", status=500)
    folder = tmp_path / "my flowers"
    arguments = {"conditioning": "none", "hub_strategy": strategy, "hub_token": TOKEN, "hub_model_id": "me/flowers"}
    train_main([*flags(output_dir=folder, checkpointing_steps=2, **arguments), "--push_to_hub"])
    ConditionalPipeline.from_pretrained(folder)
    told = capsys.readouterr().err
    assert "not pushed to me/flowers: the Hub failed (HTTP 500)" in told
    command = next(line for line in told.splitlines() if "push it later: " in line).split("push it later: ")[1]
    hub.failures.clear()
    import shlex

    assert shlex.split(command)[0] == "cond-pipelines"
    main([*shlex.split(command)[1:], "--token", TOKEN])
    ConditionalPipeline.from_pretrained("me/flowers")
