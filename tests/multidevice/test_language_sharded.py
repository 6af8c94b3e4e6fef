"""Eight simulated devices compute what one computes: bank, losses, bridge, loading."""

import subprocess
import sys
import textwrap
from pathlib import Path

DATA = Path(__file__).parents[1] / "parity" / "data" / "lm" / "qwen3_tied"

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np, sys
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from llmcodec_jax.bridge import bridge
from llmcodec_jax.lm import qwen3
from llmcodec_jax.lm.weights import digest
from llmcodec_jax.losses.alignment import alignment, enqueue, init_bank
from llmcodec_jax.losses.ftp import ftp_loss

assert jax.device_count() == 8
mesh = Mesh(np.array(jax.devices()), ("data",))
split = lambda x, axis=0: jax.device_put(x, NamedSharding(mesh, P(*[None] * axis, "data")))
same = lambda a, b, tol=1e-5: [np.testing.assert_allclose(x, y, atol=tol)
                               for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]

# Alignment: three batches through a small bank, items without text scattered over the devices.
# Every batch has texts of its own: the same states under another hash would tie with the item's
# own text, and the last bit of a sum would decide who is retrieved.
keys = jax.random.split(jax.random.key(0), 8)
audio = jax.random.normal(keys[0], (2, 16, 8))
texts = jax.random.normal(keys[1], (3, 2, 16, 8))
hashes = jnp.arange(16, dtype=jnp.uint32) % 11
valid = jax.random.bernoulli(keys[2], 0.6, (16,))
def run(audio, texts, hashes, valid):
    bank, total = init_bank(2, 20, 8), []
    for turn, text in enumerate(texts):
        total.append(alignment(audio, text, hashes + turn, valid, bank))
        bank = enqueue(bank, text, hashes + turn, valid)
    return bank, total
one = jax.jit(run)(audio, texts, hashes, valid)
eight = jax.jit(run)(split(audio, 1), split(texts, 2), split(hashes), split(valid))
same(one, eight)
np.testing.assert_array_equal(one[0].text_hash, eight[0].text_hash)

# Bridge and future tokens: the same noise, values and gradients.
query, weight = jax.random.normal(keys[3], (8, 5, 6)), jax.random.normal(keys[4], (200, 6))
rows, heads = jax.random.normal(keys[5], (200, 12)), jax.random.normal(keys[6], (3, 200, 12))
labels = jax.random.randint(keys[7], (8, 5), 0, 200)
def loss(query, weight, rows, heads, labels, mesh=None):
    out = bridge(query, weight, jnp.zeros(200), rows, keys[0], 0.5, mode="gumbel",
                 labels=labels, chunk=128)
    ftp = ftp_loss(out.embeds, heads, labels, jnp.ones((8, 5), bool), mesh)
    return sum(ftp[f"ftp/{k}"][0] / ftp[f"ftp/{k}"][1] for k in (1, 2, 3)) + out.nll.mean()
step = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))
spread = step(split(query), weight, rows, heads, split(labels))
one = step(query, weight, rows, heads, labels)
same(one, spread)
own = jax.jit(jax.value_and_grad(lambda *args: loss(*args, mesh), (0, 1, 2, 3)))
same(one, own(split(query), weight, rows, heads, split(labels)))

# Loading: every device reads its own slices, and the identity is that of the whole.
config, params = qwen3.load_qwen3(sys.argv[1], jnp.float32)
place = lambda leaf: NamedSharding(mesh, P("data") if leaf.shape[0] % 8 == 0 else P())
shardings = jax.tree.map(place, params)
_, spread = qwen3.load_qwen3(sys.argv[1], jnp.float32, shardings)
table = spread["embed"]["embedding"]
assert len(table.sharding.device_set) == 8 and table.addressable_shards[0].data.shape == (40, 96)
assert digest(spread) == digest(params)
print("equal")
"""


def test_eight_devices_equal_one():
    """In a process of its own: the device count is fixed when JAX starts."""
    flags = "--xla_force_host_platform_device_count=8 --xla_llvm_disable_expensive_passes=true"
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(DATA)],
        capture_output=True,
        text=True,
        env={"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"},
        cwd=Path(__file__).parents[2],
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "equal" in result.stdout
