from __future__ import annotations

import io
import json
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from orchestrator.base.errors import BenchError
from orchestrator.machine.runner.agents import (
    AgentProgram,
    StayingAgent,
    run_agent,
    sent_agent,
    sent_program,
    staged_agent,
)
from orchestrator.machine.runner.images import GUESTS
from orchestrator.machine.transport.local import LocalMachine

ECHO = b"import sys; print(__name__, sys.argv[1:], sys.stdin.read())"
STAYS = b"""
import json, os, sys
for line in sys.stdin:
    request = json.loads(line)
    if request["ends"]:
        sys.exit(1)
    print(json.dumps({"pid": os.getpid(), **request}), flush=True)
"""


def archive(source: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("__main__.py", "import beside")
        file.writestr("beside.py", source.replace(b"__name__", b"'__main__'"))
    return content.getvalue()


@pytest.mark.parametrize("program", [ECHO, archive(ECHO)], ids=["source", "archive"])
def test_program_gets_its_arguments_and_its_request(program: bytes) -> None:
    sent = sent_program(program)
    done = run_agent(LocalMachine(), sent, "one", "t w'o", request=b"the\nrequest")
    assert done.stdout == "__main__ ['one', \"t w'o\"] the\nrequest\n"


def test_agent_is_sent_or_is_there_and_does_the_same(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    source = (GUESTS / "agents/symbols.py").read_bytes()
    (tmp_path / "agents/symbols.py").write_bytes(source)
    sent, staged = sent_agent("symbols"), staged_agent(str(tmp_path), "symbols")
    assert (sent.content, staged.content) == (source, b"")
    assert [run_agent(LocalMachine(), program).stdout for program in (sent, staged)] == ["", ""]
    with staying(staged) as agent:
        agent.dialogue(20).say("not an address")
        assert [*agent.dialogue(20)] == []


def test_words_may_come_before_a_program() -> None:
    program = sent_program(b"import os; print(os.environ['A'])").under("env", "A=7")
    assert run_agent(LocalMachine(), program).stdout == "7\n"


def test_error_of_a_program_is_an_error_with_its_last_words() -> None:
    with pytest.raises(BenchError, match="asking it failed with exit code 3") as caught:
        run_agent(LocalMachine(), sent_program(b"import sys; sys.exit(3)"), doing="asking it")
    assert caught.value.reason == "command-failed"


def staying(program: AgentProgram) -> StayingAgent:
    return StayingAgent(LocalMachine, program)


def ask(agent: StayingAgent, **request: Any) -> Any:
    return json.loads(agent.ask({"ends": False, **request}, within=20))


def test_staying_agent_answers_from_one_process() -> None:
    agent = staying(sent_program(STAYS))
    first, second = ask(agent, number=1), ask(agent, number=2)
    agent.close()
    assert (first["number"], second["number"]) == (1, 2)
    assert first["pid"] == second["pid"]
    assert not Path(f"/proc/{first['pid']}").exists()


def test_staying_agent_that_ended_is_sent_again() -> None:
    agent = staying(sent_program(STAYS))
    first = ask(agent)
    with pytest.raises(BenchError) as caught:
        ask(agent, ends=True)
    assert caught.value.reason == "host-ssh-lost"
    assert ask(agent)["pid"] != first["pid"]
    agent.close()


def test_staying_agent_that_is_silent_is_lost_in_time() -> None:
    agent = staying(sent_program(b"import sys; sys.stdin.read()"))
    began = time.monotonic()
    with pytest.raises(BenchError) as caught:
        agent.ask({}, within=0.2)
    assert caught.value.reason == "host-ssh-lost"
    assert time.monotonic() - began < 20
