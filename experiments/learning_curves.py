"""Draw the learning curves of systems that were trained alike: L1 in the hole against images seen.

    python experiments/learning_curves.py        # needs matplotlib: pip install ".[bench]"

Reads the record of `compare_training.py`, `results/compare_training-64px.json`. The L1 is that of the training images,
which are the same in the same order for all systems, with the weights of that moment.
"""

import json
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

from showface.files import write_atomically

RECORD = Path(__file__).parent / "results" / "compare_training-64px.json"
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "learning-curves.png"
HIGHEST = 12.5  # L1 %


def draw(record: dict) -> Figure:
    """One panel: a line for each system, MDRNets thicker, ablations dashed. What is above HIGHEST is cut off."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for colour, row in zip(colormaps["Paired"].colors, record["systems"], strict=True):  # twelve colours
        images, l1 = zip(*row["curve"], strict=True)
        ours, ablation = row["system"] == "mdrnets", row["system"].startswith(("no-", "coarse"))
        style = {
            "color": "black" if ours else colour,
            "linewidth": 2.5 if ours else 1.2,
            "linestyle": "--" if ablation else "-",
        }
        axes.plot([count / 1000 for count in images], l1, label=row["system"], **style)
    axes.set(xlabel="thousand images", ylabel="L1 % in the hole, training images", ylim=(6.5, HIGHEST))
    axes.grid(alpha=0.3)
    axes.legend(ncols=2)
    return figure


def main() -> None:
    figure = draw(json.loads(RECORD.read_text()))
    write_atomically(PICTURE, lambda path: figure.savefig(path, format="png", dpi=110))
    print(f"written: {PICTURE}")


if __name__ == "__main__":
    main()
