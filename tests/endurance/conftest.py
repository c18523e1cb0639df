"""Options for the number of cases, and for repeating one."""

import pytest


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="a hundred times as many cases")
    parser.addoption("--case", type=int, help="one case, by the number that a failure named")
    parser.addoption("--first", type=int, default=0, help="number of the first case (default: 0)")


@pytest.fixture
def cases(request):
    """The numbers of the cases of a test, of which it takes its share."""
    option = request.config.getoption  # not known where pytest was not started with this folder
    one, first = option("--case", None), option("--first", 0)
    factor = 100 if option("--long", False) else 1

    def numbers(share):
        return [one] if one is not None else range(first, first + share * factor)

    return numbers
