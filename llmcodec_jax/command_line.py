"""What the commands that take a config share: the flag, clear errors, log lines."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

from absl import app
from absl import logging as absl_logging
from ml_collections import config_flags
from tqdm import tqdm

CONFIG = config_flags.DEFINE_config_file("config", None, "Run description, such as configs/base.py")


def start(main: Callable) -> None:
    """Parses the flags, runs `main` and exits with its status."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app.run(main, flags_parser=parse_flags)


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with one clear line instead of a traceback for a mistyped config field."""
    try:
        return app.parse_flags_with_usage(_with_shipped_config(argv))
    except (AttributeError, KeyError, TypeError) as error:
        reason = str(error).strip("'\"").replace("\\n", " ").replace("\\'", "'")
        sys.exit(f"error: config field {reason}")
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")


def find_config(name: str) -> str:
    """The file that `--config NAME` means.

    A file that exists is taken as it is. Otherwise `configs/quickstart.py`, `quickstart.py` and
    `quickstart` all name the config that comes with the package, from whatever folder.
    """
    if Path(name).is_file():
        return name
    relative = Path(name).with_suffix(".py")
    if relative.parts[:1] == ("configs",):
        relative = relative.relative_to("configs")
    shipped = _config_folder() / relative
    return str(shipped) if shipped.is_file() else name


def _config_folder() -> Path:
    """configs/ of the installed package, or of the checkout that this file is part of."""
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _with_shipped_config(argv: list[str]) -> list[str]:
    """`argv` with the value of --config replaced by the file it means."""
    if importlib.util.find_spec("configs") is None:  # configs build on each other by import
        configs = types.ModuleType("configs")
        configs.__path__ = [str(_config_folder())]
        sys.modules["configs"] = configs
    found = list(argv)
    for index, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if equals:
            found[index] = f"{flag}={find_config(value)}"
        elif index + 1 < len(argv):
            found[index + 1] = find_config(argv[index + 1])
    return found


def speak_up() -> None:
    """Our own log lines on stderr, past the progress bar; other libraries' only from WARNING."""
    handler = _BarSafeHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    ours = logging.getLogger("llmcodec_jax")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)
    absl_logging.set_verbosity(absl_logging.WARNING)


class _BarSafeHandler(logging.StreamHandler):
    def emit(self, record):
        tqdm.write(self.format(record), file=sys.stderr)
