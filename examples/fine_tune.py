"""Fine-tune the bundled model on a folder of faces. Needs `pip install ".[train]"`.

showface align photos/ -o faces/  # first: training does not look for faces
python examples/fine_tune.py faces/ --validation held-out/ --out runs/mine
python examples/fine_tune.py faces/ --out runs/mine --resume  # after a stop
"""

import argparse
from pathlib import Path

import showface
from showface.training import DataConfig, Trainer, TrainingConfig, resumed_config


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune the bundled model on your own faces.")
    parser.add_argument("faces", type=Path, help="a folder of aligned faces; it is searched recursively")
    parser.add_argument(
        "--validation", type=Path, help="a folder of other aligned faces: the best model on them is kept"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/mine"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=256, help="side of the training images, a multiple of 16")
    parser.add_argument("--workers", type=int, default=1, help="processes that load images")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--resume", action="store_true", help="continue the run in OUT, with its own settings")
    arguments = parser.parse_args()

    data = DataConfig(folders=[str(arguments.faces)], size=arguments.size, workers=arguments.workers)
    if arguments.validation:
        data.validation = [str(arguments.validation)]
    config = TrainingConfig(
        data=data,
        init="psnr",  # the bundled model that was trained with these losses only, without a discriminator
        steps=arguments.steps,
        batch=arguments.batch,
        lr=1e-4,  # a fifth of the default: the weights are good already
        warmup=100,
        device=arguments.device,
    )
    if arguments.resume:
        config = resumed_config(arguments.out)
        config.data.folders = data.folders
        config.data.validation = data.validation or config.data.validation
    trainer = Trainer(config, arguments.out, resume=arguments.resume)
    print(f"{len(trainer.dataset)} images on {trainer.device}")
    folder = trainer.run()  # writes config.yaml, log.jsonl, TensorBoard events, checkpoints and the model
    if (arguments.out / "best").is_dir():
        folder = arguments.out / "best"

    model = showface.load_model(folder)  # the averaged weights, in eval mode
    print(f"{folder}: {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
