"""`pytest benchmarks --record` writes the measurements to benchmarks/results; `--record-to` chooses another folder."""

from pathlib import Path

import pytest
import record

# For each operator, the reason why its measurements must not be recorded. A test file is named after its operator.
_incomplete: dict[str, str] = {}
_messages: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help=f"write the measurements as JSON to {record.RESULTS}")
    parser.addoption("--record-to", type=Path, metavar="FOLDER", help="write the measurements to this folder")


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        _incomplete[_operator(item)] = "not all of its tests were run"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _incomplete[Path(report.nodeid.split("::")[0]).stem.removeprefix("test_")] = f"{report.nodeid} failed"


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Record a file's measurements after its last test, so that an interrupted run keeps the finished files."""
    config, operator = item.config, _operator(item)
    folder = config.getoption("--record-to") or (record.RESULTS if config.getoption("--record") else None)
    if folder is None or (nextitem is not None and _operator(nextitem) == operator):
        return
    if operator in _incomplete and folder == record.RESULTS:
        _messages.append(f"{operator} is not recorded: {_incomplete[operator]}")
    else:
        _messages.append(f"recorded: {record.write(operator, folder)}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _messages:
        terminalreporter.write_line(line)


def _operator(item: pytest.Item) -> str:
    return item.path.stem.removeprefix("test_")
