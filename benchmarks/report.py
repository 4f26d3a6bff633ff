"""Pictures and tables of the recorded benchmarks: `python benchmarks/report.py`.

Reads all records in benchmarks/results, draws docs/pictures/performance-*.png, and rewrites the part of
docs/performance.md below its mark.
"""

from collections.abc import Callable, Iterable
from functools import partial
from math import exp, log
from pathlib import Path
from typing import Any

import record

from showface.evaluation import markdown_table
from showface.files import write_text

DOCS = Path(__file__).parents[1] / "docs"
MARK = "<!-- The rest of this page is written by benchmarks/report.py. -->\n"
Groups = list[dict[str, Any]]
OPERATORS = ("masked_correlation", "memory")
RATES = ("ms", "GFLOP/s", "of roofline", "MiB", "speedup over")


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    return markdown_table(list(head), [[str(cell) for cell in row] for row in rows])


def only(groups: Groups, **wanted: Any) -> Groups:
    """The groups whose case has these values. A tuple allows any of its values."""
    return [
        group
        for group in groups
        if all(group["case"].get(key) in (x if isinstance(x, tuple) else (x,)) for key, x in wanted.items())
    ]


def ours(group: dict[str, Any]) -> dict[str, Any]:
    """The results of our implementation that "auto" chooses."""
    return next(x for name, x in group["results"].items() if name.startswith("showface"))


def mean(ratios: list[float]) -> str:
    return f"{exp(sum(map(log, ratios)) / len(ratios)):.2f} (minimum {min(ratios):.2f})"


def main_dtype(groups: Groups) -> str:
    """The dtype that a device is measured in first: float32 on a CPU, half precision on a GPU."""
    return str(groups[0]["case"]["dtype"]) if groups else "float32"


def correlation_tables(groups: Groups) -> str:
    """Our speedup by size; then times, rates and memory when one size varies."""
    main = main_dtype(groups)
    text, grid = "", only(groups, batch=4, dtype=main)
    for mode in dict.fromkeys(group["case"]["mode"] for group in grid):
        cells = {
            tuple(case[key] for key in ("mask", "tokens", "channels", "hole")): ratio
            for case, _, _, _, ratio in record.speedups(only(grid, mode=mode))
        }
        holes = sorted({key[-1] for key in cells})
        sizes = dict.fromkeys(key[:-1] for key in cells)
        rows = [
            [*size, *(f"{cells[(*size, hole)]:.2f}" if (*size, hole) in cells else "" for hole in holes)]
            for size in sizes
        ]
        head = ["mask", "tokens", "channels", *(f"hole {hole:.0%}" for hole in holes)]
        text += f"\n{mode.capitalize()}: speedup over the fastest peer, geometric mean {mean(list(cells.values()))}:\n"
        text += f"\n{table(head, rows)}"
    rows = []
    for group in sorted((group for group in groups if group not in grid), key=lambda x: x["case"]["dtype"] != main):
        case, best = group["case"], ours(group)
        (_, _, _, peer, ratio), *_ = record.speedups([group])
        shape = f"{case['batch']} x {case['tokens']} x {case['channels']}"
        rows.append(
            [shape, f"{case['hole']:.0%}", case["dtype"], case["mode"], f"{best['median_ms']:.2f}", best["gflops"]]
            + [f"{best['share_of_floor']:.0%}", best["peak_mib"], f"{ratio:.2f} ({peer})"]
        )
    head = ["images x tokens x channels", "hole", "dtype", "mode", *RATES]
    other = "half precision" if main == "float32" else "float32"
    return f"{text}\nOne size varied at a time, and {other}:\n\n{table(head, rows)}"


def memory_tables(groups: Groups) -> str:
    rows = []
    for group in groups:
        (case, name, milliseconds, peer, ratio), *_ = record.speedups([group])
        best = group["results"][name]
        shape = f"{case['shape']}: {case['tokens']} tokens, {case['slots']} slots, {case['channels']} channels"
        shape += "" if case["dtype"] == "float32" else f", {case['dtype']}"
        rows.append(
            [shape, case["mode"], f"{milliseconds:.2f}", best["gflops"], f"{best['share_of_floor']:.0%}"]
            + [best["peak_mib"], f"{ratio:.2f} ({peer})"]
        )
    return "\n" + table(["case", "mode", *RATES], rows)


def model_tables(groups: Groups) -> str:
    rows = []
    for group in groups:
        case = group["case"]
        for name, result in group["results"].items():
            rows.append(
                [f"{case['size']} x {case['size']}", case["batch"], f"{case['hole'] ** 2:.0%}", case["mode"]]
                + [case["dtype"], name]
                + [f"{result['median_ms']:.1f}", f"{case['batch'] / result['median_ms'] * 1e3:.1f}", result["gflops"]]
                + [f"{result['gflops'] / group['floor']['product_gflops']:.0%}", result["peak_mib"]]
            )
    head = ["pixels", "batch", "hole", "mode", "dtype", "kernels", "ms", "images/s", "GFLOP/s", "of matmul", "MiB"]
    return "\n" + table(head, rows)


def photo_tables(groups: Groups) -> str:
    names = list(dict.fromkeys(name for group in groups for name in group["results"]))
    rows = []
    for group in groups:
        case, results = group["case"], group["results"]
        times = [f"{results[name]['median_ms'] / 1e3:.2f}" if name in results else "-" for name in names]
        rows.append([case["megapixels"], case["faces"], case["side"], *times])
    return "\n" + table(["megapixels", "faces", "pixels each", *(f"{name}, s" for name in names)], rows)


def overhead_tables(groups: Groups) -> str:
    names = list(dict.fromkeys(name for group in groups for name in group["results"]))
    rows = []
    for group in groups:
        times = (f"{1e3 * group['results'][name]['median_ms']:.1f}" for name in names)
        rows.append([f"`{group['case']['call']}`", group["case"]["mode"], *times])
    return "\n" + table(["call", "mode", *(f"{name}, µs" for name in names)], rows)


def installation_tables(groups: Groups) -> str:
    text = ""
    for group in groups:
        if group["case"]["mode"] == "wheel":
            sizes = group["results"]["showface"]
            text += f"\nBuilding the wheel takes {sizes['build_s']} s. Its size is {sizes['wheel_mib']} MiB.\n"
        else:
            rows = [[name, f"{x['median_ms']:.0f}"] for name, x in group["results"].items()]
            text += "\n" + table(["command", "ms"], rows)
    return text


def profile_tables(labels: dict[str, Any]) -> str:
    """For each mode, the time per label and the share of each operator's self time."""
    text = ""
    for mode in next(iter(labels.values()))["modes"]:
        profiles = {label: one["modes"][mode] for label, one in labels.items()}
        rows = []
        for name in dict.fromkeys(name for one in profiles.values() for name in one["largest"]):
            costs = [one["largest"].get(name) for one in profiles.values()]
            shown = (f"{x['share']:.1%} ({x['calls']} calls)" if x else "not in the top ten" for x in costs)
            rows.append([f"`{name}`", *shown])
        head = ["operator", *(f"{label}: {one['ms']:.1f} ms" for label, one in profiles.items())]
        text += f"\n{mode.capitalize()}:\n\n{table(head, rows)}"
    return text


TABLES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "masked_correlation": ("`masked_correlation`", correlation_tables),
    "memory": ("Memory addressing", memory_tables),
    "overhead": ("The time of a call itself", overhead_tables),
    "mdrnets": ("The model", model_tables),
    "photos": ("Photos", photo_tables),
    "installation": ("Installation and start-up", installation_tables),
    "profile": ("The model's ten most expensive operators", profile_tables),
}


def draw_speedups(records: dict[str, Groups], figure: Any) -> None:
    """A bar per case: our speedup over the fastest peer."""
    correlations = records.get("masked_correlation", [])
    correlations = only(correlations, batch=4, dtype=main_dtype(correlations))
    panels = [
        (f"masked_correlation\n{mode}", only(correlations, mode=mode), "{mask} {tokens}x{channels} {hole:.0%}")
        for mode in ("forward", "forward and backward")
    ]
    memory = records.get("memory", [])
    panels.append(("memory", only(memory, dtype=main_dtype(memory)), "{shape}: {mode}"))
    figure.set_size_inches(11, 5)
    axes = figure.subplots(1, len(panels))
    for axis, (title, groups, label) in zip(axes, panels, strict=True):
        bars = record.speedups(groups)
        axis.barh([label.format(**case) for case, *_ in bars], [ratio for *_, ratio in bars], color="tab:blue")
        axis.axvline(1, color="black", linewidth=1)
        axis.invert_yaxis()
        axis.set(title=title, xlabel="best peer's time / ours")
        axis.tick_params(axis="y", labelsize=7)


def draw_scaling(groups: Groups, figure: Any) -> None:
    """Time against each size, with a line per implementation."""
    centre = {"batch": 1, "tokens": 4096, "channels": 64, "hole": 0.3}
    modes = list(dict.fromkeys(group["case"]["mode"] for group in groups))
    figure.set_size_inches(15, 3.6 * len(modes))
    axes = figure.subplots(len(modes), 4, squeeze=False)
    for row, mode in zip(axes, modes, strict=True):
        for axis, varied in zip(row, centre, strict=True):
            fixed = {key: x for key, x in centre.items() if key != varied}
            along = only(groups, mode=mode, dtype="float32", mask="strokes", **fixed)
            along.sort(key=lambda group: group["case"][varied])
            for name in dict.fromkeys(name for group in along for name in group["results"]):
                shown = [group for group in along if name in group["results"]]
                axis.plot(
                    [group["case"][varied] for group in shown],
                    [group["results"][name]["median_ms"] for group in shown],
                    marker="o",
                    markersize=4,
                    linewidth=2 if name.startswith("showface") else 1,
                    label=name,
                )
            axis.set(yscale="log", xscale="linear" if varied == "hole" else "log", title=mode, ylabel="ms")
            if varied != "hole":
                axis.set_xticks([group["case"][varied] for group in along])
                axis.xaxis.set_major_formatter("{x:.0f}")
            axis.minorticks_off()
            axis.set_xlabel(f"{varied} (else {', '.join(f'{key} {x}' for key, x in fixed.items())})", fontsize=8)
            axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)


def draw_model(groups: Groups, figure: Any) -> None:
    """Time against the size of the image, and against the hole ratio."""
    figure.set_size_inches(10, 4)
    sizes, holes = figure.subplots(1, 2)
    single = only(groups, mode="inference", batch=1, dtype="float32")
    along = sorted(only(single, hole=0.5), key=lambda group: group["case"]["size"])
    pixels = [group["case"]["size"] for group in along]
    for name in ("showface", "reference"):
        sizes.plot(pixels, [group["results"][name]["median_ms"] for group in along], marker="o", label=name)
    start = along[1]["results"]["showface"]["median_ms"]
    for power, label in ((2, "as the pixels"), (4, "as the pixels squared")):
        line = [start * (x / pixels[1]) ** power for x in pixels]
        sizes.plot(pixels, line, color="grey", linestyle="--" if power == 2 else ":", label=label)
    sizes.set(xscale="log", yscale="log", xlabel="side in pixels (hole 25%)", ylabel="ms", title="one image")
    sizes.set_xticks(pixels, [str(x) for x in pixels])
    sizes.minorticks_off()
    sizes.legend()
    along = sorted(only(single, size=512), key=lambda group: group["case"]["hole"])
    for name in ("showface", "reference"):
        shares = [100 * group["case"]["hole"] ** 2 for group in along]
        holes.plot(shares, [group["results"][name]["median_ms"] for group in along], marker="o", label=name)
    holes.set(xlabel="hole, % of 512 x 512 pixels", ylabel="ms", title="one image", ylim=0)
    holes.legend()


def pictures(records: dict[str, Groups]) -> dict[str, Callable[[Any], None]]:
    """The pictures that can be drawn from these records, by name. Each draws into a matplotlib figure."""
    drawings: dict[str, Callable[[Any], None]] = {}
    if any(op in records for op in OPERATORS):
        drawings["speedups"] = partial(draw_speedups, records)
    if only(records.get("masked_correlation", []), batch=1):
        drawings["scaling"] = partial(draw_scaling, records["masked_correlation"])
    if "mdrnets" in records:
        drawings["mdrnets"] = partial(draw_model, records["mdrnets"])
    return drawings


def machine(of: dict[str, Any]) -> str:
    versions = f"torch {of['torch']}, Python {of['python']}"
    return f"{of['date']}, {of['processor']}, {of['threads']} threads, {versions}"


def section(device: str, records: dict[str, dict[str, Any]]) -> str:
    """The results of one device in Markdown."""
    groups = groups_of(records)
    text = f"\n## On {'a CPU' if device == 'cpu' else next(iter(records.values()))['device']}\n"
    for name in pictures(groups):
        text += f"\n![{name}](pictures/performance-{name}-{device}.png)\n"
    for op, (title, make) in TABLES.items():
        if op in records:
            text += f"\n### {title}\n\n`benchmarks/results/{op}-{device}.json`: "
            of = groups.get(op) or records[op]["labels"]
            text += f"{machine(records[op] if op in groups else list(of.values())[-1])}.\n{make(of)}"
    return text


def groups_of(records: dict[str, dict[str, Any]]) -> dict[str, Groups]:
    """The measured groups of each operator."""
    return {op: list(one["groups"].values()) for op, one in records.items() if "groups" in one}


def read_records(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """All records of a folder, by device and operator."""
    devices: dict[str, dict[str, dict[str, Any]]] = {}
    for op in TABLES:
        # The file of an unfinished run has a second suffix.
        for path in sorted(path for path in folder.glob(f"{op}-*.json") if "." not in path.stem):
            devices.setdefault(path.stem.removeprefix(f"{op}-"), {})[op] = record.read(path)
    return devices


def page(head: str, devices: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The text of docs/performance.md: the old text up to the mark, then a section per device."""
    return head.split(MARK)[0] + MARK + "".join(section(device, records) for device, records in devices.items())


def main() -> None:
    from matplotlib.figure import Figure

    devices, path = read_records(record.RESULTS), DOCS / "performance.md"
    (DOCS / "pictures").mkdir(exist_ok=True)
    for device, records in devices.items():
        for name, draw in pictures(groups_of(records)).items():
            figure = Figure(layout="constrained")
            draw(figure)
            figure.savefig(DOCS / "pictures" / f"performance-{name}-{device}.png", dpi=90)
    write_text(path, page(path.read_text(), devices))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
