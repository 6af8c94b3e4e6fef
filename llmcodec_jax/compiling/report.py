"""What a compiled step means for a slice: time at the chips' peaks, larger slices, a summary.

Everything here is computed from a compiler's output and published peaks; nothing is measured.
"""

from __future__ import annotations

from llmcodec_jax.hardware import chips, costs


def roofline(work: costs.Work, exchanged: float, state_bytes: float, chip: chips.Chip) -> dict:
    """Seconds one step takes at the chip's peaks, and which of them binds."""
    share = chip.devices
    seconds = {
        "compute": work.flops * share / (chip.tflops * 1e12),
        "memory": (work.bytes + 2 * state_bytes) * share / (chip.memory_gbs * chips.GB),
        "interconnect": exchanged * share / (chip.link_gbs * chips.GB),
    }
    binds = max(seconds, key=seconds.get)
    return seconds | {
        "binds": binds,
        "overlapped": seconds[binds],
        "one_after_the_other": sum(seconds.values()),
    }


def scaling_table(report: dict, sizes=(16, 32, 64, 128, 256)) -> str:
    """Markdown: the last phase's step on `sizes` devices, the clips on each staying the same.

    What one device computes does not change; by the ring algorithms it sends (n - 1) / n of each
    array on n devices, which grows by 6 % from 16 to 256. Latency is left out.
    """
    phase, now = report["phases"][-1], report["devices"]
    seconds, clips = phase["seconds"], report["global_batch"] / now
    rows = [
        "| devices | clips | compute ms | memory ms | interconnect ms | step ms | audio s/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for n in sizes:
        link = seconds["interconnect"] * (1 - 1 / n) / (1 - 1 / max(now, 2))
        parts = (seconds["compute"], seconds["memory"], link)
        step = max(parts)
        rows.append(
            f"| {n} | {n * clips:.0f} | "
            + " | ".join(f"{1e3 * part:.0f}" for part in (*parts, step))
            + f" | {n * clips * report['clip_seconds'] / step:,.0f} |"
        )
    return "\n".join(rows)


def describe(report: dict) -> str:
    """The report for a terminal."""
    lines = [
        f"{report['topology']}: {report['devices']} devices as {report['mesh']}, "
        f"{report['global_batch']} clips of {report['clip_seconds']} s (computed, not measured"
        + (
            ", activations estimated by the CPU compiler)"
            if report["estimated_by_cpu_compiler"]
            else ")"
        )
    ]
    for phase in report["phases"]:
        lines.append(f"\n{phase['phase']}, compiled in {phase['compile_seconds']} s")
        for kind, size in phase["memory_bytes_per_device"].items():
            lines.append(f"  {kind:30s} {size / chips.GIB:8.3f} GiB")
        lines.append(f"  {'capacity':30s} {report['capacity_bytes'] / chips.GIB:8.3f} GiB")
        if phase["phase"]["lm"]:
            kept = "recomputed in the backward pass" if phase["lm_recomputes"] else "kept"
            lines.append(f"  the LM's products are {kept}")
        seconds = phase["seconds"]
        for name in ("compute", "memory", "interconnect"):
            lines.append(f"  {name:30s} {1e3 * seconds[name]:8.1f} ms")
        lines.append(
            f"  bound by {seconds['binds']}: {1e3 * seconds['overlapped']:.1f} ms a step at best "
            f"({phase['audio_tokens_per_second']:,.0f} audio tokens/s), "
            f"{1e3 * seconds['one_after_the_other']:.1f} ms if nothing overlaps"
        )
        lines.append(
            f"  {'exchange':20s} {'largest array':28s} {'times':>6s} {'sent MB':>9s}  where"
        )
        for item in phase["collectives"][:16]:
            lines.append(
                f"  {item['kind']:20s} {item['shape']:28s} {item['times']:6d} "
                f"{item['sent'] / 1e6:9.1f}  {'(rare) ' * item['rare']}{item['where'][-60:]}"
            )
    lines.append("\nfits" if report["fits"] else "\nDOES NOT FIT")
    return "\n".join(lines)
