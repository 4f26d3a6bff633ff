"""`pytest benchmarks --record` writes what was measured into benchmarks/results (or to the folder of `--record-to`)."""

from pathlib import Path

import pytest
import record

# By file of tests, which is named for the operator that it records: why its measurements are not to be kept.
_spoilt: dict[str, str] = {}
_said: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help=f"write what was measured as JSON into {record.RESULTS}")
    parser.addoption("--record-to", type=Path, metavar="FOLDER", help="write it into this folder")


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        _spoilt[_operator(item)] = "not all of its tests were run"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _spoilt[Path(report.nodeid.split("::")[0]).stem.removeprefix("test_")] = f"{report.nodeid} failed"


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """After the last test of a file, so that a run that is stopped keeps what it had finished."""
    config, operator = item.config, _operator(item)
    folder = config.getoption("--record-to") or (record.RESULTS if config.getoption("--record") else None)
    if folder is None or (nextitem is not None and _operator(nextitem) == operator):
        return
    if operator in _spoilt and folder == record.RESULTS:
        _said.append(f"{operator} is not recorded: {_spoilt[operator]}")
    else:
        _said.append(f"recorded: {record.write(operator, folder)}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _said:
        terminalreporter.write_line(line)


def _operator(item: pytest.Item) -> str:
    return item.path.stem.removeprefix("test_")
