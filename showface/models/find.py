"""Where a saved model is: bundled, in a folder, or on the Hugging Face Hub."""

import re
from os import PathLike
from pathlib import Path

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
DIFFERENCE_FILE = "difference.safetensors"  # see `showface.models.interpolation`
MODEL_FILES = (CONFIG_FILE, WEIGHTS_FILE, DIFFERENCE_FILE)
_BUNDLED_FOLDER = Path(__file__).parent.parent / "assets" / "default"
BUNDLED: dict[str, tuple[Path, float | None]] = {"default": (_BUNDLED_FOLDER, None), "psnr": (_BUNDLED_FOLDER, 0.0)}
"""The folder of each bundled model and its `detail`; None stands for the folder's own."""
_HUB_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[^\s@]+))?", re.ASCII)
_A_MODEL_IS = (
    f"a model is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, or one of {', '.join(BUNDLED)}, or org/name on the Hub"
)
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def find_model(model: str | PathLike[str], revision: str | None = None) -> Path:
    """The folder with the configuration and the weights of a model, downloaded if needed.

    A text is, in this order, the name of a bundled model, a folder that exists, or `org/name` or `org/name@revision` on
    the Hub. Any other path is a folder: `Path("psnr")` or `"./psnr"` is never the bundled model.

    Args:
        revision: branch, tag or commit of a model on the Hub; "main" by default.

    Raises:
        FileNotFoundError: there is no such model, revision or file; the message says where it was looked for.
        PermissionError: the model's owner must give access first.
        ConnectionError: the Hub can't be reached, and the model is not in its cache.
        OSError: the Hub answers with another error.
        ValueError: a revision of a model that is not on the Hub, or two revisions.
    """
    named = isinstance(model, str)
    hub_name = _HUB_NAME.fullmatch(model) if isinstance(model, str) else None
    if named and model in BUNDLED:
        folder, _ = BUNDLED[str(model)]
    elif hub_name and not Path(model).exists():
        if revision is not None and hub_name["revision"] is not None:
            raise ValueError(f"give the revision once: {model} names one, and so does revision={revision}")
        return _download(hub_name["repo"], hub_name["revision"] if revision is None else revision)
    else:
        folder = Path(model)
    if revision is not None:
        raise ValueError(f"only models on the Hub (org/name) have revisions, and {model} is not there: {revision}")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {name} in {folder}: {_A_MODEL_IS}")
    return folder


def find_detail(model: str | PathLike[str], detail: float | None = None) -> float | None:
    """The `detail` of a model: the given one, or else that of a bundled model's name; None for the folder's own."""
    if detail is None and isinstance(model, str) and model in BUNDLED:
        return BUNDLED[model][1]
    return detail


def is_hub_name(name: str) -> bool:
    """Whether a text has the form `org/name`, without a revision."""
    match = _HUB_NAME.fullmatch(name)
    return match is not None and match["revision"] is None


def _download(repo: str, revision: str | None) -> Path:
    """The folder of a repository's model in the Hub's cache. Only the files of a model are fetched."""
    tried = f"no model {repo}: no such folder, no bundled model ({', '.join(BUNDLED)})"
    try:
        from huggingface_hub import constants, errors, snapshot_download
    except ModuleNotFoundError as error:
        raise FileNotFoundError(f"{tried}; to look for it on the Hub, install 'showface[hub]'") from error
    hub, wanted = f"the Hub ({constants.ENDPOINT})", "main" if revision is None else revision
    files = [*MODEL_FILES, CARD_FILE]
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=files, library_name="showface"))
    except errors.GatedRepoError as error:
        raise PermissionError(f"{repo} is gated: ask for access on its page on {hub}, and {LOG_IN}") from error
    except errors.RepositoryNotFoundError as error:
        missing = f"and {hub} has no such repository, or only for those who may see it: {LOG_IN}"
        raise FileNotFoundError(f"{tried}, {missing}") from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo} has no revision {wanted} on {hub}: give a branch, tag or commit") from error
    except errors.LocalEntryNotFoundError as error:
        cache = f"{wanted} of it is not complete in the cache {constants.HF_HUB_CACHE}"
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{hub} can't be reached"
        raise ConnectionError(f"{tried}; {why}, and {cache}") from error
    except errors.HFValidationError as error:
        raise FileNotFoundError(f"{tried}, and it is no name on the Hub: {first_line(error)}") from error
    except Exception as error:  # of the HTTP library too, which is another one in older versions of huggingface_hub
        raise OSError(f"{repo} can't be fetched from {hub}: {first_line(error)}") from error
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {name} in {repo} (revision {wanted}) on {hub}: {_A_MODEL_IS}")
    return folder


def first_line(error: Exception) -> str:
    """The first line of an error's message that is not empty, or else its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
