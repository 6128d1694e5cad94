"""The last look at what goes up in a push: does a file tell of this machine or its user, or hold a key?

What is searched for is searched as it is and as others write it: in JSON, in an address, in base64, in hexadecimal
digits, in UTF-16. Escapes in text are resolved first.
"""

import base64
import getpass
import html
import json
import netrc
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from huggingface_hub import get_token
from huggingface_hub.utils import get_stored_tokens

from ..errors import UserError

_SEARCHED_BYTES, _OVERLAP_BYTES, _AROUND_BYTES, _MAX_HEADER_BYTES = 2**24, 8192, 512, 2**27
_TOKEN = re.compile(
    rb"\b(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{50,}|glpat-[\w-]{20,}|npm_[A-Za-z0-9]{36}"
    rb"|sk-[A-Za-z0-9_-]{32,}|(AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{35}|xox[abprs]-[\w-]{20,})\b"
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
# What stands in each of these.
_TOKEN_ANCHORS = (
    *(
        b"hf_",
        b"ghp_",
        b"gho_",
        b"ghu_",
        b"ghs_",
        b"ghr_",
        b"github_pat_",
        b"glpat-",
        b"npm_",
        b"sk-",
        b"AKIA",
        b"ASIA",
    ),
    *(b"AIza", b"xoxa-", b"xoxb-", b"xoxp-", b"xoxr-", b"xoxs-", b"PRIVATE KEY-----"),
)
_KEY_VARIABLE = re.compile(r".*(TOKEN|API_?KEY|ACCESS_?KEY|SECRET|PASSWORD|CREDENTIALS?)", re.IGNORECASE)
_COMMON_USERS = {"root", "user", "users", "admin", "ubuntu", "runner", "docker", "jovyan", "app", "test", "home"}
_TEXT = (".json", ".md", ".yaml", ".txt", ".py", ".jinja")
_SHORTEST_KEY, _SHORTEST_ENCODED = 8, 9  # characters; less is in many files by chance


@dataclass
class Secret:
    """What must not go up.

    Args:
        what: in words.
        anchors: bytes that are looked for first, which is a hundred times as fast as a pattern.
        pattern: what must stand around an anchor; None: the anchor is all.
        encoded: the same as others write it, which is not looked for in the numbers of weights.
    """

    what: str
    anchors: tuple[bytes, ...]
    pattern: re.Pattern[bytes] | None = None
    encoded: tuple[bytes, ...] = ()
    in_text_only: bool = False

    def found_in(self, part: bytes, is_numbers: bool = False) -> bytes | None:
        """The bytes that tell it, where there are some."""
        for anchor in self.anchors:
            start = part.find(anchor)
            while start >= 0:
                end = start + len(anchor)
                if self.pattern is None:
                    return anchor
                if match := self.pattern.search(part, max(0, start - _AROUND_BYTES), end + _AROUND_BYTES):
                    return match.group()
                start = part.find(anchor, end)
        return None if is_numbers else next((form for form in self.encoded if form in part), None)


def secrets_of(paths: Iterable[Path], tokens: Iterable[str | None], repo_id: str) -> list[Secret]:
    """What tells of this machine and its user, and the keys that they have.

    Args:
        paths: to search for, in addition to the home folder and the working folder.
        tokens: to search for, in addition to those of huggingface_hub, of the environment and of ~/.netrc.
        repo_id: the name of its owner is public, also where it is the user's name here.
    """
    folders = {"the home folder": Path.home(), "the working folder": Path.cwd()}
    folders |= {f"the folder {path}": path for path in paths}
    found = []
    for what, path in folders.items():
        shortest = 2 if path == Path.home() else 3  # /tmp tells nothing of anybody
        for form in {str(path), str(path.resolve())} if len(path.resolve().parts) >= shortest else ():
            found.append(_any_form(what, form, ends_here=True))
    found += [_any_form("a token", token) for token in {token for token in (*tokens, *_known_tokens()) if token}]
    found.append(Secret("what looks like a token", _TOKEN_ANCHORS, _TOKEN))
    user = _user()
    if user is not None:
        name = user.encode()
        of_path = rb"[/\\](?:home|Users)[/\\]+" + re.escape(name) + rb"(?![\w.-])"
        written = tuple(dict.fromkeys((name, name.capitalize(), name.lower(), name.upper())))  # as Windows shows it
        found.append(Secret("the user's name", written, re.compile(of_path, re.IGNORECASE)))
        if len(user) > 2 and user.lower() not in (_COMMON_USERS | {repo_id.split("/")[0].lower()}):
            word = re.compile(rb"(?<![A-Za-z0-9])" + re.escape(name) + rb"(?![A-Za-z0-9])")
            found.append(Secret("the user's name", (name,), word, in_text_only=True))
    return found


def _known_tokens() -> Iterator[str | None]:
    yield get_token()
    with suppress(OSError, ValueError):
        yield from get_stored_tokens().values()
    for name, value in os.environ.items():
        is_key = _KEY_VARIABLE.fullmatch(name) and not value.isdecimal() and not os.path.exists(value)
        yield value if is_key and len(value) >= _SHORTEST_KEY else None
    with suppress(OSError, RuntimeError, netrc.NetrcParseError):
        for _user_name, _account, password in netrc.netrc().hosts.values():
            yield password if password and len(password) >= _SHORTEST_KEY else None


def _any_form(what: str, text: str, ends_here: bool = False) -> Secret:
    """A text as it is, and as JSON, an address, base64, hexadecimal digits and UTF-16 write it.

    Args:
        ends_here: the same path with more letters behind it is another one.
    """
    forms = {text, json.dumps(text)[1:-1], text.replace("\\", "/"), text.replace("/", "\\/")}
    anchors = tuple(form.encode() for form in sorted(forms | {quote(text), quote(text, safe="")}))
    pattern = re.compile(b"(?:%s)(?![\\w.-])" % b"|".join(map(re.escape, anchors))) if ends_here else None
    data = text.encode()
    if len(data) < _SHORTEST_ENCODED:
        return Secret(what, anchors, pattern)
    # In base64 three bytes are four letters, so a text within another one has three forms.
    whole = [base64.b64encode(b"\0" * i + data) for i in range(3)]
    encoded = {form[-(-4 * i // 3) : (4 * (i + len(data))) // 3] for i, form in enumerate(whole)}
    encoded |= {form.replace(b"+", b"-").replace(b"/", b"_") for form in encoded}
    encoded |= {text.encode("utf-16-le"), text.encode("utf-16-be")}
    encoded |= {data.hex().encode(), data.hex().upper().encode()}
    return Secret(what, anchors, pattern, tuple(sorted(encoded)))


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return None


def refuse_secrets(stage: Path, secrets: list[Secret]) -> None:
    """Search every byte below `stage`. Raises UserError with the name of a file that tells of this machine."""
    files = [path for path in stage.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: (path.name == "README.md", path)):  # the card repeats what others say
        for part, is_numbers in _parts(path):
            for secret in secrets:
                if secret.in_text_only and path.suffix not in _TEXT:
                    continue
                if (found := secret.found_in(part, is_numbers)) is not None:
                    is_key = "token" in secret.what
                    shown = "" if is_key else f" ({found.decode(errors='replace')})"
                    raise UserError(
                        f"not pushed: {path.relative_to(stage)} holds {secret.what}{shown}: take it out of that file"
                    )


def _parts(path: Path) -> Iterator[tuple[bytes, bool]]:
    """(the bytes of a file, whether they are numbers of weights), in parts that overlap by more than what is searched
    for; then what its text says."""
    is_weights = path.suffix == ".safetensors"
    with path.open("rb") as file:
        rest = b""
        while part := file.read(_SEARCHED_BYTES):
            yield rest + part, is_weights
            if path.suffix in _TEXT:
                yield _resolved(rest + part), False
            rest = part[-_OVERLAP_BYTES:]
    if is_weights:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(min(length, _MAX_HEADER_BYTES))
            yield header, False
            yield _resolved(header), False
    if path.suffix == ".png":
        for text in _texts_of_png(path):
            yield text, False
            yield _resolved(text), False


def _resolved(text: bytes) -> bytes:
    r"""With the escapes of JSON, YAML, addresses and HTML resolved: "\u002fhome", "%2Fhome", "&#47;home"."""
    for _ in range(2):  # JSON in JSON
        if b"\\" in text:
            text = re.sub(
                rb"\\+(?:u\{?([0-9a-fA-F]{1,4})\}?|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2})|([0-7]{3}))", _character, text
            )
        if b"%" in text:
            text = unquote_to_bytes(text)
        if b"&" in text:
            text = html.unescape(text.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogatepass")
    return text


def _character(match: re.Match[bytes]) -> bytes:
    number = int(match[4], 8) if match[4] else int(match[1] or match[2] or match[3], 16)
    return chr(min(number, sys.maxunicode)).encode("utf-8", "surrogatepass")


def _texts_of_png(path: Path) -> list[bytes]:
    """Its texts and its profile of colours, which may be compressed."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            texts = "\n".join(f"{key} {value}" for key, value in image.info.items())
            return [texts.encode("utf-8", "replace"), image.info.get("icc_profile") or b""]
    except Exception as error:  # Pillow has no base class for what broken files raise
        why = " ".join(str(error).split())
        raise UserError(f"not pushed: {path.name} is no PNG that can be read: {why}") from error
