"""Who may talk to the studio, and what it opens: a real server, and requests as other sites and other programs send."""

import json
import os

import pytest
from studio_common import Server, environment, folder_of_shapes

from cond_pipelines.errors import UserError
from cond_pipelines.studio.places import Places, check_recorded
from cond_pipelines.studio.safety import MAX_BODY_BYTES
from cond_pipelines.training.command_line import training_form

NASTY = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def studio(tmp_path_factory, subprocess_env):
    folder, outside = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("outside")
    folder_of_shapes(folder / "shapes")
    (outside / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(outside / "secret.txt")
    (folder / "linked").symlink_to(outside)
    (folder / f"{NASTY}.txt").write_text("text")
    (folder / "page.html").write_text("<script>alert(1)</script>")
    (folder / "code.py").write_text("")
    server = Server(folder, tmp_path_factory.mktemp("home"), environment(subprocess_env))
    server.folder, server.outside = folder, outside
    yield server
    server.close()


def test_a_browser_gets_a_cookie_for_the_token_and_nothing_without(studio):
    status, headers, _ = studio.raw("GET", f"/?token={studio.token}", {})
    cookie = headers["set-cookie"]
    assert (status, headers["location"]) == (303, "/")
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    name, _, rest = cookie.partition("=")
    assert studio.raw("GET", "/api/state", {"Cookie": f"{name}={rest.partition(';')[0]}"})[0] == 200
    for headers in ({}, {"Cookie": f"{name}=wrong"}, {"Authorization": "Bearer "}, {"Authorization": "Bearer ä"}):
        headers = {key: value.encode("latin-1") for key, value in headers.items()}
        status, answered, content = studio.raw("GET", "/api/state", headers)
        assert status == 403 and "token" in json.loads(content)["error"]
        assert not any(key.lower().startswith("access-control") for key in answered)
    assert studio.raw("GET", f"/api/state?token={studio.token}", {})[0] == 403  # only the first page takes it
    assert studio.raw("GET", "/?token=", {})[0] == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:80"},
        {"Host": "127.0.0.1"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_other_sites_cannot_talk_to_it_though_the_browser_has_the_token(studio, headers, method):
    known = {"Authorization": f"Bearer {studio.token}", "Content-Type": "application/json"}
    status, answered, content = studio.raw(method, "/api/state", known | headers, b"{}" if method == "POST" else None)
    assert status == 403 and "error" in json.loads(content)
    assert not any(key.lower().startswith("access-control") for key in answered)


def test_the_page_itself_may_and_every_answer_says_what_may_run(studio):
    for host in (f"127.0.0.1:{studio.port}", f"localhost:{studio.port}"):
        origin = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        status, headers, _ = studio.raw("GET", "/", {"Authorization": f"Bearer {studio.token}"} | origin)
        assert status == 200
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_two_pages_agree_and_nothing_is_sent_again_where_nothing_changed(studio):
    known = {"Authorization": f"Bearer {studio.token}"}
    status, headers, content = studio.raw("GET", "/api/state", known)
    again = studio.raw("GET", "/api/state", known | {"If-None-Match": headers["etag"]})
    assert (status, again[0], again[2]) == (200, 304, b"")
    (studio.folder / "more").mkdir()
    (studio.folder / "more" / "0.png").write_bytes(b"")
    one = studio.wait_for(lambda: (new := studio.get("state")) != json.loads(content) and new)
    assert one == studio.get("state") and "more" in [folder["name"].split("/")[-1] for folder in one["data"]]
    assert studio.raw("GET", "/api/state", known | {"If-None-Match": headers["etag"]})[0] == 200


def test_a_form_of_another_site_is_no_request(studio):
    """A browser sends a form without asking first, so it must be refused by its kind."""
    known = {"Authorization": f"Bearer {studio.token}"}
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        status, _, content = studio.raw("POST", "/api/draw", known | {"Content-Type": kind}, b"{}")
        assert (status, json.loads(content)["error"]) == (415, "send JSON (Content-Type: application/json)")


def test_uploads_are_bounded_before_they_are_read(studio):
    known = {"Authorization": f"Bearer {studio.token}", "Content-Type": "application/json"}
    status, _, content = studio.raw("POST", "/api/draw", known | {"Content-Length": str(MAX_BODY_BYTES + 1)}, b"{")
    assert status == 413 and "16 MiB at most" in json.loads(content)["error"]
    status, _, _ = studio.raw("POST", "/api/draw", known | {"Transfer-Encoding": "chunked"}, b"2\r\n{}\r\n0\r\n\r\n")
    assert status == 413


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"[" * 100_000, b'{"model": 1}', b'{"model": null}'])
def test_what_is_no_request_is_one_line(studio, body):
    known = {"Authorization": f"Bearer {studio.token}", "Content-Type": "application/json"}
    status, _, content = studio.raw("POST", "/api/draw", known, body)
    assert status == 400 and "\n" not in json.loads(content)["error"]


def test_paths_stay_in_the_folders(studio):
    outside = studio.outside
    for path in ("/etc/passwd", f"{outside}/secret.txt", f"{studio.folder}/../{outside.name}/secret.txt"):
        assert "not in the folders" in studio.get("file", 403, path=path)["error"]
    for path in ("link.txt", "linked/secret.txt", "linked", "shapes/../../x"):
        assert "not in the folders" in studio.get("file", 403, path=path)["error"]
    for path in ("", "a\0b", "/api"):
        assert "error" in studio.get("file", 403 if path == "/api" else 400, path=path)
    assert "code.py is no picture and no text" in studio.get("file", 400, path="code.py")["error"]
    assert studio.get("file", 404, path="gone.png")["error"].endswith("is not there any more")
    for address in ("/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "//etc/passwd"):
        assert studio.raw("GET", address, {"Authorization": f"Bearer {studio.token}"})[0] in (403, 404)
    for name in ("../../x", "x.png", "a" * 24 + ".json"):
        assert studio.raw("GET", f"/api/drawn/{name}", {"Authorization": f"Bearer {studio.token}"})[0] == 404


def test_nothing_is_written_or_read_outside_by_a_form(studio):
    outside = str(studio.outside)
    data = str(studio.folder / "shapes")
    for args in ({"output_dir": outside}, {"output_dir": "linked/x"}, {"output_dir": "m", "train_data_dir": outside}):
        given = {"train_data_dir": data} | args
        assert "not in the folders" in studio.post("train/start", 403, args=given)["error"]
    assert "no path" in studio.post("train/start", 400, args={"train_data_dir": data})["error"]
    for action in ("pause", "continue", "stop", "sample", "save"):
        assert "not in the folders" in studio.post(f"runs/{action}", 403, path=outside)["error"]
    assert "not in the folders" in studio.post("data/look", 403, path=outside)["error"]
    for args in ({"x; rm -rf": 1}, {"--config": "x"}, {"a=b": 2}):
        assert "no name of a flag" in studio.post("train/plan", 400, args=args)["error"]
    assert "no name on the Hub" in studio.post("push", 400, path=data, repo_id="--token=x")["error"]
    assert os.listdir(outside) == ["secret.txt"]
    assert studio.get("state")["jobs"] == []


def test_a_folder_of_somebody_else_names_no_code_and_no_data_outside(studio):
    run = studio.folder / "theirs"
    (run / "checkpoint-1").mkdir(parents=True)
    (run / "checkpoint-1" / "manifest.json").write_text("{}")
    (run / "checkpoint-2").mkdir()
    for name in ("manifest.json", "model_index.json"):  # a checkpoint that looks like a model
        (run / "checkpoint-2" / name).write_text("{}")
    for line, status, why in (
        ("dataset_name: os:getcwd", 400, "names code"),
        ("adapter: os:system", 400, "names code"),
        ("optimizer: os:system", 400, "names code"),
        (f"dataset_name: {studio.outside}", 403, "not in the folders"),
        (f"train_data_dir: {studio.outside}", 403, "not in the folders"),
        ("train_data_dir: ../outside", 403, "not in the folders"),
        (f"logging_dir: {studio.outside}", 403, "not in the folders"),
        (f"pretrained_model_name_or_path: {studio.outside}", 403, "not in the folders"),
    ):
        (run / "training_config.yaml").write_text(f"conditioning: class\n{line}\n")
        assert why in studio.post("runs/continue", status, path=str(run))["error"]
        for name in ("checkpoint-1", "checkpoint-2"):
            draw = {"model": str(run / name), "conditions": [None], "seeds": [0]}
            assert why in studio.post("draw", status, **draw)["error"]
        assert why in studio.post("evaluate", status, model=str(run))["error"]
    assert studio.get("state")["jobs"] == []


def test_text_of_others_is_sent_as_text(studio):
    """The page puts it into the document as text; a report is shown where nothing runs."""
    known = {"Authorization": f"Bearer {studio.token}"}
    for name in (f"{NASTY}.txt", "page.html"):
        _, headers, _ = studio.raw("GET", f"/api/file?path={name.replace(' ', '%20')}", known)
        assert headers["x-content-type-options"] == "nosniff"
        if name.endswith(".html"):
            assert headers["content-security-policy"].startswith("sandbox; default-src 'none'")
        else:
            assert headers["content-type"].startswith("text/plain")


def test_no_flag_that_takes_code_is_followed_on_a_folders_own_word(tmp_path):
    """Each whose help offers module:NAME, so that a new one is not forgotten."""
    fields = [field for group in training_form() for field in group["fields"]]
    names = {field["name"] for field in fields if "module:" in field["help"]}
    assert {"dataset_name", "optimizer", "adapter", "unet_size", "objective", "feature_extractor"} <= names
    for name in names:
        with pytest.raises(UserError, match="names code"):
            check_recorded({name: "evil:code"}, Places([str(tmp_path)]))
