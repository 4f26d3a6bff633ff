"""Publish a saved model on the Hugging Face Hub."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import torch

from showface.hub.card import hub_package, model_card
from showface.models import InpaintingNetwork
from showface.models.find import CARD_FILE, LOG_IN, MODEL_FILES, find_detail, find_model, first_line, is_hub_name
from showface.registry import load_model


def push_to_hub(
    model: str | PathLike[str] | InpaintingNetwork,
    repo: str,
    *,
    revision: str | None = None,
    private: bool = False,
    licence: str | None = None,
    overwrite: bool = False,
) -> str:
    """Write config.json, model.safetensors and a model card to a repository on the Hub, in one commit.

    Args:
        model: a saved model as for `showface.load_model`, whose files are pushed as they are; or a network.
        repo: `org/name`; the repository is made if needed.
        revision: branch, made if needed; "main" by default.
        private: make the repository private.
        licence: see `showface.hub.model_card`.
        overwrite: replace these files if the branch has any of them.

    Returns:
        The address of the commit.

    Raises:
        ValueError: a bad name, or `private` for a repository that is public; or as `model_card`.
        FileExistsError: the branch has one of the files, and `overwrite` is False.
        FileNotFoundError, OSError: as for `showface.load_model`; or the Hub refuses, or can't be reached.
        ModuleNotFoundError: the extra `hub` is missing.
    """
    if not is_hub_name(repo):
        raise ValueError(f"the name of a repository must be org/name, got {repo}")
    if isinstance(model, InpaintingNetwork):
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            return push_to_hub(
                Path(folder), repo, revision=revision, private=private, licence=licence, overwrite=overwrite
            )
    hub_package()  # before any work
    network = load_model(model)  # nothing is published that can't be loaded
    card = model_card(model, repo, licence)
    with tempfile.TemporaryDirectory() as temporary:
        saved = find_model(model)
        if find_detail(model) is not None:  # a name that stands for one `detail` of a folder
            saved = Path(temporary)
            network.save_pretrained(saved, torch.float16)
        files = {name: saved / name for name in MODEL_FILES if (saved / name).is_file()}
        return _commit(repo, {**files, CARD_FILE: card.encode()}, revision, private, overwrite)


def _commit(repo: str, files: dict[str, Path | bytes], revision: str | None, private: bool, overwrite: bool) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(library_name="showface")
    with _errors_of_the_hub(repo, api.endpoint):
        api.create_repo(repo, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        info = api.model_info(repo, revision=revision)
    if private and not info.private:
        raise ValueError(f"{repo} exists and is public: --private is for new repositories")
    there = sorted({*files, *MODEL_FILES} & {file.rfilename for file in info.siblings or []})
    if there and not overwrite:
        where = f"{repo} ({revision or 'main'})"
        raise FileExistsError(f"{where} has {', '.join(there)}: pass --overwrite to replace them")
    with _errors_of_the_hub(repo, api.endpoint):
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(name, str(x) if isinstance(x, Path) else x) for name, x in files.items()
        ]
        # A difference that belonged to other weights would be added to these.
        operations += [CommitOperationDelete(name) for name in there if name not in files]
        # With its parent named, the commit fails if somebody else pushed in between.
        done = api.create_commit(
            repo, operations, commit_message="Push a showface model", revision=revision, parent_commit=info.sha
        )
    return str(done.commit_url)


@contextmanager
def _errors_of_the_hub(repo: str, endpoint: str) -> Iterator[None]:
    """Raise what huggingface_hub raises as an OSError of one line."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise PermissionError(f"you may not write to {repo} on the Hub ({endpoint}): {LOG_IN}") from error
        raise OSError(f"{repo} can't be pushed to the Hub ({endpoint}): {first_line(error)}") from error
    except Exception as error:  # of the HTTP library too, which is another one in older versions of huggingface_hub
        raise OSError(f"{repo} can't be pushed to the Hub ({endpoint}): {first_line(error)}") from error
