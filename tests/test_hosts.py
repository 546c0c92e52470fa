"""Processes that differ in what they train, or with what, do not train."""

import socket

import pytest

from tests import processes
from uniser_jax import hosts
from uniser_jax.errors import listed

AGREE = """
import sys
from uniser_jax import hosts
hosts.join()
import jax
hosts.agree({"config": "same", "code": "same"})
mine = str(jax.process_index())
for facts in ({"config": "same", "code": mine}, {"config": mine, "code": mine}, {"set of photographs": mine}):
    try:
        hosts.agree(facts)
    except ValueError as error:
        sys.stderr.write(f"refused: {error}\\n")
"""


SHARE = """
import pathlib, sys
from uniser_jax import hosts
hosts.join()
import jax
hosts._SECONDS_TO_SEE = 1
root, process = pathlib.Path(sys.argv[1]), str(jax.process_index())
hosts.share(root)
(root / process).mkdir()
try:
    hosts.share(root / process)
except ValueError as error:
    sys.stderr.write(f"refused: {error}\\n")
    hosts.leave(int(process) + 2)
"""

FAIL = """
import sys
import jax
from uniser_jax import hosts, train
def fail(*_):
    hosts.anywhere(False)  # they are connected
    if jax.process_index() == 0:
        raise %s("a disk is lost")
    hosts.anywhere(True)
train.train = fail
sys.exit(train.main(sys.argv[1:]))
"""


def test_every_process_says_what_differs_and_where() -> None:
    results = processes.run([["-c", AGREE]] * 2, devices=1)
    other = f"process 1 on {socket.gethostname()[:64]}"
    for code, error in results:
        assert code == 0, error
        assert [line for line in error.splitlines() if line.startswith("refused")] == [
            f"refused: not all 2 processes start alike: other than most is the code of {other}",
            f"refused: not all 2 processes start alike: other than most is the config of {other}; the code of {other}",
            f"refused: not all 2 processes start alike: other than most is the set of photographs of {other}",
        ]


def test_a_process_with_another_config_does_not_train(tmp_path) -> None:
    command = ["-m", "uniser_jax.train", "--config=configs/tiny.py", f"--workdir={tmp_path}"]
    results = processes.run([command, [*command, "--config.optim.lr=0.5"]], devices=1)
    for code, error in results:
        assert code == 2, error
        lines = [line for line in error.splitlines() if line.startswith("uniser train:")]
        assert len(lines) == 1
        assert "other than most is the config of process 1 on" in lines[0]
        assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_folder_of_its_own_on_each_host_is_no_run_folder(tmp_path) -> None:
    results = processes.run([["-c", SHARE, str(tmp_path)]] * 2, devices=1)
    for process, (_, error) in enumerate(results):
        (line,) = [line for line in error.splitlines() if line.startswith("refused")]
        folder = tmp_path / str(process)
        message = f"--workdir {folder} is not one folder for all: process 1 cannot see what process 0 writes there"
        assert line == f"refused: {message}"
    assert results[0][0] == 2  # at once: the other waits for no one either, but may be ended by the loss of the first
    assert {path.name for path in tmp_path.rglob("*")} == {"0", "1"}


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ("RuntimeError", 1, ["RuntimeError: a disk is lost"]),
        ("OSError", 1, ["uniser train: a disk is lost; what was saved before is kept"]),
        ("ValueError", 2, ["uniser train: a disk is lost"]),
        ("KeyboardInterrupt", 130, []),
    ],
)
def test_a_process_that_fails_alone_ends_at_once_with_its_own_code(tmp_path, error, code, said) -> None:
    command = ["-c", FAIL % error, "--config=configs/tiny.py", f"--workdir={tmp_path}"]
    (failed, lines), (other, _) = processes.run([command] * 2, devices=1, seconds=120)  # jax itself waits for 300
    assert failed == code
    assert [line for line in lines.splitlines() if "a disk is lost" in line] == said
    assert ("Traceback" in lines) == (error == "RuntimeError")
    assert other not in (0, None)


@pytest.mark.parametrize(
    ("digests", "odd"),
    [([b"a"] * 3, []), ([b"a", b"b", b"a"], [1]), ([b"b", b"a", b"a"], [0]), ([b"a", b"b"], [1])],
)
def test_the_odd_ones_are_those_unlike_most(digests, odd) -> None:
    assert hosts._odd(digests) == odd


def test_a_thousand_odd_hosts_fit_a_line() -> None:
    assert listed([f"h{n}" for n in range(1000)]) == "h0, h1, h2, h3, h4 and 995 more"
