"""Sources of pretrained weights: publication, local lookup and download."""

from __future__ import annotations

import logging
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

from unfreeze.core.cache import cache_root, stable_hash
from unfreeze.core.errors import BackboneError
from unfreeze.core.files import read_json, write_json
from unfreeze.core.messages import option, setting
from unfreeze.models.architectures import LIBRARIES, architectures, defined_outside, registered

# Environment variable with the user's folder of checkpoints, under their original file names.
FOLDER = "UNFREEZE_WEIGHTS"
_FORMAT = 2
_PATIENCE = 5  # seconds until a host must respond; the libraries themselves would try for half a minute
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
# Parts of license names that forbid or may forbid commercial use of models made with the weights.
_NOT_FOR_SALE = re.compile(r"\bnc\b|non-?commercial|amlr|SWAG|research|seer|sapiens", re.IGNORECASE)


@dataclass(frozen=True)
class WeightSource:
    """Where the pretrained weights of a network are published.

    Attributes:
        names: File names that are looked up in the user's folder, best first; empty if there are no pretrained weights.
        hub: Hugging Face repository, '' if none.
        files: File names in that repository, best first.
        url: Download URL, '' if none.
        licence: License of the weights, '' if not stated.
        pixels: Side of the input that they were trained for, in pixels; 0 if not stated.
    """

    names: tuple[str, ...]
    hub: str
    files: tuple[str, ...]
    url: str
    licence: str
    pixels: int

    @property
    def remedy(self) -> str:
        """How to get the weights if the file is missing."""
        if not self.names:
            return f"its library has none; {option('weights', metavar='FILE')} or none"
        return f"fetched when first used, or {self.names[0]} in ${FOLDER}"


def origin(full: str) -> WeightSource:
    """Source of a network's pretrained weights, from the cache or as stated by its library.

    Args:
        full: Full name of the network.
    """
    if defined_outside(full):  # the user may change it at any time
        return _ask(full)
    return _kept(f"origin of {full}", lambda: {full: _ask(full)})[full]


def origins() -> dict[str, WeightSource]:
    """Sources of the pretrained weights of all classifiers of both libraries, by full name, sorted."""
    outside = {f"timm/{name}" for name in registered()}

    def ask() -> dict[str, WeightSource]:
        every = {f"{library}/{name}" for library in LIBRARIES for name in architectures(library)}
        return {full: _ask(full) for full in sorted(every - outside)}

    return dict(sorted({**_kept("every origin", ask), **{full: _ask(full) for full in outside}}.items()))


def is_noncommercial(licence: str) -> bool:
    """Check whether a license forbids commercial use or allows research only."""
    return bool(_NOT_FOR_SALE.search(licence))


def find_local(source: WeightSource) -> Path | None:
    """Find the weights file in the user's folder, torch hub's cache or the Hugging Face cache, in this order.

    Returns:
        None if it is in none of them.
    """
    if own := os.environ.get(FOLDER):
        for name in source.names:
            if (path := Path(own).expanduser() / name).is_file():
                return path
    if source.url and (path := _hub_folder() / _basename(source.url)).is_file():
        return path
    if source.hub and _hugging_face_folder().is_dir():
        from huggingface_hub import try_to_load_from_cache

        for name in source.files:
            if isinstance(there := try_to_load_from_cache(source.hub, name), str):
                return Path(there)
    return None


def download(full: str, source: WeightSource) -> Path:
    """Download the weights file into the cache of its library.

    Args:
        full: Full name of the network.
        source: Source of its weights.

    Returns:
        Path of the file.

    Raises:
        BackboneError: If there are no pretrained weights, or if the download fails.
    """
    if not source.names:
        raise BackboneError(
            f"{full}: its library has no pretrained weights for it; use {setting('weights', 'FILE', 'weights')} or "
            f"{setting('weights', 'none', 'weights')}."
        )
    reasons = []
    for known, load in ((source.hub, _from_hub), (source.url, _from_url)):
        try:
            if known:
                return load(full, source)
        except Exception as error:  # HTTP clients raise exceptions of any type
            reasons.append((str(error).splitlines() or [type(error).__name__])[0])
    raise BackboneError(
        f"{full}: weights not found and could not be downloaded ({reasons[0]}); put {source.names[0]} into the "
        f"folder that ${FOLDER} names, or use {setting('weights', 'FILE', 'weights')} or "
        f"{setting('weights', 'none', 'weights')}."
    )


def _announce(full: str, address: str, what: str) -> None:
    """Log what is downloaded and from which host, before the first connection.

    Nothing else in this module accesses the network, so no access goes unannounced.
    """
    logging.getLogger("unfreeze").warning(f"Download: weights of {full} from {urlsplit(address).netloc} ({what}).")


def _from_hub(full: str, source: WeightSource) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    _announce(full, constants.ENDPOINT, source.hub)
    _reach(constants.ENDPOINT)
    for name in source.files[:-1]:
        try:
            return Path(hf_hub_download(source.hub, name))
        except LocalEntryNotFoundError:
            raise  # no connection: trying the next file would only take as long
        except EntryNotFoundError:
            continue
    return Path(hf_hub_download(source.hub, source.files[-1]))


def _from_url(full: str, source: WeightSource) -> Path:
    from torch.hub import download_url_to_file

    _announce(full, source.url, _basename(source.url))
    _reach("{0.scheme}://{0.netloc}".format(urlsplit(source.url)))
    target = _hub_folder() / _basename(source.url)
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = re.search(r"-([0-9a-f]{8,})\.", target.name)  # torch hub's convention: a prefix of the sha256
    bar = sys.stderr.isatty()
    download_url_to_file(source.url, str(target), hash_prefix=digest[1] if digest else None, progress=bar)
    return target


def _reach(address: str) -> None:
    """Raise OSError if the host does not respond within _PATIENCE seconds; any HTTP response is accepted."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_PATIENCE).close()
    except urllib.error.HTTPError:
        return
    except OSError:
        raise OSError(f"{urlsplit(address).netloc} cannot be reached") from None


def _ask(full: str) -> WeightSource:
    library, _, name = full.partition("/")
    if library == "torchvision":
        from torchvision import models

        weights = models.get_model_weights(name).DEFAULT
        license_text = weights.meta.get("license", "")
        licence = license_text or "BSD-3-Clause (code)"
        return WeightSource((_basename(weights.url),), "", (), weights.url, licence, weights.transforms().crop_size[0])
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.input_size:  # registered by the user without this information
        return WeightSource((), "", (), "", "", 0)
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
    return WeightSource(tuple(names), hub, files if hub else (), url, licence, pixels)


def _basename(url: str) -> str:
    return urlsplit(url).path.rpartition("/")[2]


def _hub_folder() -> Path:
    """Download folder of torch hub. A custom folder can only have been set if torch is already imported."""
    if "torch" in sys.modules:
        from torch import hub

        return Path(hub.get_dir()) / "checkpoints"
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


def _hugging_face_folder() -> Path:
    """Cache folder of the Hugging Face hub, without importing its client, which takes a third of a second."""
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


def _kept(what: str, ask: Callable[[], dict[str, WeightSource]]) -> dict[str, WeightSource]:
    """Cached sources for the installed versions of timm and torchvision; calls `ask` if there are none."""
    file = cache_root() / "cards" / f"{stable_hash([_FORMAT, what, _versions()])}.json"
    try:
        kept = read_json(file)["origins"]
        return {
            full: WeightSource(**{**o, "names": tuple(o["names"]), "files": tuple(o["files"])})
            for full, o in kept.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        sources = ask()
        write_json(file, {"origins": {full: asdict(one) for full, one in sources.items()}})
        return sources
