"""onnxruntime-web, which runs the networks in a browser: its three files, of one version, each with its checksum."""

import hashlib
import os
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

from ..console import say
from ..errors import UserError, describe
from ..files import whole_file

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
# The build for one thread or many, with SIMD and without a GPU. A page of one thread needs no special HTTP headers.
FILES = {
    "ort.wasm.min.mjs": "02779f420972927b9fe109e8c8bf0715be78b3582b5b1eeae85eafd94651afb4"
    "7155bb0979777f93ab228978f59a59109a9c871270c8049cf1d41b5adc9dd90a",
    "ort-wasm-simd-threaded.mjs": "21ba108743f06fed82bd495a1258e50552c95a515f1940b10aab94ea48f2c205"
    "beaa3f7e0d9b4961253da6e786638038bd3d96e6b43c66de0234d2032fc29fd6",
    "ort-wasm-simd-threaded.wasm": "1adeded62203219fcf5c484cfce5657aa5875689b490423f86cf1ca1dd1cad77"
    "15f630c6337f41db71ee42794e3a00ce0b7c78939a71220b5d83368bf6ea7730",
}
ADDRESS = f"https://cdn.jsdelivr.net/npm/{PACKAGE}@{VERSION}/dist/"
_TIMEOUT_SEC = 60
_REMEDY = f"get it with `npm pack {PACKAGE}@{VERSION}` and give --onnxruntime_web {PACKAGE}-{VERSION}.tgz"
NOTICE = f"""{PACKAGE} {VERSION}: {", ".join(FILES)}

MIT License
Copyright (c) Microsoft Corporation. All rights reserved.

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED *AS IS*, WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def onnxruntime_web(given: str | Path | None = None) -> dict[str, bytes]:
    """The files by name: of `given`, else of the cache of huggingface_hub, else downloaded once and cached there.

    Args:
        given: the package as `npm pack` writes it, or a folder with its files.

    Raises:
        UserError: a file is missing or is not the one of this version, or the download fails; in one line.

    Example:
        >>> onnxruntime_web("onnxruntime-web-1.30.0.tgz").keys()
    """
    if given is not None:
        contents, where = _read(Path(given)), f"--onnxruntime_web {given}"
        return {name: _checked(name, contents.get(name), where) for name in FILES}
    from huggingface_hub import cached_assets_path

    folder = cached_assets_path("cond_pipelines", namespace=PACKAGE, subfolder=VERSION)
    return {name: _cached(folder / name, _download) for name in FILES}


def _cached(path: Path, download: Callable[[str], bytes]) -> bytes:
    """What lies at `path`, where that is the right file, else what is downloaded now."""
    if path.is_file() and _digest(content := path.read_bytes()) == FILES[path.name]:
        return content
    content = _checked(path.name, download(path.name), ADDRESS)
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content)
    return content


def _download(name: str) -> bytes:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        raise UserError(f"{PACKAGE} {VERSION} is not in the cache, and HF_HUB_OFFLINE is set: {_REMEDY}")
    say(f"downloading {ADDRESS}{name}")
    try:
        with urllib.request.urlopen(ADDRESS + name, timeout=_TIMEOUT_SEC) as answer:
            content: bytes = answer.read()
    except (OSError, ValueError) as error:  # urllib's own errors are OSErrors
        raise UserError(f"{ADDRESS}{name} cannot be downloaded: {describe(error)}: {_REMEDY}") from error
    return content


def _read(path: Path) -> dict[str, bytes]:
    """Those of the files that are in a folder, in the dist/ of one, or in a package as npm writes it."""
    if path.is_dir():
        places = [
            folder for folder in (path, path / "dist", path / "package/dist") if (folder / next(iter(FILES))).is_file()
        ]
        return {name: (places[0] / name).read_bytes() for name in FILES if places and (places[0] / name).is_file()}
    try:
        with tarfile.open(path) as package:
            members = {member.name.removeprefix("package/dist/"): member for member in package if member.isfile()}
            files = {name: package.extractfile(members[name]) for name in FILES if name in members}
            return {name: file.read() for name, file in files.items() if file is not None}
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"--onnxruntime_web {path} is no folder and no package of npm: {describe(error)}") from error


def _checked(name: str, content: bytes | None, where: str) -> bytes:
    if content is None:
        raise UserError(f"{where} lacks {name} of {PACKAGE} {VERSION}: {_REMEDY}")
    if _digest(content) != FILES[name]:
        raise UserError(f"{where}: {name} is not that of {PACKAGE} {VERSION}, its SHA-512 differs: {_REMEDY}")
    return content


def _digest(content: bytes) -> str:
    return hashlib.sha512(content).hexdigest()
