"""Options for the number of cases, for repeating one, and the table of what was tried."""

import pytest


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="a hundred times as many cases")
    parser.addoption("--case", type=int, help="one case, by the number that a failure named")
    parser.addoption("--first", type=int, default=0, help="number of the first case (default: 0)")


@pytest.fixture
def long(request):
    """Whether as much as possible is asked for. Options are not known where pytest was not started with this folder."""
    return request.config.getoption("--long", False)


@pytest.fixture
def tried(record_property):
    """Record how often something was tried and what happened, for the table."""
    return lambda often, happened: record_property("tried", (often, happened))


@pytest.fixture
def cases(request, long, tried):
    """The numbers of the cases of a test, of which it takes its share."""
    option = request.config.getoption
    one, first = option("--case", None), option("--first", 0)
    factor = 100 if long else 1

    def numbers(share):
        chosen = [one] if one is not None else range(first, first + share * factor)
        tried(f"{len(chosen):,} random cases", "all hold")
        return chosen

    return numbers


def pytest_terminal_summary(terminalreporter):
    """The table of examples/guides/reliability.md."""
    lines = []
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for _, (often, happened) in (pair for pair in report.user_properties if pair[0] == "tried"):
                name = report.location[2].removeprefix("test_").replace("_", " ")
                lines.append(f"| {name} | {often} | {happened if outcome == 'passed' else 'FAILED'} |")
    if lines:
        terminalreporter.section("what was tried")
        terminalreporter.write_line("\n".join(["| what holds | tried | result |", "| --- | --- | --- |", *lines]))
