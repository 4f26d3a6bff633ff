"""The model card of a saved model: the README.md that a repository on the Hub shows."""

import json
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

import showface
from showface.files import existing_file
from showface.models import BUNDLED
from showface.models.find import CARD_FILE, find_model, is_hub_name
from showface.registry import about_model, load_model

_PACKAGE = Path(showface.__file__).parent
# The build copies the page into the package; in a checkout it is in docs/ only.
_BUNDLED_CARDS = (_PACKAGE / "assets" / "default-model.md", _PACKAGE.parent / "docs" / "default-model.md")
_RESEARCH_ONLY = "research-only"
_LOCAL = ("folders", "shards", "validation")  # settings of the data that name places on the author's machine


def model_card(model: str | PathLike[str], repo: str, licence: str | None = None) -> str:
    """The card of a model: a header that the Hub reads, how to load the model, and what is known of it.

    A README.md in the model's folder is its card. Otherwise the card of a bundled model is docs/default-model.md, and
    the card of any other one has its configuration and, beside the `config.yaml` of a training run, the settings. Paths
    on the author's machine are left out.

    Args:
        model: as for `showface.load_model`.
        repo: its name on the Hub, `org/name`.
        licence: as the Hub calls it, such as "mit". For a bundled model and those trained from one it is research
            only, unless stated otherwise.

    Raises:
        FileNotFoundError, ValueError, OSError: as for `showface.load_model`.
        ValueError: a licence for a model that is bundled or whose README.md exists.
        ModuleNotFoundError: the extra `hub` is missing.
    """
    bundled = isinstance(model, str) and model in BUNDLED
    folder = find_model(model)
    own = folder / CARD_FILE
    if licence is not None and (bundled or own.is_file()):
        raise ValueError(f"the licence of {model} is stated already: {about_model(model).licence}")
    if own.is_file():
        return own.read_text(encoding="utf-8")
    network = load_model(folder)
    settings = None if bundled else _settings(folder)
    started = "" if bundled else _first_model(folder)
    research = bundled or (licence is None and started in BUNDLED)
    text = _header(licence, research, network.system)
    text += f"\n# {repo}\n\nA model of showface that fills holes in photos of faces.\n\n{_loading(repo)}"
    if bundled:
        page = next((card for card in _BUNDLED_CARDS if card.is_file()), _BUNDLED_CARDS[0])
        page = existing_file(page, "the bundled models need their card", "docs/ of the sources")
        about = about_model(model)
        body = page.read_text(encoding="utf-8").partition("\n")[2]  # without its title
        return f"{text}\nThis is `{model}`, {about.description}. Licence: {about.licence}.\n{body}"
    text += f"\n## Licence\n\n{_licence_text(licence, started)}\n"
    parameters = sum(x.numel() for x in network.parameters())
    configuration = json.dumps({"system": network.system, **network.config.to_dict()}, indent=2)
    text += f"\n## Configuration\n\n{parameters:,} parameters.\n\n```json\n{configuration}\n```\n"
    if settings is not None:
        yaml_text = yaml.safe_dump(_without_paths(settings), sort_keys=False)
        text += f"\n## Training\n\nThe settings of `showface train`, without paths:\n\n```yaml\n{yaml_text}```\n"
    return text


def hub_package() -> Any:
    """The package huggingface_hub. Raises ModuleNotFoundError, with what to install, if it is missing."""
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("this needs huggingface_hub: install 'showface[hub]'") from error
    return huggingface_hub


def _header(licence: str | None, research: bool, system: str) -> str:
    values: dict[str, Any] = {"license": "other", "license_name": _RESEARCH_ONLY} if research else {"license": licence}
    tags = ["inpainting", "face-inpainting", "pytorch", system]
    data = hub_package().ModelCardData(library_name="showface", pipeline_tag="image-to-image", tags=tags, **values)
    return f"---\n{data.to_yaml()}\n---\n"


def _loading(repo: str) -> str:
    return f"""    pip install "showface[hub]"
    showface inpaint photo.jpg mask.png -o restored.png --model {repo}

```python
import showface

model = showface.load_model("{repo}")
restored = showface.inpaint("photo.jpg", "mask.png", model=model)
```
"""


def _licence_text(licence: str | None, started: str) -> str:
    if started in BUNDLED:
        about = about_model(started)
        return f"{licence or _RESEARCH_ONLY}. Training started from the bundled model `{started}`: {about.licence}."
    if started:
        text = f"Training started from another model ({_named(started)}), whose licence counts too."
        return f"{licence or 'Not stated'}. {text}"
    return licence or "Not stated."


def _first_model(folder: Path) -> str:
    """The model that the training of a model, and of those it was trained from, began with; "" if there was none."""
    started, seen = "", set[Path]()
    while folder.resolve() not in seen and (init := str((_settings(folder) or {}).get("init") or "")):
        seen.add(folder.resolve())
        started = init
        if started in BUNDLED:
            break
        folder = Path(started)
    return started


def _named(started: str) -> str:
    """The name of a bundled model or one on the Hub; a folder's name is not told."""
    public = started in BUNDLED or (is_hub_name(started) and not Path(started).exists())
    return started if public else "a local model"


def _settings(folder: Path) -> dict[str, Any] | None:
    """The settings of the training run that wrote a model; None if they are not known."""
    file = folder.parent / "config.yaml"
    if folder.resolve().name not in ("model", "best") or not file.is_file():
        return None
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except Exception:  # PyYAML's constructors raise many kinds of errors
        return None
    if not isinstance(values, dict) or not {"system", "steps", "data"} <= values.keys():
        return None
    return values


def _without_paths(settings: dict[str, Any]) -> dict[str, Any]:
    data = settings["data"] if isinstance(settings["data"], dict) else {}
    public = {name: value for name, value in settings.items() if name != "features_weights"}
    public["data"] = {name: value for name, value in data.items() if name not in _LOCAL}
    if settings.get("init"):
        public["init"] = _named(str(settings["init"]))
    return public
