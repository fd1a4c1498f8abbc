"""Steps that can be taken back: what is not finite never stays, is never saved, and costs one step.

The device counts by itself how many steps in a row were sound (`Learner.step`); the host asks where it waits for the
loss anyway. Was one not, then all since the last look are taken back, those before it done again, which gives the same
bits, and it is skipped: weights, clusters, labels and schedule stay as they were before it.
"""

from __future__ import annotations

import copy
from typing import Any

from coke import distributed
from coke.training.learner import Learner

IN_A_ROW = 10  # steps that may be skipped: more come of the weights, not of the images


class Guard:
    """The last state that was looked at and sound, on the device, and what came after it.

    Attributes:
        skipped: steps of the run.
        in_a_row: skipped ones since the last sound step.
        state: what to go back to; ``step`` its place in the epoch.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner, self.skipped, self.in_a_row = learner, 0, 0
        self.state: dict[str, Any] = {}
        self.step, self._first_bad = 0, -1

    def begin(self, step: int) -> None:
        """From this state on, which is sound, steps can be taken back. Every process has to call."""
        self.state = {}  # freed first: there are never three
        self.state, self.step = copy.deepcopy(self.learner.state_dict()), step

    def wants_a_look(self, step: int) -> bool:
        """Whether to look before that step, where nothing else asks for it: beside steps that were not sound."""
        return self.in_a_row > 0 or step == self._first_bad

    def look(self, step: int) -> int:
        """Where to go on before that step: there, at a step to be done again, or behind one that is skipped."""
        sound = self.learner.sound_steps()
        sound = int(distributed.smallest(sound, self.learner.device))
        if sound == step - self.step:
            self.in_a_row = 0 if sound else self.in_a_row
            self.begin(step)
            return step
        self.learner.load_state_dict(copy.deepcopy(self.state))
        if sound:
            self._first_bad = self.step + sound
            return self.step
        self.skipped, self.in_a_row, self.step = self.skipped + 1, self.in_a_row + 1, self.step + 1
        return self.step

    def state_dict(self) -> dict[str, int]:
        """For the checkpoint."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take the counts back."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
