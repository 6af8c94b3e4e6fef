"""What the commands that take a config share: the flag, clear errors, log lines."""

from __future__ import annotations

import difflib
import importlib.util
import logging
import os
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags
from tqdm import tqdm

from llmcodec_jax.errors import USAGE

CONFIG = config_flags.DEFINE_config_file("config", None, "Run description, such as configs/base.py")


def start(main: Callable) -> None:
    """Parses the flags, runs `main` and exits with its status."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app.run(main, flags_parser=parse_flags)


def parse_sub_flags(module: types.ModuleType, command: str, arguments: list[str]) -> None:
    """`parse_flags` for a command below another, whose help is not the main module's."""
    if {"-h", "--help"} & {*arguments}:
        shown = [flags.FLAGS.module_help(name) for name in (__name__, module.__name__)]
        print(module.__doc__, *shown, sep="\n")
        sys.exit(0)
    parse_flags([command, *arguments])


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser; --help exits with 0, a wrong flag or config field with 2 and one line."""
    if any(re.fullmatch(r"--?h(elp(short|full|xml)?)?", word) for word in argv[1:]):
        try:
            app.parse_flags_with_usage(argv)
        except SystemExit:  # with 1, after printing the help
            sys.exit(0)
    try:
        argv = _with_shipped_config(argv)
        _config_path(argv)
        return flags.FLAGS(argv)
    except flags.Error as error:
        reason = str(error)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # of the config's own fields
        reason = unknown_field(argv) or f"config field {error}"
    print(f"error: {reason}\n(--help lists the flags)", file=sys.stderr)
    sys.exit(USAGE)


def _config_path(argv: list[str]) -> str | None:
    """What the last --config names. Raises flags.Error where there is no such file, of which absl
    would only tell."""
    path = None
    for word, after in zip(argv, [*argv[1:], ""], strict=True):
        if name := re.fullmatch(r"--?config(?:=(.*))?", word):
            path = after if name[1] is None else name[1]
            if not Path(path.partition(":")[0]).is_file():
                raise flags.Error(f"--config: there is no file {path!r}")
    return path


def unknown_field(argv: list[str]) -> str | None:
    """What to say of the first --config.a.b in `argv` that the config does not have."""
    path = _config_path(argv)
    if path is None:
        return None
    config = flags.FLAGS["config"].parser.parse(path)
    for word in argv:
        given = re.match(r"--?config\.([\w.]+)", word)
        if given is None:
            continue
        here: Any = config
        found: list[str] = []
        for name in given[1].split("."):
            fields = list(here.keys()) if hasattr(here, "keys") else []
            if name not in fields:
                near = difflib.get_close_matches(name, fields, 1)
                hint = f"; did you mean {'.'.join([*found, *near])}?" if near else ""
                return f"the config has no field {given[1]}{hint}"
            here, found = here[name], [*found, name]
    return None


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
    package = Path(__file__).parents[1]
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


def setup_logging() -> None:
    """Our own log lines on stderr, past the progress bar; other libraries' only from WARNING."""
    handler = _BarSafeHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    ours = logging.getLogger("llmcodec_jax")
    ours.handlers[:], ours.propagate = [handler], False
    ours.setLevel(logging.INFO)
    absl_logging.set_verbosity(absl_logging.WARNING)


class _BarSafeHandler(logging.StreamHandler):
    def emit(self, record):
        tqdm.write(self.format(record), file=sys.stderr)
