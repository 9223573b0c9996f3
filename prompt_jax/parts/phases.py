"""In what order a run proceeds."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Gradient:
    """One phase of gradient steps for `Run.train_steps`.

    Attributes:
        name: shown in the log and kept in the checkpoint.
    """

    name: str = "train"
