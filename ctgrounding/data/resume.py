"""Where training goes on: two integers, taken from the steps that Lightning has completed."""

from typing import Any

from lightning.pytorch import Trainer

from ctgrounding.data.loader import Position, StepLoader
from ctgrounding.errors import CheckpointError


class Progress:
    """Position of a data module in its training data, across checkpoints.

    Examples:
        >>> progress = Progress()
        >>> progress.load({"epoch": 2, "steps": 5})
        >>> progress.state(None, None)
        {'epoch': 2, 'steps': 5}
    """

    def __init__(self) -> None:
        self._resumed: Position | None = None

    def state(self, trainer: Trainer | None, loader: StepLoader | None) -> dict[str, int]:
        """Epoch and completed steps of it."""
        position = self._completed(trainer, loader)
        return {"epoch": position.epoch, "steps": position.steps}

    def load(self, state: dict[str, Any]) -> None:
        """Go on after the completed steps.

        Raises:
            CheckpointError: If the two integers are missing.
        """
        try:
            self._resumed = Position(int(state["epoch"]), int(state["steps"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The checkpoint's data position is {state}; epoch and steps are needed. Use another checkpoint."
            ) from error

    def begin(self, trainer: Trainer | None, loader: StepLoader) -> Position:
        """Where the epoch that Lightning asks for begins."""
        epoch = 0 if trainer is None else trainer.current_epoch
        resumed = self._resumed
        if resumed is not None and resumed.epoch > epoch:
            # Resumed at the end of an epoch with max_steps, Lightning asks for one more batch of that epoch.
            return Position(epoch, len(loader))
        self._resumed = None
        return resumed if resumed is not None and resumed.epoch == epoch else Position(epoch, 0)

    def _completed(self, trainer: Trainer | None, loader: StepLoader | None) -> Position:
        if loader is None or loader.handed_out is None or trainer is None:
            return self._resumed or Position()
        progress = trainer.fit_loop.epoch_loop.batch_progress.state_dict()["current"]
        epoch, steps = loader.handed_out.epoch, loader.handed_out.steps - (progress["ready"] - progress["processed"])
        if steps >= min(len(loader), trainer.num_training_batches):
            return Position(epoch + 1, 0)
        return Position(epoch, steps)
