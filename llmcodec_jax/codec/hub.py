"""Codecs on the Hugging Face Hub: `hf:OWNER/NAME[@REVISION][/FILE]` -> files in its cache.

Where the cache is, whether the network may be used and which endpoint is asked are the Hub
library's own settings (HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN).
"""

from __future__ import annotations

import re
from pathlib import Path

from llmcodec_jax.errors import UserError

PREFIX = "hf:"
PATTERNS = ("config.json", "codec.json", "model.safetensors", "codec.safetensors")
"""What is fetched of a repository where no file is named."""
_NAME = re.compile(r"hf:(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<file>.+))?")


class HubError(UserError, OSError):
    """A codec that the Hub did not give; the message says what was asked and what to do."""


def fetch(codec: str) -> Path:
    """The folder (or, where one is named, the file) of a repository. Raises HubError."""
    parts = _NAME.fullmatch(codec)
    if parts is None:
        raise HubError(f"{codec}: write hf:OWNER/NAME, hf:OWNER/NAME@REVISION or .../FILE")
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError as error:
        raise HubError(f"{codec}: needs huggingface_hub (pip install huggingface_hub)") from error
    try:
        if parts["file"]:
            return Path(
                hub.hf_hub_download(parts["repo"], parts["file"], revision=parts["revision"])
            )
        return Path(
            hub.snapshot_download(
                parts["repo"], revision=parts["revision"], allow_patterns=list(PATTERNS)
            )
        )
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"{codec}: no such repository, or a private one (then set HF_TOKEN)"
        ) from error
    except (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
        raise HubError(f"{codec}: no such revision or file in this repository") from error
    except errors.LocalEntryNotFoundError as error:
        raise HubError(
            f"{codec}: not in the cache, and the Hub cannot be reached (or HF_HUB_OFFLINE is "
            "set); fetch it once where there is a network, or give a folder"
        ) from error
    except (OSError, errors.HFValidationError) as error:  # its HTTP errors are OSErrors
        raise HubError(f"{codec}: the Hub could not be asked ({error})") from error


def is_cached(codec: str) -> bool:
    """Whether `hf:OWNER/NAME...` needs no network: its weights are in the library's cache."""
    parts = _NAME.fullmatch(codec)
    if parts is None:
        return False
    try:
        import huggingface_hub as hub
    except ImportError:
        return False
    names = [parts["file"]] if parts["file"] else [n for n in PATTERNS if n.endswith("tensors")]
    found = (
        hub.try_to_load_from_cache(parts["repo"], n, revision=parts["revision"]) for n in names
    )
    return any(isinstance(path, str) for path in found)
