"""Every YAML that comes with the package is what it says it is."""

from pathlib import Path

import pytest

from ctgrounding.commands.configs import copy_configs, paths
from ctgrounding.errors import ConfigError
from ctgrounding.ingest import load_card
from ctgrounding.trainer_cli import run

REPOSITORY = Path(__file__).parent.parent
RUNS = sorted((REPOSITORY / "configs" / "pretrain").glob("*.yaml"))
CARDS = sorted((REPOSITORY / "data_manifests").glob("*.yaml"))


@pytest.mark.parametrize("config", RUNS, ids=lambda path: path.stem)
def test_run_config__parses_for_every_command(config: Path) -> None:
    for command in ("fit", "validate", "test", "predict"):
        cli = run([command, "--config", str(config)], execute=False)
        assert set(cli.config[command].model.weights) == set(cli.config[command].model.objectives)


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.stem)
def test_card__loads(card: Path, tmp_path: Path) -> None:
    assert load_card(str(card), root=tmp_path).name


def test_configs__are_packaged_and_copied_but_never_over_a_file(tmp_path: Path) -> None:
    assert {f"configs/pretrain/{path.name}" for path in RUNS} <= set(paths())
    (written,) = copy_configs(tmp_path, ["smoke.yaml"])
    assert written.read_text(encoding="utf-8") == (REPOSITORY / "configs/pretrain/smoke.yaml").read_text(
        encoding="utf-8"
    )
    with pytest.raises(ConfigError, match="already there"):
        copy_configs(tmp_path, ["smoke.yaml"])
