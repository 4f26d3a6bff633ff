"""Models on the Hub: a server on localhost speaks its paths, and nothing else is asked."""

import builtins
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from showface import MDRNets, load_model, push_to_hub
from showface.hub import model_card
from showface.models import BUNDLED
from showface.models.interpolation import save_difference
from showface.registry import about_model

from support.hub import running_hub
from support.networks import wake

constants = pytest.importorskip("huggingface_hub.constants")
NAME = "org/face"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with an empty cache; the process is in an empty folder."""
    monkeypatch.chdir(tmp_path)
    with running_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server


def files_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}


def assert_equal(one: torch.nn.Module, other: torch.nn.Module) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in one.state_dict().items())


class TestLoad:
    def test_only_the_model_is_fetched(self, hub, folder, model):
        extra = {"pytorch_model.bin": b"cos\nsystem", "modeling.py": b"raise SystemExit", "x/config.json": b"{}"}
        hub.add(NAME, {**files_of(folder), **extra, "README.md": b"---\nlicense: mit\n---\n"})
        assert_equal(load_model(NAME), model)
        assert hub.fetched == ["README.md", "config.json", "model.safetensors"]
        names = {path.name for path in Path("cache").rglob("*")}
        assert not names & {"pytorch_model.bin", "modeling.py"}
        assert (about_model(NAME).name, about_model(NAME).licence) == ("face", "mit")

    @pytest.mark.parametrize("value", ["!!int ''", "!!bool 'maybe'", "!!timestamp 'x'", "[", "&a [*a]"])
    def test_a_card_that_is_no_yaml(self, hub, folder, value):
        hub.add(NAME, {**files_of(folder), "README.md": f"---\nlicense: {value}\n---\n".encode()})
        assert about_model(NAME).licence == "not stated"

    def test_revisions(self, hub, folder, model):
        repo = hub.add(NAME, files_of(folder))
        first = repo.refs["main"]
        repo.refs["v1"] = first
        other = wake(MDRNets(model.config))
        other.save_pretrained("other")
        repo.commit(files_of(Path("other")))
        assert_equal(load_model(NAME), other)
        for revision in ("v1", first):
            assert_equal(MDRNets.from_pretrained(NAME, revision=revision), model)
            assert_equal(load_model(f"{NAME}@{revision}"), model)

    def test_the_cache_is_used_again_and_offline(self, hub, folder, model, monkeypatch):
        hub.add(NAME, files_of(folder))
        load_model(NAME)
        hub.requests.clear()
        assert_equal(load_model(NAME), model)
        assert not [path for method, path in hub.requests if method == "GET" and "/objects/" in path]
        hub.requests.clear()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert_equal(load_model(NAME), model)
        assert not hub.requests
        with pytest.raises(
            ConnectionError, match=r"no model org/other: no such folder.*HF_HUB_OFFLINE is set, and main"
        ):
            load_model("org/other")

    def test_a_folder_wins(self, hub, folder, model):
        hub.add(NAME, {})
        model.save_pretrained(NAME)
        assert_equal(load_model(NAME), model)
        assert not hub.requests

    def test_a_path_is_never_on_the_hub(self, hub):
        for name in (Path(NAME), f"./{NAME}", "a/b/c", "/no/where"):
            with pytest.raises(FileNotFoundError, match=r"no config.json in "):
                load_model(name)
        assert not hub.requests

    def test_a_hostile_configuration(self, hub, folder):
        hub.add(NAME, {**files_of(folder), "config.json": b'{"channels": 1000000000000}'})
        with pytest.raises(ValueError, match=r"channels is 1000000000000, and model.safetensors has only"):
            load_model(NAME)

    def test_errors(self, hub, folder):
        hub.add(NAME, files_of(folder))
        hub.add("org/gated", files_of(folder), gated=True)
        hub.add("org/empty", {"config.json": b"{}"})
        tried = r"no model org/none: no such folder, no bundled model \(default, psnr\), and the Hub \(http"
        for name, error, message in (
            ("org/none", FileNotFoundError, f"{tried}.* has no such repository, or only for those who may see it"),
            (f"{NAME}@v9", FileNotFoundError, r"org/face has no revision v9 on the Hub \(http.*: give a branch, tag"),
            ("org/gated", PermissionError, "org/gated is gated: ask for access on its page on the Hub"),
            ("org/empty", FileNotFoundError, r"no model.safetensors in org/empty \(revision main\) on the Hub"),
            ("org/a--b", FileNotFoundError, "it is no name on the Hub: "),
        ):
            with pytest.raises(error, match=message) as raised:
                load_model(name)
            assert len(str(raised.value).splitlines()) == 1
        with pytest.raises(ValueError, match="give the revision once"):
            load_model(f"{NAME}@v1", revision="v2")
        for name in ("psnr", str(folder)):
            with pytest.raises(ValueError, match=r"only models on the Hub \(org/name\) have revisions"):
                load_model(name, revision="v1")

    def test_the_hub_is_gone(self, hub, monkeypatch):
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(ConnectionError, match=r"no model org/none: .* can't be reached, and main of it is not"):
            load_model("org/none")

    def test_without_the_extra(self, monkeypatch, showface, folder):
        real = builtins.__import__

        def without(name, *arguments, **options):
            if name.startswith("huggingface_hub"):
                raise ModuleNotFoundError(name)
            return real(name, *arguments, **options)

        monkeypatch.setattr(builtins, "__import__", without)
        code, _, err = showface("demo", "--model", "org/none")
        assert code == 1
        assert "no bundled model (default, psnr); to look for it on the Hub, install 'showface[hub]'" in err
        for name in ("psnr", folder):  # a folder with a card of its own, too
            (folder / "README.md").write_text("---\nlicense: mit\n---\n")
            code, _, err = showface("push", name, NAME)
            assert (code, err) == (1, "error: this needs huggingface_hub: install 'showface[hub]'\n")


class TestPush:
    def test_and_load_again(self, hub, folder, model):
        address = push_to_hub(folder, NAME, licence="mit")
        repo = hub.repos[NAME]
        assert address == f"{hub.address}/{NAME}/commit/{repo.refs['main']}"
        files = repo.commits[repo.refs["main"]]
        assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
        assert files_of(folder) == {name: files[name] for name in ("config.json", "model.safetensors")}
        assert_equal(load_model(NAME), model)
        assert about_model(NAME).licence == "mit"

    def test_a_network_to_a_branch(self, hub, model):
        push_to_hub(model, NAME, revision="next", private=True)
        assert hub.repos[NAME].private
        assert_equal(load_model(NAME, revision="next"), model)
        with pytest.raises(FileNotFoundError, match=r"no config.json in org/face \(revision main\)"):
            load_model(NAME)

    def test_nothing_is_overwritten_unasked(self, hub, folder, model):
        push_to_hub(folder, NAME)
        with pytest.raises(FileExistsError, match=r"org/face \(main\) has README.md, config.json, model.safetensors: "):
            push_to_hub(model, NAME)
        with pytest.raises(ValueError, match="exists and is public"):
            push_to_hub(model, NAME, private=True, overwrite=True)
        other = wake(MDRNets(model.config))
        push_to_hub(other, NAME, overwrite=True)
        assert_equal(load_model(NAME), other)

    def test_a_pair_of_weights(self, hub, folder, model):
        """A difference is pushed and fetched too, and goes when other weights replace it."""
        sharp = wake(MDRNets(model.config))
        save_difference(folder, sharp)
        push_to_hub(folder, NAME)
        for detail in (0, 0.5, None):
            assert_equal(load_model(NAME, detail=detail), load_model(folder, detail=detail))
        assert not torch.equal(*(load_model(NAME, detail=x).coarse.to_image.conv.weight for x in (0, 1)))
        with pytest.raises(FileExistsError, match=r"has README.md, config.json, difference.safetensors, model.safe"):
            push_to_hub(model, NAME)
        push_to_hub(model, NAME, overwrite=True)
        assert_equal(load_model(NAME), model)
        with pytest.raises(ValueError, match="which has no difference"):
            load_model(NAME, detail=1)

    def test_a_bundled_name_is_pushed_with_its_weights(self, hub):
        push_to_hub("psnr", NAME)
        assert "difference.safetensors" not in hub.repos[NAME].commits[hub.repos[NAME].refs["main"]]
        assert_equal(load_model(NAME), load_model("psnr"))

    def test_errors(self, hub, folder):
        with pytest.raises(ValueError, match="must be org/name, got face"):
            push_to_hub(folder, "face")
        hub.read_only = True
        with pytest.raises(PermissionError, match="you may not write to org/face on the Hub"):
            push_to_hub(folder, NAME)
        (folder / "config.json").write_text("{")
        with pytest.raises(ValueError, match="is not a configuration"):
            push_to_hub(folder, NAME)

    def test_by_the_command(self, hub, showface, folder):
        code, out, err = showface("push", folder, NAME, "--license", "mit")
        assert (code, out.startswith(f"pushed: {hub.address}/{NAME}/commit/")) == (0, True), err
        assert showface("push", folder, NAME)[0] == 1


class TestCard:
    def header(self, card: str) -> dict:
        return yaml.safe_load(card.split("---\n")[1])

    @pytest.mark.parametrize("name", sorted(BUNDLED))
    def test_of_a_bundled_model(self, name):
        card = model_card(name, NAME)
        header = self.header(card)
        assert (header["license"], header["license_name"]) == ("other", "research-only")
        assert (header["library_name"], header["pipeline_tag"]) == ("showface", "image-to-image")
        page = (Path(__file__).parents[1] / "docs" / "default-model.md").read_text()
        assert page.partition("\n")[2] in card
        assert f"This is `{name}`" in card
        with pytest.raises(ValueError, match="is stated already: for research only"):
            model_card(name, NAME, licence="mit")

    def test_of_a_training_run(self, model, tmp_path):
        folder = tmp_path / "model"
        model.save_pretrained(folder)
        secret = {"folders": ["/home/me/faces"], "shards": ["https://me:secret@host/x.tar"], "size": 32}
        settings = {"system": "mdrnets", "steps": 7, "init": "psnr", "features_weights": "/home/me/vgg", "data": secret}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
        card = model_card(folder, NAME)
        assert self.header(card)["license_name"] == "research-only"
        assert "steps: 7" in card
        assert '"image_size": 32' in card
        assert f'load_model("{NAME}")' in card
        assert not any(word in card for word in ("/home", "secret", str(tmp_path)))
        assert self.header(model_card(folder, NAME, licence="mit"))["license"] == "mit"
        assert "bundled model `psnr`" in model_card(folder, NAME, licence="mit")

    def test_of_a_model_trained_again(self, model, tmp_path):
        """What a model was first trained from counts, and no folder's name is told."""
        begins = {"first": "psnr", "second": tmp_path / "first" / "model", "third": NAME, "fourth": tmp_path / "gone"}
        for run, init in begins.items():
            model.save_pretrained(tmp_path / run / "model")
            settings = {"system": "mdrnets", "steps": 7, "init": str(init), "data": {}}
            (tmp_path / run / "config.yaml").write_text(yaml.safe_dump(settings))
        cards = {run: model_card(tmp_path / run / "model", NAME) for run in begins}
        assert self.header(cards["second"])["license_name"] == "research-only"
        assert "bundled model `psnr`" in cards["second"]
        assert f"another model ({NAME}), whose licence counts too" in cards["third"]
        assert "another model (a local model), whose licence counts too" in cards["fourth"]
        assert not any(str(tmp_path) in card for card in cards.values())

    def test_of_the_author(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
        assert model_card(tmp_path, NAME).endswith("Mine.\n")


def test_in_a_process_of_its_own(hub, folder, tmp_path):
    """The variables HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are followed."""
    hub.add(NAME, files_of(folder))
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    command = [sys.executable, "-c", f"import showface; print(showface.load_model({NAME!r}).system)"]
    for offline in ("0", "1"):
        done = subprocess.run(
            command, env={**environment, "HF_HUB_OFFLINE": offline}, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, "mdrnets\n"), done.stderr
