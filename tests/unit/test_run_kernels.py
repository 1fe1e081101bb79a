"""A command's kernels: nothing is checked, looked up or built twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.cache import Cache
from orchestrator.base.errors import ScenarioError
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.run import kernels as run_kernels
from orchestrator.run.kernels import RunKernels
from orchestrator.scenario.kernel_forms import (
    DebKernel,
    DirKernel,
    Kernel,
    ModuleKernel,
    SourceKernel,
    TreeKernel,
)

FORMS: tuple[Kernel, ...] = (
    DebKernel(deb="linux-image-cloud-amd64", suite="trixie"),
    DebKernel(deb="linux-image-cloud-amd64", suite="trixie-backports"),
    ModuleKernel(deb="linux-image-cloud-amd64", suite="trixie", series=("a.patch",)),
    DirKernel(dir=Path("/k")),
    TreeKernel(tree=Path("/k"), config=("CONFIG_A=y",)),
    TreeKernel(tree=Path("/k"), ref="v7.3"),
    SourceKernel(source="linux-source", suite="trixie"),
)
BUILT_WHOLE = (TreeKernel, SourceKernel)
TAGS = ("base", "cand", "gues")
CALLS = st.sampled_from(("check", "describe", *TAGS))


@given(st.lists(st.tuples(st.sampled_from(FORMS), CALLS), max_size=40))
def test_each_kernel_is_checked_described_and_built_once(calls: list[tuple[Kernel, str]]) -> None:
    done: Counter[tuple[Kernel, str]] = Counter()

    def look(kernel: Kernel, _cache: object) -> str:
        done[kernel, "describe"] += 1
        return str(kernel)

    def build(kernel: Kernel, _cache: object, _progress: object, tag: str) -> Any:
        done[kernel, tag if isinstance(kernel, BUILT_WHOLE) else "any tag"] += 1
        return (str(kernel), tag)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_kernels, "check_kernel", lambda k, _: done.update([(k, "check")]))
        patch.setattr(run_kernels, "describe_kernel", look)
        patch.setattr(run_kernels, "materialise_kernel", build)
        kernels = RunKernels(Cache(Path("/nowhere")))
        for kernel, call in calls:
            equal = type(kernel).model_validate(kernel.model_dump())  # another object
            if call == "check":
                kernels.check(equal)
            elif call == "describe":
                assert kernels.describe(equal) == str(kernel)
            else:
                bundle: Any = kernels.materialise(equal, Progress(), call)
                assert bundle[0] == str(kernel)
                assert bundle[1] == call or not isinstance(kernel, BUILT_WHOLE)
    assert {*done.values()} <= {1}
    assert {kernel for kernel, _ in calls} == {kernel for kernel, _ in done}


def test_what_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers: list[ScenarioError | str] = [
        ScenarioError("the mirror lacks it", reason=Reason.NO_SUCH_PACKAGE), "7.3-1",
    ]  # fmt: skip

    def look(kernel: Kernel, cache: Cache) -> str:
        answer = answers.pop(0)
        if isinstance(answer, ScenarioError):
            raise answer
        return answer

    monkeypatch.setattr(run_kernels, "describe_kernel", look)
    kernels = RunKernels(Cache(tmp_path))
    with pytest.raises(ScenarioError):
        kernels.describe(FORMS[0])
    assert [kernels.describe(FORMS[0]) for _ in range(2)] == ["7.3-1"] * 2
    assert answers == []
