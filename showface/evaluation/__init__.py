"""Evaluation of inpainting systems: image metrics, the pairing of images with holes, and reports.

A *system* is anything that is compared, such as "mdrnets" or "telea": its name labels the rows of the tables. Its
`FillHole` is the function that fills the hole of one image.
"""

from showface.evaluation.components import plan_components
from showface.evaluation.eyes import eye_likeness, hides_an_eye
from showface.evaluation.identity import IdentityDistance
from showface.evaluation.metrics import (
    PSNR_CEILING,
    hole_gradient_percent,
    hole_l1_percent,
    l1_percent,
    psnr,
    region_l1_percent,
    seam_l1_percent,
    ssim,
)
from showface.evaluation.perceptual import LPIPS, FrechetDistances
from showface.evaluation.protocol import (
    BINS,
    FINE_BINS,
    FillHole,
    Pair,
    Score,
    bin_label,
    complete,
    evaluate,
    plan,
    read_hole,
    read_target,
)
from showface.evaluation.report import (
    ALL_SETS,
    RegionRow,
    Row,
    markdown_table,
    region_table,
    summarise,
    summarise_regions,
    table,
    write_csv,
    write_json,
)
from showface.evaluation.run import Evaluation, generate_masks, run_evaluation
from showface.evaluation.sheet import choose_cases, contact_sheet
from showface.evaluation.systems import CLASSICAL, classical_system, model_system

__all__ = [
    "ALL_SETS",
    "BINS",
    "CLASSICAL",
    "FINE_BINS",
    "LPIPS",
    "PSNR_CEILING",
    "Evaluation",
    "FillHole",
    "FrechetDistances",
    "IdentityDistance",
    "Pair",
    "RegionRow",
    "Row",
    "Score",
    "bin_label",
    "choose_cases",
    "classical_system",
    "complete",
    "contact_sheet",
    "evaluate",
    "eye_likeness",
    "generate_masks",
    "hides_an_eye",
    "hole_gradient_percent",
    "hole_l1_percent",
    "l1_percent",
    "markdown_table",
    "model_system",
    "plan",
    "plan_components",
    "psnr",
    "read_hole",
    "read_target",
    "region_l1_percent",
    "region_table",
    "run_evaluation",
    "seam_l1_percent",
    "ssim",
    "summarise",
    "summarise_regions",
    "table",
    "write_csv",
    "write_json",
]
