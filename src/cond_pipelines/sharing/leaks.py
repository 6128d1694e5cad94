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
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from huggingface_hub import get_token
from huggingface_hub.utils import get_stored_tokens

from ..errors import UserError

_SEARCHED_BYTES, _OVERLAP_BYTES = 2**24, 8192
_TOKEN = re.compile(
    rb"\b(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{50,}|glpat-[\w-]{20,}|npm_[A-Za-z0-9]{36}"
    rb"|sk-[A-Za-z0-9_-]{32,}|(AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{35}|xox[abprs]-[\w-]{20,})\b"
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_KEY_VARIABLE = re.compile(r".*(TOKEN|API_?KEY|ACCESS_?KEY|SECRET|PASSWORD|CREDENTIALS?)", re.IGNORECASE)
_COMMON_USERS = {"root", "user", "users", "admin", "ubuntu", "runner", "docker", "jovyan", "app", "test", "home"}
_TEXT = (".json", ".md", ".yaml", ".txt", ".py", ".jinja")
_SHORTEST_KEY, _SHORTEST_ENCODED = 8, 9  # characters; less is in many files by chance


@dataclass
class Secret:
    """What must not go up: `pattern` in the bytes of a file, and what it is in words."""

    what: str
    pattern: re.Pattern[bytes]
    in_text_only: bool = False


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
            found.append(Secret(what, _any_form(form, ends_here=True)))
    for token in {token for token in (*tokens, *_known_tokens()) if token}:
        found.append(Secret("a token", _any_form(token)))
    found.append(Secret("what looks like a token", _TOKEN))
    user = _user()
    if user is not None:
        name = re.escape(user.encode())
        found.append(Secret("the user's name", re.compile(rb"[/\\](?:home|Users)[/\\]+" + name + rb"(?![\w.-])")))
        if len(user) > 2 and user.lower() not in (_COMMON_USERS | {repo_id.split("/")[0].lower()}):
            word = re.compile(rb"(?<![A-Za-z0-9])" + name + rb"(?![A-Za-z0-9])")
            found.append(Secret("the user's name", word, in_text_only=True))
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


def _any_form(text: str, ends_here: bool = False) -> re.Pattern[bytes]:
    """A text as it is, and as JSON, an address, base64, hexadecimal digits and UTF-16 write it.

    Args:
        ends_here: the same path with more letters behind it is another one.
    """
    forms = {text, json.dumps(text)[1:-1], text.replace("\\", "/"), text.replace("/", "\\/")}
    forms |= {quote(text), quote(text, safe="")}
    as_it_is = b"|".join(re.escape(form.encode()) for form in sorted(forms))
    pattern = b"(?:%s)" % as_it_is + (b"(?![\\w.-])" if ends_here else b"")
    data = text.encode()
    if len(data) >= _SHORTEST_ENCODED:
        # In base64 three bytes are four letters, so a text within another one has three forms.
        whole = [base64.b64encode(b"\0" * i + data) for i in range(3)]
        encoded = {form[-(-4 * i // 3) : (4 * (i + len(data))) // 3] for i, form in enumerate(whole)}
        encoded |= {form.replace(b"+", b"-").replace(b"/", b"_") for form in encoded}
        wide = [text.encode("utf-16-le"), text.encode("utf-16-be")]
        digits = b"(?i:%s)" % data.hex().encode()
        pattern = b"|".join([pattern, *map(re.escape, sorted([*encoded, *wide])), digits])
    return re.compile(pattern)


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return None


def refuse_secrets(stage: Path, secrets: list[Secret]) -> None:
    """Search every byte below `stage`. Raises UserError with the name of a file that tells of this machine."""
    files = [path for path in stage.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: (path.name == "README.md", path)):  # the card repeats what others say
        for part in _parts(path):
            for secret in secrets:
                if secret.in_text_only and path.suffix not in _TEXT:
                    continue
                if match := secret.pattern.search(part):
                    is_key = "token" in secret.what or b"PRIVATE KEY" in match.group()
                    shown = "" if is_key else f" ({match.group().decode(errors='replace')})"
                    raise UserError(
                        f"not pushed: {path.relative_to(stage)} holds {secret.what}{shown}: take it out of that file"
                    )


def _parts(path: Path) -> Iterator[bytes]:
    """The bytes of a file, in parts that overlap by more than what is searched for, and what its text says."""
    with path.open("rb") as file:
        rest = b""
        while part := file.read(_SEARCHED_BYTES):
            yield rest + part
            if path.suffix in _TEXT:
                yield _resolved(rest + part)
            rest = part[-_OVERLAP_BYTES:]
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            yield _resolved(file.read(min(length, 2**27)))
    if path.suffix == ".png":
        yield _texts_of_png(path)


def _resolved(text: bytes) -> bytes:
    r"""With the escapes of JSON, YAML, addresses and HTML resolved: "\u002fhome", "%2Fhome", "&#47;home"."""
    for _ in range(2):  # JSON in JSON
        if b"\\" in text:
            text = re.sub(rb"\\+(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2}))", _character, text)
        if b"%" in text:
            text = unquote_to_bytes(text)
        if b"&" in text:
            text = html.unescape(text.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogatepass")
    return text


def _character(match: re.Match[bytes]) -> bytes:
    return chr(int(match[1] or match[2], 16)).encode("utf-8", "surrogatepass")


def _texts_of_png(path: Path) -> bytes:
    """Its texts, which may be compressed."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            return "\n".join(f"{key} {value}" for key, value in image.info.items()).encode("utf-8", "replace")
    except Exception as error:  # Pillow has no base class for what broken files raise
        why = " ".join(str(error).split())
        raise UserError(f"not pushed: {path.name} is no PNG that can be read: {why}") from error
