"""The list of injected faults fits the code; `make mutants` runs them."""

from __future__ import annotations

from mutants import PROJECT, read_mutants


def test_every_listed_fault_can_be_injected_and_names_tests_that_exist() -> None:
    mutants = read_mutants()
    assert len(mutants) >= 25
    for mutant in mutants:
        assert mutant.old != mutant.new
        assert mutant.tests
        for test in mutant.tests:
            path, _, name = test.partition("[")[0].partition("::")
            text = (PROJECT / path).read_text(encoding="utf-8")
            assert not name or f"def {name}(" in text, test
