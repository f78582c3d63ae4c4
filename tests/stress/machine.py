"""The farm as a state machine: rounds of scripts, the death of the store and the end of all guests, in any order."""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.stress.farm import Farm, Figures, farm

SEEDS = st.integers(0, 2**63)


class Life(RuleBasedStateMachine):
    """One life of a host. ``live`` makes subclasses that say how much there is to live."""

    kind = ""
    scripts = 64
    rounds = 0
    figures: Figures

    def __init__(self) -> None:
        """Make the host; none once there were enough rounds, for Hypothesis has examples left then."""
        super().__init__()
        self.stack = ExitStack()
        self.used = False
        self.farm: Farm | None = None
        if self.figures.counts["rounds"] < self.rounds:
            place = self.stack.enter_context(TemporaryDirectory(prefix="vbdkit-stress-"))
            self.farm = self.stack.enter_context(farm(self.kind, Path(place), self.figures))
            self.stack.callback(self.farm.remove_everything)

    @rule(seed=SEEDS)
    def round(self, seed: int) -> None:
        """Many scripts at once."""
        self.used = True
        if self.farm is not None:
            self.farm.round(seed, self.scripts)
            self.farm.check()

    @rule(first=SEEDS, second=SEEDS)
    def two_rounds(self, first: int, second: int) -> None:
        """Rounds are what it is about, so they come more often than the rest."""
        for seed in (first, second):
            self.round(seed)

    @precondition(lambda self: self.used)
    @rule(seed=SEEDS)
    def the_store_dies(self, seed: int) -> None:
        """And a new one knows nothing; what was attached is released all the same."""
        self.used = False
        if self.farm is not None:
            self.farm.kill_the_store(seed, self.scripts // 4)
            self.farm.remove_everything()
            self.farm.check()

    @precondition(lambda self: self.used)
    @rule()
    def the_end_of_all_guests(self) -> None:
        """After which nothing is left."""
        self.used = False
        if self.farm is not None:
            self.farm.remove_everything()

    @precondition(lambda self: self.used)
    @rule()
    def all_guests_vanish(self) -> None:
        """And the toolstack calls no script for them."""
        self.used = False
        if self.farm is not None:
            self.farm.collect()

    def teardown(self) -> None:
        """End all guests, and the host."""
        self.stack.close()


def live(kind: str, rounds: int, scripts: int, figures: Figures, steps: int = 8) -> None:
    """Live until there were so many rounds of so many scripts. Raises what was found.

    An example is not run again to make it smaller: the machine's timing would not be the same.
    """
    chosen = {"kind": kind, "rounds": rounds, "scripts": scripts, "figures": figures}
    machine = type("OneLife", (Life,), chosen)
    lives = settings(
        max_examples=rounds + 1,  # each has a round at least
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=lives)
