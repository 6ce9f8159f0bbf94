"""The conformance cases leave no published document and no behaviour out, and the page of results agrees with them."""

from __future__ import annotations

import pytest

from vm.conformance import table
from vm.conformance.cases import CASES
from vm.conformance.fiveg import FIVE_G, FOLDER, MAIN
from vm.conformance.model import DATA, RUNTIME
from vm.conformance.player import program_of, rules_of, target_text

DOCUMENTS = {str(file.relative_to(DATA)) for folder in ("conformance", "behaviours") for file in (DATA / folder).rglob("*.yaml")}


def test_every_document_is_played_or_of_another_api_group():
    played = {file for case in CASES for file in case.files}

    assert played | set(table.foreign_files()) == DOCUMENTS
    assert not played & set(table.foreign_files())


def test_every_published_behaviour_is_played():
    assert {number for case in CASES for number in case.behaviours} == set(range(1, table.BEHAVIOURS + 1))


def test_names_of_cases_are_unique():
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case_tries_both_directions_and_names_rules_that_are_there(case):
    targets = {target_text(rule) for rule in rules_of(case)}
    named = {alert.rule or alert.object for step in case.steps for alert in step.alerts if not alert.posture}

    assert case.status.keys() <= targets
    if case.not_held:
        assert set(case.status.values()) == {"impossible"}
        assert not named
        return
    assert any(not step.alerts and step.end == "ok" for step in case.steps)
    assert any(step.alerts for step in case.steps)
    assert named <= targets


def test_page_agrees_with_the_cases():
    page = table.PAGE.read_text()
    results = table.read_results(page)

    assert page == table.render(results), "run ./dev vm-test tests/vm/conformance --write-table"
    assert results == {(kernel, case.name): table.wanted(case) for kernel in table.KERNELS for case in CASES}


# ---- 5G templates: what each is about, by hand ---------------------------------------------------------------------------
def test_every_template_that_guards_a_file_is_judged_by_hand():
    guarding = {case.name for case in FIVE_G if any(step.alerts and not step.alerts[0].posture for step in case.steps)}

    assert guarding == {f"5g-{name}" for name in MAIN}
    assert len(FIVE_G) == len(list((DATA / FOLDER).glob("*.yaml"))) - len(list(table.foreign_files()))


@pytest.mark.parametrize("name", MAIN)
def test_template_keeps_its_file_for_its_own_program(name):
    path, program, grade = MAIN[name]
    (case,) = [case for case in FIVE_G if case.name == f"5g-{name}"]
    by = {program_of(step): step for step in case.steps if step.run.endswith(f"read {path}") and not step.elsewhere}

    assert by[program].end == "ok"
    assert not by[program].alerts
    assert by[RUNTIME].end == "EPERM"
    assert [(alert.verdict, alert.posture, alert.grade) for alert in by[RUNTIME].alerts] == [("block", False, grade)]


@pytest.mark.parametrize("case", FIVE_G, ids=lambda case: case.name)
def test_template_refuses_programs_that_it_does_not_list(case):
    (step,) = [step for step in case.steps if "unlisted" in step.run and not step.elsewhere]

    assert step.end == "EPERM"
    assert step.alerts[0].posture
