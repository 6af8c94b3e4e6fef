"""One of two processes, for test_agreement.py: `python agreement.py WHAT FOLDER`."""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from llmcodec_jax.errors import UserError
from llmcodec_jax.training import distributed, sharding
from llmcodec_jax.training.checkpoint import Checkpoints

CONFIG = {"seed": 0}


def say(*words) -> None:
    """To the test; other lines on stdout are the collectives' own."""
    print("said:", *words, flush=True)


def state(value: float):
    mesh = sharding.make_mesh()
    x = np.arange(48, dtype=np.float32).reshape(8, 6) + value
    split = NamedSharding(mesh, P(("data", "fsdp")))
    rows = jax.make_array_from_callback(x.shape, split, lambda index: x[index])
    step = jax.jit(lambda: jnp.int32(value), out_shardings=sharding.replicated(mesh))()
    return {"x": rows, "step": step}


def restored(folder: Path):
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0)
    )
    found, position = Checkpoints(folder, 2).restore(abstract, CONFIG, "")
    say("restored", position["batches"], int(found["step"]))
    return found


def save(folder: Path) -> None:
    checkpoints = Checkpoints(folder, 2)
    for step in (1, 2):
        checkpoints.save(step, state(step), {"batches": step}, CONFIG, "")
    checkpoints.close()
    say("saved")


def disagree(folder: Path) -> None:
    """Process 1 cannot read the newest notes: both go back to the one before."""
    if jax.process_index() == 1:
        read = Checkpoints._read_text

        def torn(self, step, item, name="metadata"):
            return "{" if step == 2 else read(self, step, item, name)

        Checkpoints._read_text = torn
    restored(folder)


def give_up(folder: Path) -> None:
    """Process 1 alone fails: both end, saying why."""

    def action():
        if jax.process_index() == 1:
            raise UserError("no such clip")

    try:
        distributed.together(action, UserError)
    except UserError as error:
        say("gave up:", error)


def tensor(folder: Path) -> None:
    """A clip may not be shared by two processes."""
    try:
        sharding.make_mesh(data=1, fsdp=jax.device_count() // 2, tensor=2)
        say("accepted")
    except UserError as error:
        say("refused:", error)


def hang(folder: Path) -> None:
    """Process 1 hangs, alive; process 0 waits for it in a collective."""
    everyone = sharding.replicated(sharding.make_mesh())
    total = jax.jit(jnp.sum, out_shardings=everyone)
    say(int(total(state(0)["x"])))
    distributed.start_watchdog(distributed.STEP_SECONDS)
    if jax.process_index() == 1:
        time.sleep(1000)
    say(int(total(state(0)["x"])))


if __name__ == "__main__":
    distributed.join()
    globals()[sys.argv[1]](Path(sys.argv[2]))
    distributed.stop_watchdog()
