"""Scoring of inpainting systems: image metrics, the protocol that pairs images with holes, and reports."""

from showface.evaluation.metrics import PSNR_CEILING, hole_l1_percent, l1_percent, psnr, ssim
from showface.evaluation.protocol import (
    BINS,
    FINE_BINS,
    Pair,
    Score,
    System,
    bin_label,
    complete,
    evaluate,
    plan,
    read_hole,
    read_target,
)
from showface.evaluation.report import (
    ALL_SETS,
    Row,
    markdown_table,
    summarise,
    write_csv,
    write_json,
)

__all__ = [
    "ALL_SETS",
    "BINS",
    "FINE_BINS",
    "PSNR_CEILING",
    "Pair",
    "Row",
    "Score",
    "System",
    "bin_label",
    "complete",
    "evaluate",
    "hole_l1_percent",
    "l1_percent",
    "markdown_table",
    "plan",
    "psnr",
    "read_hole",
    "read_target",
    "ssim",
    "summarise",
    "write_csv",
    "write_json",
]
