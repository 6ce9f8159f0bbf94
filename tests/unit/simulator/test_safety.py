"""A simulation does nothing to a master that has real nodes, unless told so; and spreads over enough processes."""

import pytest

from garrison.cli.simulate import leftovers, strangers
from garrison.common.errors import ConfigError
from garrison.minion.simulator import make_keys
from garrison.minion.simulator.fleet import processes_for


def row(name: str, version: str = "simulated", state: str = "offline") -> dict[str, str]:
    return {"name": name, "version": version, "state": state}


def test_master_without_nodes_or_with_simulated_ones_has_no_strangers():
    assert strangers([], "sim-") == []
    assert strangers([row("sim-1"), row("sim-2", version="")], "sim-") == []


def test_node_with_another_name_or_an_agent_is_a_stranger():
    rows = [row("edge-1", version="0.1.0"), row("sim-1", version="0.1.0"), row("sim-2"), row("other", version="")]

    assert strangers(rows, "sim-") == ["edge-1", "sim-1", "other"]


def test_retired_nodes_are_nobodys_business():
    assert strangers([row("edge-1", version="0.1.0", state="retired")], "sim-") == []


def test_what_a_killed_run_left_is_found_and_real_nodes_never_are():
    rows = [row("sim-1"), row("sim-2", state="retired"), row("sim-3", version="0.1.0"), row("edge-1")]

    assert leftovers(rows, "sim-") == ["sim-1"]


def test_simulation_that_goes_on_is_not_taken_apart():
    with pytest.raises(ConfigError, match="connected already"):
        leftovers([row("sim-1", state="online")], "sim-")


def test_keys_and_names_are_all_different():
    keys = make_keys("sim-", 101)

    assert len({key.public for key in keys}) == len({key.name for key in keys}) == 101
    assert (keys[0].name, keys[100].name) == ("sim-000", "sim-100")


def test_secret_keys_do_not_end_up_in_tracebacks():
    (key,) = make_keys("sim-", 1)

    assert key.secret.decode() not in repr(key)


@pytest.mark.parametrize(
    ("nodes", "wanted", "files_max", "processes"),
    [(10, 1, 1_024, 1), (10, 4, 1_024, 4), (3, 4, 1_024, 3), (10_000, 1, 20_000, 3), (1_000, 1, 1_024, 5)],
)
def test_there_are_enough_processes_for_the_descriptors(nodes, wanted, files_max, processes):
    assert processes_for(nodes, wanted=wanted, files_max=files_max) == processes


def test_process_without_descriptors_is_an_error_that_says_what_to_do():
    with pytest.raises(ConfigError, match="too few") as caught:
        processes_for(1, wanted=1, files_max=100)

    assert "ulimit" in caught.value.hint
