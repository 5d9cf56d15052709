"""The results of a run as tables."""

from __future__ import annotations

from benchmarks.peers.run import Cell, Run
from benchmarks.peers.tables import markdown, microseconds, ratios
from benchmarks.scaling.sweeps import OPTIMIZER, Sweep
from gradflow.text import three_digits

PEER = "torch-fused"
MIB = 2**20


def timed(run: Run, sweep: Sweep) -> dict[int, Cell]:
    """Return the timed cells of a sweep, by its values."""
    cells = {cell.workload: cell for cell in run.cells if cell.turns}
    return {value: cells[each] for value, each in sweep.workloads.items() if each in cells}


def watched(run: Run) -> dict[str, Cell]:
    """Return the cells whose memory was measured, by name."""
    return {f"{cell.workload.letter}: {cell.workload.size}": cell for cell in run.cells if cell.memory}


def time_table(run: Run, sweep: Sweep) -> str:
    """Return a table of the rows' times at each value, and of gradflow's divided by PyTorch's, round by round."""
    cells = timed(run, sweep)
    found = {value: ratios(cell) for value, cell in cells.items()}
    labels = list(dict.fromkeys(label for each in found.values() for label in each))
    lines = {}
    for value, cell in cells.items():
        times = [microseconds(cell, name) for name in run.rows]
        quotients = [f"{found[value][label]['median']:.2f}" if label in found[value] else "" for label in labels]
        lines[f"{value:,}"] = [*times, *quotients]
    titles = [row.title for row in run.rows.values()]
    return f"µs per step, {OPTIMIZER}\n\n{markdown(sweep.label, [*titles, *labels], lines)}"


def slower(run: Run) -> str:
    """Return where gradflow is slower than before in three quarters of the rounds, and how much; "" if nowhere."""
    lines = []
    for cell in run.cells:
        for label, found in ratios(cell).items():
            if label.endswith("before") and found["lower_quartile"] > 1:
                lines.append(f"slower than before: {cell.workload.letter}: {label} {found['median']:.2f}")
    return "\n".join(lines)


def memory_table(run: Run) -> str:
    """Return tables of the rows' peaks and page faults, and of gradflow's peaks divided by PyTorch's."""
    titles = [row.title for row in run.rows.values()]
    ours = [name for name in run.rows if name != PEER and PEER in run.rows]
    peaks, faults = {}, {}
    for label, cell in watched(run).items():
        peak = {name: found["peak_bytes"] for name, found in cell.memory.items()}
        peaks[label] = [three_digits(peak[name] / MIB) if name in peak else "" for name in run.rows]
        peaks[label] += [f"{peak[name] / peak[PEER]:.2f}" if {name, PEER} <= {*peak} else "" for name in ours]
        faults[label] = [
            f"{cell.memory[name]['page_faults_a_step']:,.0f}" if name in cell.memory else "" for name in run.rows
        ]
    labels = [f"{run.rows[name].title} / PyTorch" for name in ours]
    return (
        f"{markdown(f'peak memory in MiB, {OPTIMIZER}', [*titles, *labels], peaks)}\n\n"
        f"{markdown(f'page faults per step, {OPTIMIZER}', titles, faults)}"
    )
