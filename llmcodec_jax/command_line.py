"""What the commands that take a config share: the flag, clear errors, log lines."""

from __future__ import annotations

import logging
import sys

from absl import app
from absl import logging as absl_logging
from ml_collections import config_flags
from tqdm import tqdm

CONFIG = config_flags.DEFINE_config_file("config", None, "Run description, such as configs/base.py")


def parse_flags(argv):
    """absl's parser, with one clear line instead of a traceback for a mistyped config field."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError) as error:
        reason = str(error).strip("'\"").replace("\\n", " ").replace("\\'", "'")
        sys.exit(f"error: config field {reason}")
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")


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
