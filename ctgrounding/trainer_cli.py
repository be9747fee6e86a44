"""``fit``, ``validate``, ``test`` and ``predict``: Lightning's CLI with this project's guards."""

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import set_parsing_settings
from jsonargparse._actions import ActionConfigFile
from jsonargparse.typing import register_type
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import CheckpointIO
from omegaconf.errors import OmegaConfBaseException

from ctgrounding.data.datamodule import ShardDataModule
from ctgrounding.data.report_text import ReportText
from ctgrounding.errors import CheckpointError, ConfigError, CTGroundingError
from ctgrounding.evaluation.protocols import load as load_protocol
from ctgrounding.evaluation.protocols import names as protocols
from ctgrounding.noise import silence
from ctgrounding.parsing import brief
from ctgrounding.tasks.callbacks import CutTexts, SaveOnSignal
from ctgrounding.tasks.checkpoints import LAST, LastCheckpoint, WholeCheckpoints
from ctgrounding.tasks.pretrain import Pretrain
from ctgrounding.written import Written

_CHOSEN_BY_LIGHTNING = ("last", "best", "hpc")
_SAID_OF_VALUES = ("Does not validate", "`val_check_interval`")
"""Parts of what jsonargparse and Lightning say of values, in errors of a kind that a fault would raise too."""

_UNWRITTEN_NULL = "Unable to serialize instance None"
USAGE = "ctgrounding {command} --config FILE [--config OVERLAY] [--key.nested value ...]"


def run(words: list[str], execute: bool = True) -> LightningCLI:
    """Parse a trainer command and run it.

    Args:
        words: The command and its options, files before overrides.
        execute: Whether to instantiate and run; False only parses, to validate a config.

    Raises:
        ConfigError: If the configuration cannot be used; the message says which key.
    """
    written = Written(words)
    written.check_objectives()
    silence()
    register_type(torch.device)  # the default of some of Lightning's callbacks, which is written into configs
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    cli = TrainerCLI if execute else ParseOnlyCLI
    commands = ("fit", "validate", "test", "predict")
    argv, sys.argv = sys.argv, [sys.argv[0], *words]  # other ranks are started with these
    try:
        return cli(
            Pretrain,
            ShardDataModule,
            args=words,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={name: {"usage": USAGE.format(command=name)} for name in commands},
        )
    except (OmegaConfBaseException, MisconfigurationException, UnparsedError) as error:
        raise ConfigError(brief(error, written)) from error
    except RuntimeError as error:
        if "which is not available" not in str(error):
            raise
        raise ConfigError(f"{str(error).partition('. Pass in')[0]}. Its numbers are in the run's logs.") from error
    except ValueError as error:
        if "loaded state dict" in str(error):
            raise CheckpointError(
                "The checkpoint's optimizer has other groups of parameters than this configuration makes. Go on with "
                "the run's own config.yaml, or start from weights alone by model.initial_weights."
            ) from error
        if isinstance(error, CTGroundingError) or not any(said in str(error) for said in _SAID_OF_VALUES):
            raise
        raise ConfigError(brief(error, written)) from error  # a class or the trainer refused its arguments
    finally:
        sys.argv = argv


class TrainerParser(LightningArgumentParser):
    """Lightning's parser, with interpolation that follows overrides and one-sentence errors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 (Lightning's own signature)
        super().__init__(*args, **{"parser_mode": "omegaconf+", "allow_abbrev": False, **kwargs})

    def dump(self, *args: Any, **kwargs: Any) -> str:  # noqa: ANN401 (jsonargparse's own signature)
        """The configuration as YAML, with null where an objective is switched off.

        jsonargparse 4.53 writes a sentence there for types that allow a callable or null, which is no config.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=rf"\s*{_UNWRITTEN_NULL}")
            text: str = super().dump(*args, **kwargs)
        return text.replace(_UNWRITTEN_NULL, "null")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of printing fifty lines of usage; :func:`run` puts the message into words."""
        raise UnparsedError(message) from ex


class UnparsedError(Exception):
    """A parser's own message."""


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved config of a fit to its run folder, where it reruns the fit and describes the model."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save on the first rank; other commands leave the fit's config alone."""
        if stage == "fit" and trainer.is_global_zero and not self.already_saved:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            config = self.config.clone()
            config["ckpt_path"] = None  # a rerun starts where this run started, not where it ended
            self.parser.save(config, folder / "config.yaml", skip_none=False, overwrite=True, multifile=False)
            self.already_saved = True


class TrainerCLI(LightningCLI):
    """Lightning's CLI: the command line beats files beats checkpoints, and one file owns the objectives."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:  # noqa: ANN401 (Lightning's own signature)
        """Make the parser of a command."""
        parser = TrainerParser(**kwargs)
        parser.add_argument(
            "-c", "--config", action=ActionConfigFile, help="A run config; files come before overrides."
        )
        return parser

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:  # noqa: ANN401 (Lightning's own signature)
        """Give ``test`` the choice of a published evaluation."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "test":
            parser.add_argument(
                "--protocol", type=str | None, default=None, help=f"Evaluate as published: {', '.join(protocols())}."
            )
            parser.add_argument(
                "--scan_list", type=Path | None, default=None, help="Scan ids, one a line, if a protocol needs them."
            )
        return parser

    def _parse_ckpt_path(self) -> None:
        """Leave the parsed config alone: hyper-parameters in a checkpoint never override the command line."""

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint that an evaluation should use, and look whether the one asked for is there."""
        command = self.config.subcommand
        config = self.config[command]
        if config.get("protocol"):
            _word_reports(config, config["protocol"])
        elif config.get("scan_list"):
            raise ConfigError("--scan_list is for a --protocol, and none is named. Name one, or leave the list out.")
        asked = config.get("ckpt_path")
        if asked in _CHOSEN_BY_LIGHTNING and _is_for_lightning(asked, command, config):
            return
        is_last = asked in (None, "last")
        if not is_last and not Path(asked).exists():
            raise ConfigError(f"There is no checkpoint at {asked}, which --ckpt_path names. Check the path.")
        if not is_last or command == "fit":
            return
        last = _last(config)
        if not last.is_file():
            raise ConfigError(
                f"'{command}' needs a trained model and {last} does not exist. "
                "Fit first, or name a checkpoint with --ckpt_path."
            )
        config["ckpt_path"] = str(last)

    def after_instantiate_classes(self) -> None:
        """Hand the run's configuration to the task, which keeps it in checkpoints."""
        dumped = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        self.model.run_config = dumped[self.config.subcommand]
        chosen = self.config[self.config.subcommand]
        if chosen.get("protocol"):
            self.model.use_protocol(chosen["protocol"], chosen["scan_list"])

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        folder = Path(config.get("default_root_dir") or "runs/default")
        config["default_root_dir"] = str(folder)
        config["callbacks"] = list(config.get("callbacks") or [])
        if config.get("logger") in (None, True):
            config["logger"] = CSVLogger(str(folder), name="logs")
        keeps = config.get("enable_checkpointing") is not False
        if keeps and not any(isinstance(callback, Checkpoint) for callback in config["callbacks"]):
            config["callbacks"].append(LastCheckpoint(folder / "checkpoints"))
        if keeps:
            config["callbacks"].append(SaveOnSignal(folder / "checkpoints" / LAST))
        config["callbacks"].append(CutTexts())
        config["plugins"] = _with_whole_checkpoints(config.get("plugins"))
        try:
            return super()._instantiate_trainer(config, callbacks)
        except (ValueError, TypeError) as error:
            said = str(error).partition("\n")[0]
            raise ConfigError(f"The trainer's arguments do not fit: {said}") from error


class ParseOnlyCLI(TrainerCLI):
    """Parses and stops, so that a config can be checked without building a model."""

    def before_instantiate_classes(self) -> None:
        """Nothing is looked for."""

    def instantiate_classes(self) -> None:
        """Nothing is built."""

    def after_instantiate_classes(self) -> None:
        """Nothing is handed over."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run."""


def _with_whole_checkpoints(plugins: Any) -> list[Any]:  # noqa: ANN401 (plugins have no common type)
    given = list(plugins) if isinstance(plugins, list | tuple) else [plugins] if plugins else []
    return given if any(isinstance(plugin, CheckpointIO) for plugin in given) else [*given, WholeCheckpoints()]


def _word_reports(config: Any, protocol: str) -> None:  # noqa: ANN401 (jsonargparse's namespaces have no type)
    """Make reports of the sections that a protocol's queries are made of."""
    sections = load_protocol(protocol).report_sections
    if sections is None:
        return
    key = "data.report_text"
    if config.get(key) is None:
        config[f"{key}.class_path"] = f"{ReportText.__module__}.{ReportText.__qualname__}"
    config[f"{key}.init_args.sections"] = list(sections)


def _is_for_lightning(asked: str, command: str, config: Mapping[str, Any]) -> bool:
    """Whether Lightning finds the checkpoint of that name.

    Without a last one it would evaluate weights that nobody trained, so evaluations look for it here; a fit begins.

    Raises:
        ConfigError: If it could not find one in another process than that which trained, or there is none.
    """
    if asked == "best":
        raise ConfigError(
            "--ckpt_path best is known only while a fit runs. Name the file that it kept, for example "
            f"{_run_folder(config) / 'checkpoints' / 'epoch=3-step=80.ckpt'}."
        )
    if asked == "hpc" and not any(_run_folder(config).glob("hpc_ckpt_*.ckpt")):
        raise ConfigError(f"--ckpt_path hpc finds no hpc_ckpt_*.ckpt in {_run_folder(config)}. Name a checkpoint.")
    return asked == "hpc" or command == "fit"


def _last(config: Mapping[str, Any]) -> Path:
    """The newest ``last.ckpt``: where it goes by default, or where a checkpoint callback of the config puts it."""
    own = (callback.get("init_args.dirpath") for callback in config["trainer"].get("callbacks") or ())
    usual = _run_folder(config) / "checkpoints" / LAST
    files = [usual, *(Path(folder) / LAST for folder in own if folder)]
    found = [file for file in files if file.is_file()]
    return max(found, key=lambda file: file.stat().st_mtime, default=usual)


def _run_folder(config: Mapping[str, Any]) -> Path:
    return Path(config["trainer"].get("default_root_dir") or "runs/default")
