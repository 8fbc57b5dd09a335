"""The state of an unfinished training, in a file."""

from pathlib import Path
from typing import Any

import torch

from mf.errors import DataError
from mf.files import written_aside


class CheckpointFile:
    """One file that always holds the state after a whole epoch; a reader, or a kill, never meets half of one.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> dict[str, Any] | None:
        """What ``save`` wrote last; ``None`` when the file is not there.

        Raises:
            DataError: the file is not a checkpoint.
        """
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, weights_only=True, map_location="cpu")
            if not {"training", "fitting", "reports"} <= set(state):
                raise ValueError("it holds other things")
        except Exception as error:  # torch.load answers garbage with whatever its parser trips over
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"{self.path} is not a checkpoint: {reason}; delete it to start anew, or name another file"
            ) from None
        return dict(state)

    def save(self, state: dict[str, Any]) -> None:
        with written_aside(self.path) as aside:
            torch.save(state, aside)

    def remove(self) -> None:
        """The training has come to its end."""
        self.path.unlink(missing_ok=True)
