"""`cond-pipelines export --to web`: the page in a real browser draws what PyTorch draws, for everybody, offline."""

import importlib.util
import itertools
import json
import os
import sys
import tarfile
import unicodedata
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from hub_server import TOKEN
from parents_common import stable_diffusion
from test_export import FLOW, loud
from web import Page, browser, difference, find_chromium, server

from cond_pipelines import (
    ClassConditionalPipeline,
    ClassLabelAdapter,
    ConditionalPipeline,
    EmbeddingAdapter,
    TextAdapter,
    TextToImagePipeline,
    UnconditionalAdapter,
    UnconditionalPipeline,
    build_unet,
    builtin_model,
)
from cond_pipelines.cli import main
from cond_pipelines.errors import UserError
from cond_pipelines.export import onnxruntime_web as runtime
from cond_pipelines.export import web_folder
from cond_pipelines.networks.surgery import with_end_time
from cond_pipelines.networks.text_encoders import new_text_encoder

NPM = Path(sys.prefix) / "npm"  # where `make test` puts what it gets from npm
PACKAGE, AXE = NPM / f"{runtime.PACKAGE}-{runtime.VERSION}.tgz", NPM / "axe-core-4.14.1.tgz"
PAGES = ("shapes-class", "shapes-text", "few-steps", "guide")
MAX_DIFFERENCE = 2  # of 255
NASTY = "<img src=x onerror=alert(1)>"
CAPTIONS = ["a red circle on black", "ein großer Kreis", "一只红色的猫", "แมวสีแดง", "赤い猫がいる", "it's two stars"]
TEXTS = [
    *CAPTIONS,
    *(
        "",
        " ",
        "  two  spaces ",
        "A RED Circle",
        "tabs\tand\nlines\n of\r\n text",
        "\u0085next\u0085line",
        "\ufeffmark",
    ),
    *(
        "İstanbul ΣΑΣ ΟΔΟΣ",
        "ﬁne ½ ² Ⅻ ｆｕｌｌ",
        "e\u0301 é ẞ ǅ",
        "don't we'll I'VE they'd",
        "1,234.5 % of 2²",
        "👩‍👩‍👧 🏳️‍🌈 emoji",
    ),
    *(
        "x" * 200,
        "猫" * 70,
        "word " * 90,
        "<pad> a <end> b",
        "a<start>",
        "<PAD>",
        "привет мир",
        "مرحبا بالعالم",
        "नमस्ते",
    ),
    *(
        "\u3000wide\u3000space",
        "\u00a0no\u00a0break",
        "\u200bzero\u200dwidth",
        "កម្ពុជា ມ້າ မြန်မာ བོད་",
        "\x00\x01\x1c\x7f",
        "'s 't",
        "a\u2028b",
    ),
]


def needed(what: str, is_there: bool) -> None:
    """Skip what this machine lacks; a failure where .ci/run has installed it, and has set PAGES_ARE_TESTED."""
    if not is_there:
        (pytest.fail if os.environ.get("PAGES_ARE_TESTED") else pytest.skip)(f"{what} is not installed: see Makefile")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of small models with random weights: what the builtin ones do not have."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    unet = with_end_time(unet_of())
    gray, weaker = (build_unet("xxs", sample_size=(8, 12), channels=1, block_out_channels=(32, 32)) for _ in range(2))
    label = ClassLabelAdapter.for_unet(unet, id2label={0: NASTY, 3: "cat", 4: "cat", 5: "a, b"})
    loud(unet, gray, weaker, label)
    common = {"default_num_inference_steps": 3, "default_guidance_scale": 1.5}
    ClassConditionalPipeline(
        unet, FLOW(stochastic_sampling=True), label, **common, objective={"name": "distillation"}
    ).save_pretrained(folder / "few-steps")
    UnconditionalPipeline(
        gray,
        FlowMatchHeunDiscreteScheduler(shift=2.0),
        UnconditionalAdapter.for_unet(gray),
        guide=weaker,
        default_num_inference_steps=3,
        default_guidance_scale=-0.5,  # beyond what the page's control has
    ).save_pretrained(folder / "guide")
    return folder


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The folder of onnxruntime-web, which the package of npm holds."""
    needed("onnxruntime-web", PACKAGE.is_file())
    folder = tmp_path_factory.mktemp("package")
    for name, content in runtime.onnxruntime_web(PACKAGE).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def pages(models, package, tmp_path_factory):
    """The address of a folder with the page of each model."""
    needed("chromium", find_chromium() is not None)
    needed("playwright", importlib.util.find_spec("playwright") is not None)
    folder = tmp_path_factory.mktemp("pages")
    command = ["export", "builtin:shapes-class", str(folder / "shapes-class"), "--to", "web"]
    main([*command, "--onnxruntime_web", str(package)])
    others = {"shapes-text": builtin_model("shapes-text")} | {path.name: path for path in models.iterdir()}
    for name, path in others.items():
        pipe = ConditionalPipeline.from_pretrained(path)
        web_folder.write_web(pipe, folder / name, name=name, source=f"me/{name}", runtime=package)
        assert sum(x.stat().st_size for x in (folder / name).iterdir()) < 30e6
    with server(folder) as address:
        yield address


@pytest.fixture(scope="module")
def chromium(pages):
    # For the few images here, what the optimizing compiler costs is more than it gives.
    with browser("--js-flags=--liftoff-only") as chromium:
        yield chromium


@pytest.fixture(scope="module")
def all_opened(chromium, pages):
    return {name: Page.opened(chromium, f"{pages}/{name}") for name in PAGES}


@pytest.fixture()
def opened(all_opened):
    """The page of each model by its name, as the test before left it. Nothing may go wrong on any of them."""
    yield all_opened.__getitem__
    assert {name: page.faults for name, page in all_opened.items() if page.faults} == {}


def pipe_of(path):
    pipe = ConditionalPipeline.from_pretrained(path)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# -------------------------------------------------------------------------------------------------- the same images
@pytest.mark.parametrize(
    ("name", "condition", "controls"),
    [
        ("shapes-class", "ring", {"Class": "4"}),
        (
            "shapes-text",
            "a large red circle on a black background",
            {"Caption": "a large red circle on a black background"},
        ),
        ("few-steps", 3, {"Class": "3"}),  # 4 has the same name
        ("guide", None, {}),
    ],
)
def test_it_draws_what_pytorch_draws(name, condition, controls, models, opened):
    page, pipe = opened(name), pipe_of(models / name if (models / name).is_dir() else builtin_model(name))
    has_guidance = name != "few-steps"
    assert page.page.get_by_label("Guidance", exact=True).is_visible() == has_guidance
    image = pipe.sample([condition], generator=7).images[0]
    assert difference(page.draw(Seed=7, **controls), image) <= MAX_DIFFERENCE
    changed = {"Guidance": 4} if has_guidance else {}
    sampling = {"guidance_scale": 4.0} if has_guidance else {}
    image = pipe.sample([condition], generator=2**32 - 1, num_inference_steps=6, **sampling).images[0]
    assert difference(page.draw(Seed=2**32 - 1, Steps=6, **changed), image) <= MAX_DIFFERENCE
    if condition is not None:
        none = {"Class": ""} if "Class" in controls else {"Caption": "  "}
        image = pipe.sample([None], generator=1, num_inference_steps=2).images[0]
        assert difference(page.draw(Seed=1, Steps=2, **none), image) <= MAX_DIFFERENCE


def test_the_line_of_python_draws_the_image(opened):
    page = opened("shapes-class")
    pixels = page.draw(Class="2", Seed=3, Steps=5)
    namespace = {"ConditionalPipeline": ConditionalPipeline}
    lines = page.page.locator("#python").inner_text().replace("builtin:shapes-class", builtin_model("shapes-class"))
    assert "class_labels" not in lines and '["triangle"]' in lines
    exec(lines, namespace)
    assert difference(pixels, namespace["image"]) <= MAX_DIFFERENCE


def test_noise_is_that_of_torch(opened):
    page = opened("few-steps").page
    script = "([seed, n]) => import('./noise.js').then(m => { const g = new m.TorchGenerator(seed); "
    script += "return [...g.normal(n), ...g.normal(n)]; })"
    for seed, count in itertools.product((0, 123456789, 2**32 - 1), (17, 768, 1000)):
        generator = torch.Generator().manual_seed(seed)
        expected = torch.cat([torch.randn(count, generator=generator) for _ in range(2)])
        assert (torch.tensor(page.evaluate(script, [seed, count])) - expected).abs().max() < 1e-6


def test_ids_are_those_of_python(opened):
    """Of the builtin model's tokenizer, and of one whose captions have other scripts."""
    few = foreign_captions()
    script = "([facts, texts]) => import('./tokenizer.js').then(m => texts.map(x => new m.Tokenizer(facts).encode(x)))"
    # Of newer characters a browser may know more than the tokenizer's library, or less.
    old = [chr(c) for c in range(sys.maxunicode) if unicodedata.ucd_3_2_0.category(chr(c)) not in ("Cn", "Co", "Cs")]
    old = old[::8]
    for pipe, every in ((few, 1), (pipe_of(builtin_model("shapes-text")), 10)):
        texts = TEXTS + ["".join(old[i : i + 12]) for i in range(0, len(old), 12 * every)]
        found = opened("shapes-text").page.evaluate(script, [web_folder._tokenizer(pipe), texts])
        for text, ids in zip(texts, found, strict=True):
            inputs = pipe.adapter.preprocess([text], pipe.tokenizer)
            assert ids == inputs["input_ids"][0][: int(inputs["attention_mask"].sum())].tolist(), ascii(text)


# --------------------------------------------------------------------------------------------------------- for all
def test_nothing_that_axe_finds_and_nothing_wider_than_a_phone(opened):
    needed("axe-core", AXE.is_file())
    with tarfile.open(AXE) as package:
        axe = package.extractfile("package/axe.min.js").read().decode()
    for name, scheme in (
        ("guide", "light"),
        ("shapes-class", "dark"),
        ("shapes-text", "light"),
        ("shapes-text", "dark"),
    ):
        page = opened(name).page
        page.set_viewport_size({"width": 360, "height": 740})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
        page.evaluate(axe)
        found = page.evaluate("axe.run().then(result => result.violations.map(x => [x.id, x.nodes[0].html]))")
        assert found == []


def test_by_keyboard_alone(opened):
    page = opened("shapes-text")
    keys, image, slider = page.page.keyboard, page.page.locator("#image"), page.page.get_by_role("slider")
    page.page.get_by_label("Caption", exact=True).focus()
    for text in ("a green cross", "12", "3"):
        keys.press("Control+A")
        keys.type(text)
        keys.press("Enter")
        page.wait_until_shown()
        keys.press("Tab")
    assert image.get_attribute("aria-label") == "a green cross, seed 12, 3 steps"
    last = page.pixels()
    page.page.get_by_role("button", name="Play the film").focus()
    keys.press("Tab")
    assert slider.get_attribute("aria-valuetext") == "the image"
    keys.press("Home")
    assert slider.get_attribute("aria-valuetext") == "noise" and (page.pixels() != last).any()
    keys.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "step 1 of 3"
    page.page.get_by_role("button", name="Surprise me").press("Enter")
    page.wait_until_shown()
    assert page.page.get_by_role("status").inner_text().startswith("Drawn in ")
    assert (page.pixels() != last).any()
    page.page.get_by_role("button", name="Show again: a green cross, seed 12, 3 steps").press("Enter")
    assert (page.pixels() == last).all() and page.page.get_by_label("Seed", exact=True).input_value() == "12"


# What the button said, one after the other: on a busy machine nobody may look within the film's two seconds.
NOTE_LABELS = """() => {
  const [play, labels] = [document.getElementById("play"), []];
  new MutationObserver(() => {
    labels.push(play.textContent);
    document.body.dataset.labels = labels;
  }).observe(play, { childList: true });
}"""


def test_a_film_plays_to_its_end_and_a_wrong_number_draws_nothing(opened):
    page = opened("shapes-class")
    last, body = page.draw(Steps=3), page.page.locator("body")
    number = body.get_attribute("data-requested")
    page.page.evaluate(NOTE_LABELS)
    page.page.get_by_role("button", name="Play the film").click()
    page.page.locator("body[data-labels='Stop,Play the film']").wait_for(timeout=120_000)
    assert (page.pixels() == last).all()
    page.page.get_by_label("Steps", exact=True).fill("51")
    page.page.get_by_role("button", name="Draw", exact=True).click()
    assert page.page.locator("input:invalid").count() == 1 and body.get_attribute("data-requested") == number
    page.page.get_by_label("Steps", exact=True).fill("3")


def test_names_and_captions_are_never_html(opened):
    page = opened("few-steps")
    page.draw(Class="0", Seed=1)
    assert page.page.locator("#class option").first.inner_text() == NASTY
    page = opened("shapes-text")
    page.draw(Caption=NASTY, Steps=2)
    assert NASTY in page.page.locator("#python").inner_text() and page.page.locator("img").count() == 0


def test_a_newer_request_ends_the_one_before(opened):
    page = opened("shapes-class")
    page.page.get_by_label("Steps", exact=True).fill("20")
    before = page.page.locator("#drawn li").count()
    for seed in ("1", "2", "3"):
        page.page.get_by_label("Seed", exact=True).fill(seed)
        page.page.get_by_role("button", name="Draw", exact=True).click()
    page.wait_until_shown()
    assert "seed 3, 20 steps" in page.page.locator("#image").get_attribute("aria-label")
    assert page.page.locator("#drawn li").count() <= before + 3


def test_a_page_opened_as_a_file_or_without_javascript_says_what_it_needs(chromium):
    for is_on in (True, False):
        page = chromium.new_context(java_script_enabled=is_on).new_page()
        page.goto((web_folder.PAGE / "index.html").as_uri())
        assert "needs JavaScript and a web server" in page.locator("#status").inner_text()
        page.context.close()


def test_steps_that_are_no_numbers_are_none_of_the_page():
    pipe = none_pipe(scheduler=FLOW(shift_terminal=0.1))  # in one step, 0 / 0
    assert list(web_folder._steps(pipe)) == [str(n) for n in range(2, 51)]
    with pytest.raises(ValueError, match="cannot make 1 steps: its options give timesteps that are no numbers"):
        pipe.sample([None], num_inference_steps=1)


# ----------------------------------------------------------------------------------------------------------- the Hub
def test_push_puts_the_page_into_a_static_space_that_the_card_links(models, package, hub, capsys):
    command = ["push", str(models / "few-steps"), "few-steps", "--token", TOKEN, "--private"]
    command += ["--web", "--onnxruntime_web", str(package)]
    main(command)
    assert capsys.readouterr().out.strip().startswith(f"{hub.url}/me/few-steps/commit/")
    assert {made.get("type"): made.get("sdk") for made in hub.created} == {"space": "static", None: None}
    assert set(hub.repos) == {"spaces/me/few-steps", "me/few-steps"} and all(x.private for x in hub.repos.values())
    files = hub.repos["spaces/me/few-steps"].files()
    page = {path.name for path in web_folder.PAGE.iterdir()} | set(runtime.FILES) | {"NOTICE.txt", "model.json"}
    assert set(files) == page | {"unet.onnx", "adapter.onnx", "README.md", ".gitattributes"}
    head = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert head["sdk"] == "static" and head["app_file"] == "index.html" and head["models"] == ["me/few-steps"]
    assert json.loads(files["model.json"])["source"] == "me/few-steps"
    card = hub.repos["me/few-steps"].files()["README.md"].decode()
    assert "(https://huggingface.co/spaces/me/few-steps)" in card
    assert str(models) not in str(files) and TOKEN.encode() not in b"".join(files.values())


def test_a_space_of_somebody_s_own_is_left_alone(models, package, hub, capsys):
    space = hub.add("spaces/me/guide", {"app.py": b"mine", "README.md": b"mine"})
    with pytest.raises(SystemExit):
        main(["push", str(models / "guide"), "me/guide", "--token", TOKEN, "--web", "--onnxruntime_web", str(package)])
    assert "holds something else (app.py)" in capsys.readouterr().err
    assert space.files() == {"app.py": b"mine", "README.md": b"mine"} and set(hub.repos) == {"spaces/me/guide"}


def test_a_model_that_cannot_be_a_page_is_not_pushed(models, hub, tmp_path, capsys):
    vector_pipe().save_pretrained(tmp_path / "vectors")
    for words, folder, flags in (
        ("cannot become a page", tmp_path / "vectors", []),
        ("main", models / "guide", ["--create_pr"]),
    ):
        with pytest.raises(SystemExit):
            main(["push", str(folder), "me/x", "--token", TOKEN, "--web", "--onnxruntime_web", str(tmp_path), *flags])
        line = capsys.readouterr().err.rstrip().splitlines()[-1]
        assert line.startswith("error: ") and words in line and hub.requests == []


# ---------------------------------------------------------------------------------------------- what is refused, how
def unet_of(**arguments):
    return build_unet("xxs", sample_size=8, block_out_channels=(32, 32), **arguments)


def none_pipe(unet=None, scheduler=None, **others):
    unet = unet_of() if unet is None else unet
    adapter = UnconditionalAdapter.for_unet(unet)
    return UnconditionalPipeline(unet, scheduler or FLOW(), adapter, default_num_inference_steps=2, **others)


def vector_pipe():
    unet = unet_of()
    return ConditionalPipeline(unet, FLOW(), EmbeddingAdapter.for_unet(unet, embedding_dim=2))


def foreign_captions():
    text_encoder, tokenizer = new_text_encoder(CAPTIONS, hidden_size=32, num_layers=1, max_length=40)
    unet = unet_of()
    adapter = TextAdapter.for_unet(unet, text_encoder=text_encoder)
    return TextToImagePipeline(unet, FLOW(), adapter, text_encoder=text_encoder, tokenizer=tokenizer)


def foreign_tokenizer():
    pipe = foreign_captions()
    pipe.tokenizer.add_tokens(["<cat>"])
    return pipe


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (vector_pipe, "EmbeddingAdapter"),
        (foreign_tokenizer, "new text encoder"),
        (lambda: TextToImagePipeline.from_pipe(stable_diffusion()), "use --to onnx"),
        (
            lambda: none_pipe(scheduler=DPMSolverMultistepScheduler(), objective={"name": "flow_matching"}),
            "use_scheduler",
        ),
        (
            lambda: none_pipe(scheduler=EulerDiscreteScheduler(), objective={"name": "ddpm"}),
            "--objective flow_matching",
        ),
        (lambda: none_pipe(unet_of(channels=2)), "1, 3 or 4"),
        (lambda: none_pipe(build_unet("xxs", sample_size=2, block_out_channels=(32, 32))), "2 x 2 px"),
        (lambda: none_pipe(scheduler=FLOW(use_dynamic_shifting=True)), "cannot make its 2 steps"),
    ],
)
def test_what_the_page_cannot_draw_is_refused_in_one_line(make, words, tmp_path):
    with pytest.raises(UserError) as error:
        web_folder.write_web(make(), tmp_path / "out", name="x", source="x", runtime={})
    assert words in str(error.value) and "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_page_that_is_too_large_and_weights_that_half_precision_would_change(monkeypatch, tmp_path, capsys):
    pipe = none_pipe()
    weights = [p.clone() for p in pipe.unet.parameters()]
    assert web_folder._keeps_images_in_half(pipe, [])
    monkeypatch.setattr(web_folder, "_MAX_DIFFERENCE", 0.0)
    for most, words in ((1, "in half precision; train"), (3, "in single, since half .*; train")):
        monkeypatch.setattr(web_folder, "MAX_BYTES", most * sum(p.numel() for p in weights))
        with pytest.raises(UserError, match=rf"would have \d\.\d MB, and \d MB is the limit: .* {words} a smaller one"):
            web_folder.write_web(pipe, tmp_path / "out", name="x", source="x", runtime={})
        assert (tmp_path / "out").exists() == (most == 3)  # the first is refused before anything is made
    assert "single precision" in capsys.readouterr().err
    assert all(map(torch.equal, weights, pipe.unet.parameters()))


def test_the_command_names_a_wrong_package(tmp_path, capsys):
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for name in runtime.FILES:
        (wrong / name).write_text("something else")
    (tmp_path / "text.tgz").write_text("no archive")
    with tarfile.open(tmp_path / "empty.tgz", "w:gz"):
        pass
    for given, words in (("wrong", "SHA-512 differs"), ("text.tgz", "no package"), ("empty.tgz", "lacks ort.wasm")):
        out = tmp_path / "out"
        with pytest.raises(SystemExit):
            main(
                ["export", "builtin:shapes-class", str(out), "--to", "web", "--onnxruntime_web", str(tmp_path / given)]
            )
        line = capsys.readouterr().err.rstrip("\n").splitlines()[-1]
        assert line.startswith("error: ") and words in line and "npm" in line and not out.exists()


def test_the_runtime_is_downloaded_once_and_checked(tmp_path, monkeypatch):
    """From a server of this machine, with contents that stand for the real ones; see the test with the package."""
    served = tmp_path / "served"
    served.mkdir()
    content = {name: name.encode() for name in runtime.FILES}
    for name in content:
        (served / name).write_bytes(content[name])
    monkeypatch.setattr(runtime, "FILES", {name: runtime._digest(content[name]) for name in content})
    with server(served) as address:
        monkeypatch.setattr(runtime, "ADDRESS", f"{address}/")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(UserError, match="HF_HUB_OFFLINE is set: get it with `npm pack onnxruntime-web@"):
            runtime.onnxruntime_web()
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        first = next(iter(content))
        (served / first).write_bytes(b"changed on the way")
        with pytest.raises(UserError, match="SHA-512 differs"):
            runtime.onnxruntime_web()
        (served / first).unlink()
        with pytest.raises(UserError, match=r"cannot be downloaded: .*404"):
            runtime.onnxruntime_web()
        (served / first).write_bytes(content[first])
        assert runtime.onnxruntime_web() == content
    assert runtime.onnxruntime_web() == content  # the server is gone
