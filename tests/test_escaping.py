"""Text of others stays text, in each place of a card and on a terminal."""

import ast

import pytest
import yaml
from markdown_it import MarkdownIt

from cond_pipelines.console import for_terminal
from cond_pipelines.settings import quoted
from cond_pipelines.sharing.escaping import code_line, markdown_text, python_source, shell_word, table_cell

NASTY = [
    "# Heading",
    "rose\n\n# Heading\n\n```bash\nrm -rf ~\n```",
    "<script>alert(1)</script>",
    "[click](http://evil.example)",
    "![x](http://evil.example/x.png)",
    "https://evil.example www.evil.example",
    "a | b | c",
    "| --- |",
    "`code` **bold** _it_ ~~no~~ &amp; $x$",
    "- item",
    "1. item",
    "---",
    "\x1b[2J\x1b]0;title\x07",
    "\u202eesrever\u200b",
    "---\nlicense: mit\n---",
]


@pytest.mark.parametrize("text", NASTY)
def test_markdown_is_text(text):
    markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for shown, start in (
        (markdown_text(text), ""),
        (markdown_text(text), "- "),
        (table_cell(text), "| a |\n|---|\n| "),
    ):
        kinds = {token.type for token in markdown.parse(start + shown + (" |" if start.startswith("|") else ""))}
        inner = {child.type for token in markdown.parse(start + shown) for child in token.children or []}
        allowed = {"paragraph", "bullet_list", "list_item", "inline", "table", "thead", "tbody", "tr", "th", "td"}
        assert {kind.removesuffix("_open").removesuffix("_close") for kind in kinds} <= allowed, shown
        assert inner <= {"text", "text_special"}, shown
    assert "\n" not in markdown_text(text) and markdown_text(text).isprintable()
    assert "http://" not in markdown_text(text) and "https://" not in markdown_text(text)


def test_a_cell_stays_one_cell():
    assert table_cell("a | b").count("|") == table_cell("a | b").count(r"\|") == 1


@pytest.mark.parametrize("text", NASTY)
def test_code_is_the_same_string(text):
    source = python_source(f"x = {quoted([text, {'a': text}])}")
    assert source.isprintable() and ast.literal_eval(source.removeprefix("x = ")) == [text, {"a": text}]
    assert "```" not in code_line(text) and "\n" not in code_line(text)
    assert "\n" not in shell_word(text) and "`" not in shell_word(text)


@pytest.mark.parametrize("text", NASTY)
def test_terminals_and_yaml(text):
    assert for_terminal(text).isprintable()
    assert yaml.safe_load(yaml.safe_dump({"a": text})) == {"a": text}


def test_ordinary_text_is_as_it_was():
    for text in ("a red circle", "0.1492", "yellow_circle", "2 CPU cores", "DDPMScheduler, v_prediction", "née, 花"):
        assert markdown_text(text) == table_cell(text) == code_line(text) == for_terminal(text) == text
    assert markdown_text("x" * 1000) == "x" * 499 + "…"
