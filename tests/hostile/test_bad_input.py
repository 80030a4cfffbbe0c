"""Bad input of every kind is refused in an error and a hint, or changes no result: a part of the battery.

The whole, over a thousand cases: python -m benchmarks.hostile.battery
"""

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from tests.hostile.battery import GROUPS, excepted, shares
from tests.hostile.case import Runner
from tests.hostile.corpus import make_corpus
from tests.hostile.server import Server

EXAMPLES = shares(150)
# The same cases each time: what other seeds find belongs to the battery, not to a change that is tested.
SETTINGS = settings(phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    work = tmp_path_factory.mktemp("hostile")
    with Server() as server:
        make_corpus(work, server)
        yield Runner(server, work)


@pytest.mark.parametrize("group", GROUPS)
def test_bad_input_is_refused_or_changes_nothing(group: str, runner: Runner) -> None:
    @settings(SETTINGS, max_examples=EXAMPLES[group])
    @given(seed=st.integers(0, 2**32 - 1))
    def check(seed: int) -> None:
        random = Random(seed)
        report = runner.run(random.choice(GROUPS[group])(random))
        note(f"dcclip {' '.join(report.case.arguments)[:500]}\n{report.stderr[-2000:]}")
        assert report.verdict.is_good or excepted(report), f"{report.case.name}: {report.verdict}: {report.why}"

    check()
