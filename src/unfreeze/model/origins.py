"""Where a library keeps a network's pretrained weights, which file here that is, and how it is fetched."""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

from unfreeze.core.cache import cache_root, fingerprint
from unfreeze.core.errors import BackboneError
from unfreeze.core.files import write_json

# The user's own folder of weights files, under the names that their authors gave them.
FOLDER = "UNFREEZE_WEIGHTS"
_FORMAT = 2
_PATIENCE = 5  # seconds for a host to answer; the libraries themselves would try for half a minute
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
# In what a licence is called, where it forbids or may forbid selling what is made with the weights.
_NOT_FOR_SALE = re.compile(r"\bnc\b|non-?commercial|amlr|SWAG|research|seer|sapiens", re.IGNORECASE)


@dataclass(frozen=True)
class Origin:
    """names: under which the file may lie in the user's folder, best first; none: the library has no such weights.

    hub, files: the Hugging Face repository, '' if none, and its files, best first. url: '' if none. licence: '' where
    nobody has said. pixels: side of the input that they were trained for.
    """

    names: tuple[str, ...]
    hub: str
    files: tuple[str, ...]
    url: str
    licence: str
    pixels: int

    @property
    def remedy(self) -> str:
        """What to do where the file is not here."""
        if not self.names:
            return "its library has none; --weights FILE or none"
        return f"fetched when first used, or {self.names[0]} in ${FOLDER}"


def origin(full: str) -> Origin:
    """Where the pretrained weights of a network by full name are; from the cache, or told by its library."""
    return _kept(f"origin of {full}", lambda: {full: _ask(full)})[full]


def origins() -> dict[str, Origin]:
    """The same of every classifier of both libraries, by full name, sorted."""
    from unfreeze.model.architectures import LIBRARIES, architectures

    def ask() -> dict[str, Origin]:
        return {full: _ask(full) for full in sorted(f"{lib}/{n}" for lib in LIBRARIES for n in architectures(lib))}

    return _kept("every origin", ask)


def not_for_sale(licence: str) -> bool:
    """Whether a licence forbids commercial use, or is for research only."""
    return bool(_NOT_FOR_SALE.search(licence))


def find(told: Origin) -> Path | None:
    """The file, if it is on this machine: in the user's folder, in torch hub's cache, in the Hugging Face hub's."""
    if own := os.environ.get(FOLDER):
        for name in told.names:
            if (path := Path(own).expanduser() / name).is_file():
                return path
    if told.url and (path := _hub_folder() / _basename(told.url)).is_file():
        return path
    if told.hub and _hugging_face_folder().is_dir():
        from huggingface_hub import try_to_load_from_cache

        for name in told.files:
            if isinstance(there := try_to_load_from_cache(told.hub, name), str):
                return Path(there)
    return None


def fetch(full: str, told: Origin) -> Path:
    """Fetches the file into its library's own cache. BackboneError if there are no such weights, or no network."""
    if not told.names:
        raise BackboneError(
            f"{full}: its library has no pretrained weights for it; use --weights FILE or --weights none."
        )
    reasons = []
    for known, load in ((told.hub, _from_hub), (told.url, _from_url)):
        try:
            if known:
                return load(told)
        except Exception as error:  # a client of the network fails in any way it likes
            reasons.append((str(error).splitlines() or [type(error).__name__])[0])
    raise BackboneError(
        f"{full}: its weights are not here and could not be fetched ({reasons[0]}); put {told.names[0]} into the "
        f"folder that ${FOLDER} names, or use --weights FILE or --weights none."
    )


def _from_hub(told: Origin) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    _reach(constants.ENDPOINT)
    for name in told.files[:-1]:
        try:
            return Path(hf_hub_download(told.hub, name))
        except LocalEntryNotFoundError:
            raise  # no network: the next name would only take as long
        except EntryNotFoundError:
            continue
    return Path(hf_hub_download(told.hub, told.files[-1]))


def _from_url(told: Origin) -> Path:
    from torch.hub import download_url_to_file

    _reach("{0.scheme}://{0.netloc}".format(urlsplit(told.url)))
    target = _hub_folder() / _basename(told.url)
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = re.search(r"-([0-9a-f]{8,})\.", target.name)  # torch hub's convention: the file's sha256 begins like that
    bar = sys.stderr.isatty()
    download_url_to_file(told.url, str(target), hash_prefix=digest[1] if digest else None, progress=bar)
    return target


def _reach(address: str) -> None:
    """OSError where nobody answers there within _PATIENCE; what the answer is does not matter."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_PATIENCE).close()
    except urllib.error.HTTPError:
        return
    except OSError:
        raise OSError(f"{urlsplit(address).netloc} cannot be reached") from None


def _ask(full: str) -> Origin:
    library, _, name = full.partition("/")
    if library == "torchvision":
        from torchvision import models

        weights = models.get_model_weights(name).DEFAULT
        told = weights.meta.get("license", "")
        licence = told or "BSD-3-Clause (code)"
        return Origin((_basename(weights.url),), "", (), weights.url, licence, weights.transforms().crop_size[0])
    import timm

    config = timm.get_pretrained_cfg(name)
    pixels, licence = min(config.input_size[-2:]), config.license or ""
    url = config.url if isinstance(config.url, str) and not config.url.endswith((".npz", ".npy")) else ""
    hub, files, names = config.hf_hub_id or "", _HUB_FILES, []
    if config.hf_hub_filename:
        files = (f"{Path(config.hf_hub_filename).stem}.safetensors", config.hf_hub_filename)
    if url or hub:
        bare = name.partition(".")[0]
        stems = dict.fromkeys([f"{bare}.{config.tag}" if config.tag else bare, hub.rpartition("/")[2] or bare])
        names = [f"{stem}{suffix}" for stem in stems for suffix in (".safetensors", ".bin", ".pth")]
        names += [f"{hub.rpartition('/')[2]}/{file}" for file in files if hub]
        names += [_basename(url)] if url else []
    return Origin(tuple(names), hub, files if hub else (), url, licence, pixels)


def _basename(url: str) -> str:
    return urlsplit(url).path.rpartition("/")[2]


def _hub_folder() -> Path:
    """Where torch hub keeps what it fetched. Only a torch that is loaded can have been told another folder."""
    if "torch" in sys.modules:
        from torch import hub

        return Path(hub.get_dir()) / "checkpoints"
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


def _hugging_face_folder() -> Path:
    """Where its hub keeps what it fetched; asked without importing it, which takes a third of a second."""
    if "huggingface_hub" in sys.modules:
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE)
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(
        os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or Path(home) / "hub"
    ).expanduser()


def _versions() -> tuple[str, ...]:
    found = []
    for package in ("timm", "torchvision"):
        try:
            found.append(version(package))
        except PackageNotFoundError:
            found.append("")
    return tuple(found)


def _kept(what: str, ask: Callable[[], dict[str, Origin]]) -> dict[str, Origin]:
    """What the libraries told before under these versions, or tell now: importing them takes seconds."""
    file = cache_root() / "cards" / f"{fingerprint([_FORMAT, what, _versions()])}.json"
    try:
        kept = json.loads(file.read_text("utf-8"))["origins"]
        return {
            full: Origin(**{**o, "names": tuple(o["names"]), "files": tuple(o["files"])}) for full, o in kept.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        told = ask()
        write_json(file, {"origins": {full: asdict(one) for full, one in told.items()}})
        return told
