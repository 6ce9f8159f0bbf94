"""Commands of the master, as real processes: run at most once, answered as often as asked."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from garrison.common import limits
from garrison.common.errors import LinkError
from garrison.common.frames import Job
from garrison.minion.jobs import JobRunner

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]


def job(number, *argv, **more):
    return Job(job=f"{number:032x}", argv=list(argv), **more)


class Collector:
    def __init__(self):
        self.pieces = []

    async def __call__(self, piece):
        self.pieces.append(piece)

    def text(self, stream=1):
        return b"".join(piece.data for piece in self.pieces if piece.stream == stream).decode()


@pytest.fixture
async def runner(tmp_path):
    made = JobRunner(tmp_path / "jobs")
    yield made
    await made.close()


@pytest.fixture
def out():
    return Collector()


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


async def until(look, what, timeout_s=15.0):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if look():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within {timeout_s} s: {what}")


async def test_output_and_exit_code_come_back_by_stream(runner, out):
    result = await runner.run(job(1, "sh", "-c", "echo to-out; echo to-err >&2; exit 3"), out)

    assert (result.exit_code, result.error, result.outputs) == (3, "", len(out.pieces))
    assert (out.text(1), out.text(2)) == ("to-out\n", "to-err\n")
    assert [piece.n for piece in out.pieces] == list(range(len(out.pieces)))


async def test_standard_input_environment_and_folder_are_as_asked_and_nothing_else_leaks(runner, out, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_AGENT", "x")

    await runner.run(job(1, "sh", "-c", "cat; pwd; env", stdin=b"given\n", cwd=str(tmp_path), env={"GIVEN": "yes"}), out)

    lines = out.text().splitlines()
    assert lines[:2] == ["given", str(tmp_path)]
    assert "GIVEN=yes" in lines
    assert "SECRET_OF_THE_AGENT=x" not in lines


async def test_arguments_are_not_seen_by_a_shell(runner, out):
    await runner.run(job(1, "echo", "$(id); `id` | x > y"), out)

    assert out.text() == "$(id); `id` | x > y\n"


async def test_other_user_gets_his_ids_and_groups_and_not_roots(runner, out):
    await runner.run(job(1, "sh", "-c", "id -u; id -g; id -G; echo $HOME", user="daemon"), out)

    uid, gid, groups, home = out.text().splitlines()
    assert (uid, gid) == ("1", "1")
    assert "0" not in groups.split()
    assert home == "/usr/sbin"


@pytest.mark.parametrize(
    ("argv", "more", "expected"),
    [
        (["/no/such/program"], {}, (127, "/no/such/program: no such file")),
        (["/etc/passwd"], {}, (126, "permission denied")),
        (["true"], {"cwd": "/no/such/folder"}, (127, "/no/such/folder")),
        (["true"], {"user": "no-such-user"}, (125, "no-such-user")),
        (["nul\0inside"], {}, (125, "null byte")),
        (["true"], {"env": {"A=B": "c"}}, (125, "illegal environment")),
    ],
    ids=["no-program", "not-executable", "no-folder", "no-user", "nul", "bad-variable"],
)
async def test_program_that_cannot_start_says_why(runner, out, argv, more, expected):
    result = await runner.run(job(1, *argv, **more), out)

    assert result.exit_code == expected[0]
    assert expected[1] in result.error
    assert out.pieces == []


async def test_time_limit_ends_the_whole_group(runner, out, tmp_path):
    script = f"sleep 1000 & echo $! > {tmp_path}/child; trap '' TERM; wait; sleep 1000"
    result = await runner.run(job(1, "sh", "-c", script, timeout_s=0.5), out)

    assert result.exit_code == -signal.SIGKILL
    assert "longer than 0.5 s" in result.error
    child = int((tmp_path / "child").read_text())
    await until(
        lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text(), "the child is gone"
    )


async def test_cancel_stops_it(runner, out, tmp_path):
    task = asyncio.create_task(runner.run(job(1, "sh", "-c", f"touch {tmp_path}/on; sleep 1000"), out))
    await until((tmp_path / "on").exists, "started")

    runner.cancel(job(1, "x").job)

    result = await task
    assert (result.exit_code, result.error) == (-signal.SIGTERM, "cancelled")


async def test_cancel_that_comes_first_keeps_it_from_starting(runner, out, tmp_path):
    runner.cancel(job(1, "x").job)

    result = await runner.run(job(1, "touch", str(tmp_path / "ran")), out)

    assert "cancelled" in result.error
    assert not (tmp_path / "ran").exists()


async def test_output_over_the_limit_is_counted_and_does_not_block_the_program(runner, out):
    over = 1_000_000
    result = await runner.run(job(1, "head", "-c", str(limits.JOB_OUTPUT_MAX_BYTES + over), "/dev/zero"), out)

    assert (result.exit_code, result.dropped_bytes) == (0, over)
    assert sum(len(piece.data) for piece in out.pieces) == limits.JOB_OUTPUT_MAX_BYTES
    assert max(len(piece.data) for piece in out.pieces) <= limits.JOB_OUTPUT_CHUNK_BYTES


async def test_trickle_of_output_is_gathered(runner, out):
    await runner.run(job(1, "sh", "-c", "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line; done"), out)

    assert out.text().count("line") == 2000
    assert len(out.pieces) < 500


async def test_child_that_keeps_the_pipe_open_does_not_keep_the_answer(runner, out):
    result = await runner.run(job(1, "sh", "-c", "sleep 30 & echo done"), out)

    assert result.exit_code == 0
    assert out.text() == "done\n"


async def test_repeated_id_is_answered_with_output_and_not_run_again(runner, out, tmp_path):
    script = f"echo x >> {tmp_path}/ran; echo hello"
    first = await runner.run(job(1, "sh", "-c", script), Collector())

    second = await runner.run(job(1, "sh", "-c", script), out)
    await runner.close()
    third_out = Collector()
    third = await JobRunner(tmp_path / "jobs").run(job(1, "sh", "-c", script), third_out)

    assert first == second == third
    assert out.text() == third_out.text() == "hello\n"
    assert (tmp_path / "ran").read_text() == "x\n"


async def test_run_goes_on_when_its_follower_is_gone_and_the_next_one_gets_everything(runner, out, tmp_path):
    async def broken(piece):
        raise LinkError("the connection is gone")

    script = f"echo one; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo two"
    with pytest.raises(LinkError):
        await runner.run(job(1, "sh", "-c", script), broken)

    follower = asyncio.create_task(runner.run(job(1, "sh", "-c", script), out))
    await until(lambda: out.text() == "one\n", "what was written before is told again")
    (tmp_path / "go").touch()

    assert (await follower).exit_code == 0
    assert out.text() == "one\ntwo\n"


async def test_cancelled_follower_does_not_stop_the_run(runner, out, tmp_path):
    task = asyncio.create_task(runner.run(job(1, "sh", "-c", f"touch {tmp_path}/on; sleep 0.5; touch {tmp_path}/end"), out))
    await until((tmp_path / "on").exists, "started")

    task.cancel()

    await until((tmp_path / "end").exists, "it ran to its end")


async def test_agent_killed_during_a_run_answers_interrupted_and_never_runs_it_again(out, tmp_path):
    program = textwrap.dedent(f"""
        import asyncio
        from pathlib import Path
        from garrison.common.frames import Job
        from garrison.minion.jobs import JobRunner

        async def main():
            async def out(piece): pass
            script = "echo x >> {tmp_path}/ran; echo started; sleep 20"
            await JobRunner(Path("{tmp_path}/jobs")).run(Job(job="{1:032x}", argv=["sh", "-c", script]), out)

        asyncio.run(main())
    """)
    agent = subprocess.Popen([sys.executable, "-c", program])  # noqa: ASYNC220
    await until((tmp_path / "ran").exists, "it runs")
    agent.kill()
    agent.wait()

    runner = JobRunner(tmp_path / "jobs")
    first = await runner.run(job(1, "sh", "-c", f"echo x >> {tmp_path}/ran"), out)
    second = await runner.run(job(1, "sh", "-c", f"echo x >> {tmp_path}/ran"), out)

    assert "interrupted" in first.error
    assert first == second
    assert (tmp_path / "ran").read_text() == "x\n"


async def test_closing_ends_programs_and_records_them_as_interrupted(out, tmp_path):
    runner = JobRunner(tmp_path / "jobs")
    task = asyncio.create_task(runner.run(job(1, "sh", "-c", f"touch {tmp_path}/on; sleep 1000"), out))
    await until((tmp_path / "on").exists, "started")

    await runner.close()

    assert "interrupted" in (await task).error
    assert "interrupted" in (await JobRunner(tmp_path / "jobs").run(job(1, "true"), out)).error


async def test_journal_that_cannot_be_written_means_not_run(out, tmp_path):
    (tmp_path / "file").write_text("")
    runner = JobRunner(tmp_path / "file" / "jobs")

    result = await runner.run(job(1, "touch", str(tmp_path / "ran")), out)

    assert "journal" in result.error
    assert not (tmp_path / "ran").exists()
    await runner.close()


async def test_more_than_the_limit_wait_and_all_run(runner, tmp_path):
    script = "echo $$"
    results = await asyncio.gather(
        *(runner.run(job(n, "sh", "-c", script), Collector()) for n in range(1, limits.JOBS_RUNNING_MAX * 2 + 1))
    )

    assert [result.exit_code for result in results] == [0] * limits.JOBS_RUNNING_MAX * 2


async def test_files_and_descriptors_do_not_pile_up(runner, out):
    await runner.run(job(1, "echo", "first"), out)
    before = descriptors()

    for number in range(2, 22):
        await runner.run(job(number, "echo", "x"), out)

    assert descriptors() <= before + 2
