"""run.sh and test.sh as a user starts them, in a copy of the repository whose requirements are small local wheels."""

import base64
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAIN = """
import os, sys
import tiny
print(tiny.VERSION, os.getcwd(), *sys.argv[1:], sep="|", flush=True)
sys.stdin.read()
sys.exit(int(os.environ.get("STATUS", "0")))
"""
# Interpreters like the real one but for what it says of its version, or for the lack of the venv module.
OLD_PYTHON = """#!/bin/sh
exec "{python}" -c 'import sys; sys.version_info = (3, 8, 18); exec(sys.argv[2])' "$@"
"""
NO_VENV_PYTHON = """#!/bin/sh
[ "$1" != -m ] || {{ echo ensurepip is not available; exit 1; }}
exec "{python}" -c 'import sys; sys.executable = sys.argv.pop(1); exec(sys.argv[2])' "$0" "$@"
"""
RECORDING_PYTHON = """#!/bin/sh
touch "$0.started"
exec "{python}" "$@"
"""


def write_wheel(folder: Path, name: str, version: str, source: str) -> None:
    files = {
        f"{name}.py": source,
        f"{name}-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{name}-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text.encode())}\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{name}-{version}.dist-info/RECORD", record)


def finish(process: subprocess.Popen) -> subprocess.CompletedProcess:
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


class Checkout:
    """A copy of the scripts in `root`, and `run` to start one of them as a user in another folder, with a space."""

    def __init__(self, root: Path, elsewhere: Path) -> None:
        self.root = root
        self.elsewhere = elsewhere
        self.pip_log = elsewhere / "pip.log"

    def start(self, script: str, *arguments: str, shell: tuple[str, ...] = (), **environment: str) -> subprocess.Popen:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_")) and k != "PYTHONPATH"}
        offline = {"PYTHON": sys.executable, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
        variables = inherited | offline | {"PIP_LOG": str(self.pip_log)} | environment
        return subprocess.Popen(
            [*shell, self.root / script, *arguments],
            cwd=self.elsewhere,
            env={name: value for name, value in variables.items() if value},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return finish(self.start(script, *arguments, **environment))

    def pip_runs(self) -> int:
        return self.pip_log.read_text().count("Successfully installed") if self.pip_log.exists() else 0

    def require(self, requirements: str) -> None:
        (self.root / "requirements.txt").write_text(requirements)


def check_out(parent: Path) -> Checkout:
    root = parent / "a checkout"
    elsewhere = parent / "else where"
    root.mkdir()
    elsewhere.mkdir()
    for name in ("run.sh", "run_inference.sh", "test.sh", "setup.sh"):
        shutil.copy(ROOT / name, root)
    for version in ("1.0", "2.0"):
        write_wheel(root, "tiny", version, f"VERSION = {version}\n")
    write_wheel(root, "pytest", "9.0", 'import os, sys\nprint("pytest", os.getcwd(), *sys.argv[1:], sep="|")\n')
    (root / "main.py").write_text(MAIN)
    (root / "requirements.txt").write_text("./tiny-1.0-py3-none-any.whl\n")
    for optional in ("export", "serve", "postgres", "fit", "imagenet"):
        (root / f"requirements-{optional}.txt").write_text("# no wheel of its own here\n")
    (root / "requirements-dev.txt").write_text("-r requirements.txt\n./pytest-9.0-py3-none-any.whl\n")
    return Checkout(root, elsewhere)


@pytest.fixture
def fresh(tmp_path: Path) -> Checkout:
    return check_out(tmp_path)


@pytest.fixture(scope="module")
def first_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, list[subprocess.CompletedProcess]]:
    """Two first runs at the same time."""
    checkout = check_out(tmp_path_factory.mktemp("first"))
    processes = [checkout.start("run.sh", name, "two words", STATUS="3") for name in ("one", "other")]
    return checkout, [finish(process) for process in processes]


@pytest.fixture
def ready(fresh: Checkout, first_runs: tuple[Checkout, list[subprocess.CompletedProcess]]) -> Checkout:
    """A checkout where run.sh has run: with the .venv made by `first_runs`, which may be moved, as links."""
    shutil.copytree(first_runs[0].root / ".venv", fresh.root / ".venv", symlinks=True, copy_function=os.link)
    return fresh


def assert_refused(result: subprocess.CompletedProcess, *, says: str) -> None:
    errors = [line for line in result.stderr.splitlines() if not line.endswith("...")]
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert len(errors) == 1, result.stderr
    assert errors[0].startswith("error: ")
    assert says in errors[0]


def interpreter(folder: Path, name: str, script: str) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(script.format(python=sys.executable))
    path.chmod(0o755)
    return str(path)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def test_first_runs_set_up_once_and_run_main_where_the_user_stands(
    first_runs: tuple[Checkout, list[subprocess.CompletedProcess]],
) -> None:
    checkout, results = first_runs
    for name, result in zip(("one", "other"), results, strict=True):
        assert result.stdout == f"1.0|{checkout.elsewhere}|{name}|two words\n", result.stderr
        assert result.returncode == 3
    assert "Setting up .venv" in results[0].stderr + results[1].stderr
    assert checkout.pip_runs() == 1
    assert [p.name for p in checkout.elsewhere.iterdir()] == ["pip.log"]


def test_later_runs_call_no_pip_and_say_nothing(ready: Checkout) -> None:
    result = ready.run("run.sh", STATUS="130")
    assert (result.returncode, result.stderr) == (130, "")
    assert not ready.pip_log.exists()


def test_later_runs_start_no_interpreter_but_that_of_main(ready: Checkout, tmp_path: Path) -> None:
    on_path = interpreter(tmp_path / "bin", "python3", RECORDING_PYTHON)
    started = Path(f"{on_path}.started")
    environment = {"PYTHON": "", "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    assert ready.run("run.sh", **environment).returncode == 0
    assert not started.exists()
    ready.require("./tiny-2.0-py3-none-any.whl\n")
    assert ready.run("run.sh", **environment).returncode == 0
    assert started.exists()


def test_test_sh_adds_its_requirements_to_those_of_run_sh(ready: Checkout) -> None:
    result = ready.run("test.sh", "-k", "two words")
    assert (result.returncode, result.stdout) == (0, f"pytest|{ready.root}|-k|two words\n"), result.stderr
    assert ready.pip_runs() == 1
    assert ready.run("test.sh").stderr == ""
    assert ready.run("run.sh").stderr == ""


def test_run_inference_predicts_with_what_run_sh_set_up(ready: Checkout) -> None:
    result = ready.run("run_inference.sh", "two words.png", "--json", STATUS="1")
    assert (result.returncode, result.stderr) == (1, "")
    assert result.stdout == f"1.0|{ready.elsewhere}|predict|two words.png|--json\n"
    assert not ready.pip_log.exists()


def test_changed_requirements_are_installed(ready: Checkout) -> None:
    ready.require("./tiny-2.0-py3-none-any.whl\n")
    assert ready.run("run.sh").stdout.startswith("2.0|")
    assert ready.run("run.sh").stderr == ""


WITHOUT_INDEX = {"PIP_NO_INDEX": "", "UV_NO_INDEX": "1"}  # pip without one makes set_up ask pip


def test_uv_installs(ready: Checkout, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").symlink_to(Path(sys.prefix) / "bin" / "uv")
    ready.require("./tiny-2.0-py3-none-any.whl\n")
    (ready.root.parent / "uv.toml").write_text(f'[pip]\ntarget = "{tmp_path / "elsewhere"}"\n')  # of another project
    result = ready.run("run.sh", **WITHOUT_INDEX, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert result.stdout.startswith("2.0|"), result.stderr
    assert "tiny==2.0" in (ready.root / ".venv.log").read_text()
    assert ready.pip_runs() == 0
    assert ready.run("run.sh").stderr == ""


def test_pip_installs_where_uv_fails(ready: Checkout, tmp_path: Path) -> None:
    interpreter(tmp_path / "bin", "uv", "#!/bin/sh\necho error: no network\nexit 2\n")
    ready.require("./tiny-2.0-py3-none-any.whl\n")
    result = ready.run("run.sh", **WITHOUT_INDEX, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert result.stdout.startswith("2.0|"), result.stderr
    assert "error: no network" in (ready.root / ".venv.log").read_text()
    assert ready.pip_runs() == 1


@pytest.mark.slow
def test_pip_installs_where_it_has_an_index_of_its_own(ready: Checkout, tmp_path: Path) -> None:
    uv = interpreter(tmp_path / "bin", "uv", RECORDING_PYTHON)
    ready.require("./tiny-2.0-py3-none-any.whl\n")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    result = ready.run("run.sh", PIP_NO_INDEX="", PIP_INDEX_URL="https://mirror.invalid/simple", PATH=path)
    assert result.stdout.startswith("2.0|"), result.stderr
    assert ready.pip_runs() == 1
    assert not Path(f"{uv}.started").exists()


def test_program_that_runs_holds_up_no_set_up(ready: Checkout) -> None:
    ready.require("./tiny-2.0-py3-none-any.whl\n")
    program = ready.start("run.sh")
    assert program.stdout.readline().startswith("2.0|")
    assert ready.run("test.sh").returncode == 0
    assert program.poll() is None
    assert finish(program).returncode == 0


@pytest.mark.slow
def test_killed_set_up_is_started_again(fresh: Checkout) -> None:
    process = fresh.start("run.sh")
    wait_for(fresh.root / ".venv" / "bin" / "python", process)
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    result = fresh.run("run.sh")
    assert (result.returncode, result.stdout) == (0, f"1.0|{fresh.elsewhere}\n"), result.stderr
    assert "Setting up .venv" in result.stderr
    assert fresh.run("run.sh").stderr == ""


@pytest.mark.slow
def test_update_killed_but_for_its_pip_is_started_again_when_that_has_ended(ready: Checkout) -> None:
    leftover = ready.root / ".venv" / "leftover"
    leftover.touch()
    ready.require("./tiny-2.0-py3-none-any.whl\n")
    process = ready.start("run.sh")
    wait_for(ready.root / ".venv" / "wanted" / "requirements.txt", process)
    process.kill()
    finish(process)
    result = ready.run("run.sh")
    assert (result.returncode, result.stdout) == (0, f"2.0|{ready.elsewhere}\n"), result.stderr
    assert not leftover.exists()


def test_interrupted_set_up_says_so(fresh: Checkout) -> None:
    process = fresh.start("run.sh")
    wait_for(fresh.root / ".venv" / "bin" / "python", process)
    os.killpg(process.pid, signal.SIGINT)
    result = finish(process)
    assert (result.returncode, result.stdout) == (130, ""), result.stderr
    assert "Traceback" not in result.stderr
    assert not (fresh.root / ".venv" / "installed").exists()


@pytest.mark.parametrize("shell", [pytest.param("dash", marks=pytest.mark.slow), "bash"])
def test_interrupted_while_uv_is_fetched_starts_no_other_installation(ready: Checkout, shell: str) -> None:
    """pip ends by itself then, so that the shell is not ended by the signal."""
    if not shutil.which(shell):
        pytest.skip(f"no {shell}")
    ready.require("./tiny-2.0-py3-none-any.whl\n")
    with socket.create_server(("127.0.0.1", 0)) as proxy:  # it never answers
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        options = {"PIP_NO_INDEX": "", "HTTPS_PROXY": address, "https_proxy": address, "PATH": "/usr/bin:/bin"}
        process = ready.start("run.sh", shell=(shell,), **options)
        proxy.settimeout(60)
        proxy.accept()
        os.killpg(process.pid, signal.SIGINT)
        result = finish(process)
    assert (result.returncode, result.stdout) == (130, ""), result.stderr
    assert "tiny" not in (ready.root / ".venv.log").read_text()


@pytest.mark.slow
def test_failed_set_up_leaves_nothing(fresh: Checkout) -> None:
    fresh.require("no-such-thing==1.0\n")
    result = fresh.run("run.sh")
    assert_refused(result, says="no-such-thing==1.0")
    assert str(fresh.root / ".venv.log") in result.stderr
    assert "no-such-thing" in (fresh.root / ".venv.log").read_text()
    assert not (fresh.root / ".venv").exists()


def test_failed_update_keeps_what_worked_and_can_be_corrected(ready: Checkout) -> None:
    development = ready.root / "requirements-dev.txt"
    right = development.read_text()
    development.write_text("-r requirements.txt\nno-such-thing==1.0\n")
    assert_refused(ready.run("test.sh"), says="no-such-thing==1.0")
    result = ready.run("run.sh")
    assert (result.returncode, result.stderr) == (0, "")
    development.write_text(right)
    assert ready.run("test.sh").stdout == f"pytest|{ready.root}\n"


@pytest.mark.slow
def test_environment_without_its_interpreter_is_made_anew(ready: Checkout) -> None:
    python = ready.root / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to(ready.root / "removed")
    result = ready.run("run.sh")
    assert (result.returncode, result.stdout) == (0, f"1.0|{ready.elsewhere}\n"), result.stderr


def test_old_python_is_refused(fresh: Checkout, tmp_path: Path) -> None:
    old = interpreter(tmp_path / "old", "python3", OLD_PYTHON)
    assert_refused(fresh.run("run.sh", PYTHON=old), says="Python 3.10 or newer is needed")
    assert not (fresh.root / ".venv").exists()


def test_only_old_python_on_the_path_is_refused(fresh: Checkout, tmp_path: Path) -> None:
    interpreter(tmp_path / "old", "python3", OLD_PYTHON)
    for tool in ("dirname", "cat"):
        (tmp_path / "old" / tool).symlink_to(shutil.which(tool))
    assert_refused(fresh.run("run.sh", PYTHON="", PATH=str(tmp_path / "old")), says="python3 is 3.8")


def test_newer_python_is_found_beside_an_old_one(ready: Checkout, tmp_path: Path) -> None:
    interpreter(tmp_path / "bin", "python3", OLD_PYTHON)
    (tmp_path / "bin" / "python3.10").symlink_to(sys.executable)
    ready.require("./tiny-2.0-py3-none-any.whl\n")
    result = ready.run("run.sh", PYTHON="", PATH=f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert result.stdout.startswith("2.0|"), result.stderr


def test_python_that_is_not_there_is_refused(fresh: Checkout) -> None:
    assert_refused(fresh.run("run.sh", PYTHON="/no/such/python"), says="/no/such/python")


def test_python_without_venv_is_refused(fresh: Checkout, tmp_path: Path) -> None:
    broken = interpreter(tmp_path / "broken", "python3", NO_VENV_PYTHON)
    assert_refused(fresh.run("run.sh", PYTHON=broken), says="python3-venv")
    assert "ensurepip" in (fresh.root / ".venv.log").read_text()
    assert not (fresh.root / ".venv").exists()
