"""Draw the bundled weights' PSNR against the images they have seen, from a record of evaluations.

    python experiments/training_curve.py        # needs matplotlib: pip install ".[bench]"

The record is `results/training_curve.json`. It has a point for each set of weights that was evaluated with
`showface evaluate` on the same 200 faces, with its PSNR in the three ranges of hole ratios. Add a point when weights
have been trained further.
"""

import json
from pathlib import Path

from matplotlib.figure import Figure

from showface.files import write_atomically

RECORD = Path(__file__).parent / "results" / "training_curve.json"
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "training-curve.png"


def draw(record: dict) -> Figure:
    """One panel for each range of hole ratios: a line for each model, and the published mean as a dashed line."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    panels = figure.subplots(1, len(record["holes"]))
    for i, (axes, hole) in enumerate(zip(panels, record["holes"], strict=True)):
        for model, points in record["models"].items():
            images = [point["images"] / 1000 for point in points]
            axes.plot(images, [point["psnr"][i] for point in points], marker="o", label=model)
        axes.axhline(record["published"][i], color="grey", linestyle="--", label="published")
        axes.set(title=f"hole {hole}", xlabel="thousand images")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("PSNR, dB")
    panels[0].legend()
    return figure


def main() -> None:
    figure = draw(json.loads(RECORD.read_text()))
    write_atomically(PICTURE, lambda path: figure.savefig(path, format="png", dpi=110))
    print(f"written: {PICTURE}")


if __name__ == "__main__":
    main()
