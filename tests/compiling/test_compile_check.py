"""Compile reports: exact work, exchanges inside loops, what fits, and clear refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from llmcodec_jax.compiling import program, report
from llmcodec_jax.hardware import chips, costs

ROOT = Path(__file__).parents[2]

HLO = """
%body (p: (s32[], bf16[64,32])) -> (s32[], bf16[64,32]) {
  %ag = (bf16[8,32]{1,0}, bf16[64,32]{1,0}) all-gather-start(%x), channel_id=1, replica_groups=[1,8]<=[8], metadata={op_name="layer/gather"}
}
ENTRY %main (a: f32[4]) -> f32[4] {
  %w = (s32[], bf16[64,32]) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"36"}}
  %ar = f32[100]{0} all-reduce(%g), channel_id=2, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}
"""  # noqa: E501


def test_exchanges_inside_loops_count_every_turn():
    gather, reduce = costs.collectives(HLO, 8)
    assert (gather.kind, gather.times, gather.bytes) == ("all-gather", 36, 64 * 32 * 2)
    assert (gather.devices, gather.shape, gather.where) == (8, "bf16[64,32]", "layer/gather")
    assert gather.sent == 36 * 64 * 32 * 2 * 7 / 8
    assert reduce.sent == 2 * 400 * 7 / 8


TPU_HLO = """
%cond.1 (p: (u32[], f32[8])) -> pred[] {
  %bound = u32[]{:T(128)} constant(8)
  %counter = u32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%counter, %bound), direction=LT
}
%body.1 (p: (u32[], f32[8])) -> (u32[], f32[8]) {
  %two = u32[]{:T(128)} constant(2)
  %next = u32[]{:T(128)} add(%counter.1, %two)
  %sent = (bf16[4,8]{1,0:T(8,128)}, bf16[4,8]{1,0:T(8,128)}, u32[], u32[]) collective-permute-start(%x), channel_id=3
  %ahead = f32[6]{0} all-gather(%y), channel_id=4, replica_groups=mesh['a'=4,'b'=2] {'a'}
  ROOT %out = (u32[]{:T(128)}, f32[8]{0}) tuple(%next, %x), backend_config={"other":"f(%a, %b)"}
}
%branch (p: f32[8]) -> f32[8] {
  %seldom = f32[5]{0} all-reduce(%g), channel_id=5, replica_groups=mesh['a'=4,'b'=2] {'a','b'}
}
ENTRY %main (a: f32[4]) -> f32[4] {
  %w = (u32[], f32[8]) while(%t), condition=%cond.1, body=%body.1, backend_config={"flag":[]}
  %ahead.1 = f32[6]{0} all-gather(%y), channel_id=4, replica_groups=mesh['a'=4,'b'=2] {'a'}
  %c = f32[8] conditional(%p, %x, %y), branch_computations={%branch, %other}
}
"""  # noqa: E501


def test_exchanges_in_a_tpu_program():
    """Turns from the loop's counter, groups by mesh axes, a gather that a loop overlaps with."""
    permute, gather, seldom = costs.collectives(TPU_HLO, 8)
    assert (permute.kind, permute.times, permute.sent) == ("collective-permute", 4, 4 * 64)
    assert (gather.times, gather.devices) == (1, 4)
    assert (seldom.rare, seldom.devices) == (True, 8)


def test_work_counts_loops_and_leaves_rare_branches_out():
    weights = jnp.zeros((6, 32, 32))

    def run(x):
        x, _ = jax.lax.scan(lambda c, w: (jax.nn.gelu(c @ w), None), x, weights)
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ weights[0], lambda x: x, x)

    found = costs.traced_work(run, jnp.zeros((8, 32)))
    assert found.flops == 6 * 2 * 8 * 32 * 32
    assert found.bytes == 6 * 4 * (2 * 8 * 32 + 32 * 32)


def test_work_of_a_strided_convolution_and_its_gradient():
    kernel = jnp.zeros((4, 3, 5))

    def conv(x):
        dims = ("NWC", "WIO", "NWC")
        return jax.lax.conv_general_dilated(x, kernel, (2,), "SAME", dimension_numbers=dims)

    forward = costs.traced_work(conv, jnp.zeros((1, 64, 3))).flops
    assert forward == 2 * 32 * 5 * 4 * 3
    squares = jax.grad(lambda x: jnp.square(conv(x)).sum())  # reads the forward pass as well
    both = costs.traced_work(squares, jnp.zeros((1, 64, 3))).flops
    assert both == 2 * forward


def test_roofline_names_what_binds():
    chip = chips.Chip("toy", tflops=1, memory_gb=1, memory_gbs=10, link_gbs=1)
    times = report.roofline(costs.Work(1e12, 1e9), 3e9, 0.0, chip)
    assert times["binds"] == "interconnect"
    assert times["overlapped"] == 3
    assert times["one_after_the_other"] == pytest.approx(1 + 0.1 + 3)


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "gpu:lots", "cpu:many"])
def test_unknown_topologies_are_refused(name):
    with pytest.raises(program.TopologyError, match=name.partition(":")[0]):
        program.target(name)


def test_a_missing_libtpu_is_said_plainly(monkeypatch):
    from jax.experimental import topologies

    def fail(**_):
        raise RuntimeError("no plugin")

    monkeypatch.setattr(topologies, "get_topology_desc", fail)
    monkeypatch.setattr(program, "_has_libtpu", lambda: False)
    with pytest.raises(program.TopologyError, match=r"pip install 'libtpu==\d"):
        program.target("v5e:4x4")


TINY = (
    "--config.codec.width=64 --config.codec.encoder_layers=1 --config.codec.decoder_layers=1 "
    "--config.codec.codebook_size=64 --config.lm.config.vocab_size=64 --config.lm.config.width=32 "
    "--config.lm.config.layers=3 --config.lm.config.heads=4 --config.lm.config.kv_heads=2 "
    "--config.lm.config.head_dim=8 --config.lm.config.ffn_width=48 --config.lm.horizons=2 "
    "--config.lm.bank=4 --config.discriminators.periods=(2,) --config.discriminators.scales=1 "
    "--config.discriminators.period_channels=(4,8) --config.discriminators.scale_channels=(4,8) "
    "--config.data.clip_seconds=1.0 --config.data.batch_size=8 --config.lm.begin_token=0"
).split()


def check(topology: str, output: Path, *more: str):
    command = [sys.executable, "-m", "llmcodec_jax.compile_check", "--config", "configs/base.py"]
    return subprocess.run(
        [*command, "--topology", topology, "--output", str(output), *TINY, *more],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        check=False,
    )


def looks_right(report: dict, devices: int) -> None:
    assert report["devices"] == devices
    assert report["computed_not_measured"]
    (phase,) = report["phases"]
    memory = phase["memory_bytes_per_device"]
    assert memory["total"] == sum(size for kind, size in memory.items() if kind != "total")
    assert memory["frozen_lm"] > 0
    assert memory["optimiser"] > 0
    assert phase["flops_per_device"] > 0
    layers = [c for c in phase["collectives"] if c["kind"] == "all-gather" and c["times"] % 3 == 0]
    assert layers  # the LM's weights are gathered layer by layer
    assert phase["seconds"]["binds"] in ("compute", "memory", "interconnect")


@pytest.mark.slow
def test_the_command_on_simulated_devices(tmp_path):
    result = check("cpu:4", tmp_path / "report.json")
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["estimated_by_cpu_compiler"]
    looks_right(report, 4)


@pytest.mark.slow
@pytest.mark.skipif(not program._has_libtpu(), reason="no libtpu: pip install libtpu")
def test_the_command_for_a_tpu(tmp_path):
    result = check("v5e:2x2", tmp_path / "report.json")
    assert result.returncode == 0, result.stderr[-2000:]
    looks_right(json.loads((tmp_path / "report.json").read_text()), 4)


def test_work_that_nothing_depends_on_is_not_counted():
    x = jnp.zeros((8, 8))

    def layers(x):
        def layer(carry, _):
            return carry @ x, carry @ carry @ x  # what is collected here is read by nobody

        return jax.lax.scan(layer, x, None, length=3)[0]

    assert costs.traced_work(layers, x).flops == 3 * 2 * 8**3


def test_a_libtpu_that_jax_cannot_read_is_named_with_the_one_it_can():
    class Foreign:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure: 1 operands but sees 3")

    with pytest.raises(program.TopologyError, match=r"goes with libtpu==\d.*sees 3"):
        program.program_text(Foreign())
