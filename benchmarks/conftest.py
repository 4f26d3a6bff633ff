"""`pytest benchmarks --record` writes the measurements to benchmarks/results; `--record-to` chooses another folder."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import record

# For each operator, the reason why its measurements must not be recorded. A test file is named after its operator.
_incomplete: dict[str, str] = {}
_messages: list[str] = []
_saved: dict[str, int] = {}  # for each operator, the number of groups that are on disk


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record",
        action="store_true",
        help=f"write the measurements as JSON to {record.RESULTS}. Each finished group is saved at once, to a file "
        f"that ends in {record.PARTIAL}. It becomes the record after a file's last test, unless a test failed or was "
        "deselected: an incomplete record never replaces one there",
    )
    parser.addoption(
        "--record-to",
        type=Path,
        metavar="FOLDER",
        help="as --record, to this folder. Here, a run that reached a file's last test replaces the record in any case",
    )
    parser.addoption(
        "--resume",
        action="store_true",
        help="go on with an interrupted run: groups that --record or --record-to saved before, on the same machine "
        "with the same versions, are not measured again",
    )


def _folder(config: pytest.Config) -> Path | None:
    chosen: Path | None = config.getoption("--record-to")
    return chosen or (record.RESULTS if config.getoption("--record") else None)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--resume") and _folder(config) is None:
        raise pytest.UsageError("--resume needs --record or --record-to, which say where the record is")


def pytest_collection_finish(session: pytest.Session) -> None:
    folder = _folder(session.config)
    if folder is None or not session.config.getoption("--resume") or session.config.option.collectonly:
        return
    for operator in dict.fromkeys(_operator(item) for item in session.items):
        message = record.resume(operator, folder)
        _saved[operator] = record.number_of_groups(operator)
        if message:
            _messages.append(message)


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        _incomplete[_operator(item)] = "not all of its tests were run"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _incomplete[Path(report.nodeid.split("::")[0]).stem.removeprefix("test_")] = f"{report.nodeid} failed"


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Save after each finished group, and record a file's measurements after its last test."""
    folder, operator = _folder(item.config), _operator(item)
    if folder is None:
        return
    groups = record.number_of_groups(operator)
    if groups != _saved.get(operator, 0):
        _saved[operator] = groups
        record.write_partial(operator, folder)
        _show(item.config, record.last_group())
    if nextitem is not None and _operator(nextitem) == operator:
        return
    if operator in _incomplete and folder.resolve() == record.RESULTS.resolve():
        kept = record.partial_path_of(operator, folder)
        measured = f"; the measured groups are in {kept}" if kept.exists() else ""
        _messages.append(f"{operator} is not recorded: {_incomplete[operator]}{measured}")
    else:
        _messages.append(f"recorded: {record.write(operator, folder)}")


def _show(config: pytest.Config, line: str) -> None:
    """Write a line to the terminal during a test, whose output pytest would otherwise keep."""
    terminal, capture = (config.pluginmanager.get_plugin(name) for name in ("terminalreporter", "capturemanager"))
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        terminal.write_line(f"\n{line}")  # after the dots of finished tests


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _messages:
        terminalreporter.write_line(line)


def _operator(item: pytest.Item) -> str:
    return item.path.stem.removeprefix("test_")
