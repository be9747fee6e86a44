"""The documentation builds, its links lead somewhere, its commands and snippets run, its tables are complete."""

import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import ctgrounding
from ctgrounding import errors
from ctgrounding.cli import COMMANDS, TRAINER_COMMANDS, lightning_main, main

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
OUTER_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
RUN_PAGES = ("README.md", "docs/get-started.md")
SNIPPET_PAGES = ("README.md", *(str(path.relative_to(REPOSITORY)) for path in sorted(DOCS.rglob("*.md"))))
PICTURE = "docs/images/locate.png"

QUIET = "--trainer.enable_progress_bar false"
TINY_SPACING = "[12,16,16]"
TINY = {
    "fit": f"""{QUIET} --data.batch_size 2 --data.num_workers 0 --trainer.max_epochs 1 --trainer.limit_train_batches 1
    --model.image.init_args.spacing_mm {TINY_SPACING}""",
    "test": QUIET,
    "predict": QUIET,
}


def text_of(page):
    return (REPOSITORY / page).read_text(encoding="utf-8")


def commands_of(page):
    """Command lines in bash blocks; blocks marked text are shown, not run."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text_of(page), flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def snippets_of(page):
    marked = r"^<!-- runs -->\n+```python\n(.*?)^```"
    return re.findall(marked, text_of(page), flags=re.DOTALL | re.MULTILINE)


def without_code(text):
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder like that of a reader with data of their own: a card, a scan, and the run configs of the checkout."""
    folder = tmp_path_factory.mktemp("reader")
    phantom = "phantom --output data --patients 12 --voxel_mm 16 --workers 1 --format nifti"
    run_in(folder, shlex.split(phantom))
    shutil.copytree(REPOSITORY / "configs", folder / "configs")
    card = yaml.safe_load((REPOSITORY / "data_manifests" / "own_nifti.yaml").read_text(encoding="utf-8"))
    card["root"] = str(folder / "data")
    card["scans"] |= {"organs": "organs_path", "series": "series", "split": "split"}
    columns = ("scan", "series", "image", "z_mm")
    card["slices"] = {"table": "slices.csv", **{name: "scan_id" if name == "scan" else name for name in columns}}
    (folder / "my_card.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
    shutil.copy(min((folder / "data" / "nifti").rglob("*.nii.gz")), folder / "scan.nii.gz")
    return folder


def run_in(folder, words, entry=main):
    before = Path.cwd()
    os.chdir(folder)
    try:
        entry(words)
    finally:
        os.chdir(before)


def run_line(folder, line):
    program, *words = shlex.split(line)
    if "--spacing_mm" in words:
        words[words.index("--spacing_mm") + 1] = TINY_SPACING
    words += shlex.split(TINY.get(words[0], ""))
    run_in(folder, words, {"ctgrounding": main, "lightning": lightning_main}[program])


@pytest.fixture(scope="module")
def reader(world):
    """The same after the commands of README: shards and a run."""
    for line in commands_of("README.md"):
        if not line.startswith("make "):
            run_line(world, line)
    return world


def test_the_site_builds_in_strict_mode(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.html"))
    assert "fonts.googleapis" not in pages


def test_the_site_shows_every_page():
    navigation = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    hidden = [page for page in SNIPPET_PAGES[1:] if page.removeprefix("docs/") not in navigation]
    assert hidden == []


@pytest.mark.parametrize("page", OUTER_PAGES)
def test_links_outside_the_site_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(page)))
    inside = [target.partition("#")[0] for target in targets if not target.startswith(("http", "#"))]
    assert [target for target in inside if target != PICTURE and not (REPOSITORY / target).exists()] == []


def test_the_picture_of_the_readme_is_there():
    assert PICTURE in text_of("README.md")
    assert (REPOSITORY / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_the_readme_has_the_commands_it_promises():
    lines = commands_of("README.md")
    assert lines[:2] == ["make demo", "make test"]
    assert [line.split()[1] for line in lines[2:]] == ["ingest", "fit", "locate"]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/get-started.md", "docs/how-to/run-in-my-ci.md"])
def test_every_make_target_named_exists(page):
    targets = set(re.findall(r"^([a-z-]+):.*##", text_of("Makefile"), flags=re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text_of(page), flags=re.MULTILINE))
    assert named <= targets


@pytest.mark.filterwarnings("ignore")
def test_the_readme_commands_run(reader):
    assert (reader / "runs" / "mine" / "checkpoints" / "last.ckpt").is_file()
    assert (reader / "locate-scan.png").is_file()


@pytest.mark.filterwarnings("ignore")
def test_the_commands_of_get_started_run_after_them(reader):
    begun = commands_of("README.md")
    for line in commands_of("docs/get-started.md"):
        if line not in begun:
            run_line(reader, line)
    assert (reader / "runs" / "mine" / "report.html").is_file()


@pytest.mark.filterwarnings("ignore")
def test_metrics_are_all_documented(reader):
    if not (reader / "runs" / "mine" / "metrics.json").is_file():
        run_line(reader, "ctgrounding test --config runs/mine/config.yaml")
    found = json.loads((reader / "runs" / "mine" / "metrics.json").read_text(encoding="utf-8"))
    documented = re.findall(r"`([a-z_/0-9<>]+)`", text_of("docs/reference/metrics.md"))
    known = {re.sub(r"\\?<k\\?>", r"[0-9]+", re.escape(name)) for name in documented}
    bare = {re.sub(r"_ci_(low|high)", "", name).replace("scan_to_report/", "report_to_scan/") for name in found}
    unknown = [name for name in sorted(bare) if not any(re.fullmatch(pattern, name) for pattern in known)]
    assert found
    assert unknown == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page in SNIPPET_PAGES if snippets_of(page)])
def test_marked_snippets_run(page, reader, monkeypatch):
    monkeypatch.chdir(reader)
    names = {"__name__": "snippet"}
    for snippet in snippets_of(page):
        exec(compile(snippet, page, "exec"), names)


@pytest.mark.parametrize("command", [*TRAINER_COMMANDS, *COMMANDS])
def test_every_command_is_documented(command):
    page = text_of("docs/reference/command-line.md")
    assert f"| `{command}` |" in page if command in TRAINER_COMMANDS else f"## {command}\n" in page


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "configs"])
def test_every_option_of_a_command_is_documented(command):
    from importlib import import_module

    module, _, name = COMMANDS[command][0].partition(":")
    section = text_of("docs/reference/command-line.md").split(f"## {command}\n")[1].split("\n## ")[0]
    for parameter in inspect.signature(getattr(import_module(module), name)).parameters.values():
        is_option = parameter.kind is parameter.KEYWORD_ONLY or parameter.default is not parameter.empty
        assert f"--{parameter.name}" in section if is_option else parameter.name.upper() in section.upper()


@pytest.mark.parametrize("part", ["model", "data"])
def test_every_key_of_a_run_is_documented(part):
    from ctgrounding.data.datamodule import ShardDataModule
    from ctgrounding.tasks.pretrain import Pretrain

    owner = {"model": Pretrain, "data": ShardDataModule}[part]
    section = text_of("docs/reference/configuration.md").split(f"\n## {part}\n")[1].split("\n## ")[0]
    assert [key for key in list(inspect.signature(owner).parameters) if f"`{key}`" not in section] == []


def test_classes_named_in_the_configuration_exist():
    from importlib import import_module

    named = set(re.findall(r"`(ctgrounding(?:\.[A-Za-z_]+)+)`", text_of("docs/reference/configuration.md")))
    assert len(named) > 10
    for path in named:
        module, _, name = path.rpartition(".")
        assert hasattr(import_module(module), name), path


def test_every_error_is_documented():
    own = [name for name, item in vars(errors).items() if inspect.isclass(item) and issubclass(item, Exception)]
    page = text_of("docs/reference/errors.md")
    assert len(own) > 8
    assert [name for name in own if f"`{name}`" not in page and f".{name}`" not in page] == []


def test_the_citation_names_this_version():
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert citation["version"] == ctgrounding.__version__
    assert f"## [{ctgrounding.__version__}]" in text_of("CHANGELOG.md")
