from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.conditions.conditions import Conditions, compare_conditions
from orchestrator.analysis.conditions.kconfig import ConfigChange
from orchestrator.analysis.conditions.variable import Variable, find_variable, variable_json
from tests.unit.manifests import plan_of

HUGE = "vfio_iommu_type1.disable_hugepages"
THP = "/sys/kernel/mm/transparent_hugepage/enabled"
KERNEL = {"release": "7.3.4", "source": "deb:linux@trixie", "digest": "d1", "provenance": {}}
OTHER = KERNEL | {"release": "6.12", "digest": "d2"}
COMMIT = "abc123def4567890"
TREE: dict[str, Any] = {
    "from": "tree:linux",
    "source": {"kind": "git", "path": "/src/linux", "commit": COMMIT, "describe": "v7.3",
               "tree": "77"},
    "series": [], "config": {"sha256": "c1" * 32, "asked": []}, "compiler": "gcc 14.2.0",
}  # fmt: skip
FIX = [
    {"subject": f"vfio: part {n}", "origin": "/mail/fix.mbox", "digest": f"s{n}"} for n in (1, 2)
]
NONE = Conditions({"accel": "tcg"}, (), (), None)


def find(
    old: dict[str, Any], new: dict[str, Any], seen: Conditions | None = NONE,
    baseline: dict[str, Any] | None = None, candidate: dict[str, Any] | None = None,
) -> Variable:  # fmt: skip
    settings = {"baseline": baseline or {}, "candidate": candidate or {}}
    kernels = {"baseline": old, "candidate": new}
    return find_variable(plan_of(kernels=kernels, arm_settings=settings), seen)


def apart(variable: Variable) -> list[tuple[str, str, str]]:
    return [(d.what, d.baseline, d.candidate) for d in variable.differs]


def built(digest: str = "d2", **changes: Any) -> dict[str, Any]:
    release = f"7.3.0-{digest}"
    return KERNEL | {"release": release, "digest": digest, "provenance": TREE | changes}


# kernels -------------------------------------------------------------------------------------


def test_kernel_against_itself_differs_in_nothing() -> None:
    variable = find(KERNEL, KERNEL | {"source": "deb:linux=7.3.4-1"})
    assert (variable.differs, variable.same) == ((), ("same kernel 7.3.4",))


def test_plan_without_settings_is_understood() -> None:
    kernels = {"baseline": KERNEL, "candidate": KERNEL | {"digest": "d2", "source": "dir:b"}}
    [kernel, _] = apart(find_variable(plan_of(kernels=kernels), None))
    assert kernel == ("kernel 7.3.4", "deb:linux@trixie", "dir:b")


@pytest.mark.parametrize(
    ("config", "beside", "same"),
    [
        (None, ["configuration (not recorded)"], ()),
        ((), [], ("same configuration",)),
        ((ConfigChange("CONFIG_A", "n", "y"),) * 3, ["configuration (3 symbols)"], ()),
    ],
)
def test_kernels_that_came_built_differ_by_release_and_configuration(
    config: tuple[ConfigChange, ...] | None, beside: list[str], same: tuple[str, ...]
) -> None:
    variable = find(OTHER, KERNEL, Conditions({}, (), (), config))
    assert apart(variable) == [("kernel", "6.12", "7.3.4"), *[(text, "", "") for text in beside]]
    assert variable.same == same


def test_kernels_of_one_release_differ_by_where_they_are_from() -> None:
    variable = find(KERNEL, KERNEL | {"digest": "d2", "source": "dir:rebuilt"})
    assert apart(variable)[0] == ("kernel 7.3.4", "deb:linux@trixie", "dir:rebuilt")


def test_series_alone_is_what_differs() -> None:
    variable = find(built("d1"), built(series=FIX))
    assert apart(variable) == [
        ("the series fix.mbox (2 patches: vfio: part 1; vfio: part 2)", "without", "with")
    ]
    assert variable.same == (
        "same source v7.3 (abc123def456)", "same configuration", "same compiler"
    )  # fmt: skip
    assert apart(find(built(series=FIX[:1]), built("d1"))) == [
        ("the series fix.mbox (1 patch: vfio: part 1)", "with", "without")
    ]


def test_two_series_are_both_said_and_one_is_not() -> None:
    other = [{"subject": "x", "origin": "v7.3..topic", "digest": "s3"}]
    [(name, before, after)] = apart(find(built(series=FIX), built("d1", series=[*FIX, *other])))
    assert name == "series"
    assert all(part in before for part in ("fix.mbox", "vfio: part 1", "vfio: part 2"))
    assert after.startswith(before)
    assert "v7.3..topic" in after.removeprefix(before)
    same = find(built(series=FIX), built("d1", series=FIX, compiler="gcc 15")).same
    assert any(before in line for line in same)


def test_everything_else_that_differs_is_another_thing() -> None:
    source = TREE["source"] | {"commit": "ffff", "tree": "78", "describe": "v7.4"}
    config = {"sha256": "c2" * 32, "asked": ["CONFIG_A=y", "CONFIG_B=n"]}
    new = built("d1", source=source, series=FIX, config=config, compiler="gcc 15")
    assert [name for name, *_ in apart(find(built(), new))] == [
        "source", "the series fix.mbox (2 patches: vfio: part 1; vfio: part 2)", "configuration",
        "compiler",
    ]  # fmt: skip
    shown = {name: values for name, *values in apart(find(built(), new))}
    assert shown["source"] == ["v7.3 (abc123def456)", "v7.4 (ffff)"]
    assert shown["configuration"] == ["as it is", "CONFIG_A=y, CONFIG_B=n"]
    assert shown["compiler"] == ["gcc 14.2.0", "gcc 15"]


def test_configurations_that_nobody_asked_to_differ_are_told_by_their_hashes() -> None:
    new = built("d1", config={"sha256": "c2" * 32, "asked": []})
    assert apart(find(built(), new)) == [("configuration", "c1" * 6, "c2" * 6)]


def test_source_is_the_same_wherever_it_is() -> None:
    moved = TREE["source"] | {"path": "/elsewhere", "describe": "v7.3-0-gabc"}
    variable = find(built(), built("d1", source=moved))
    assert variable.differs == ()
    assert variable.same


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ({"kind": "tarball", "path": "/x/linux-7.3.tar.xz", "sha256": "12" * 32},
         "linux-7.3.tar.xz (121212121212)"),
        ({"kind": "package", "name": "linux-source-7.3", "sha256": "34" * 32},
         "linux-source-7.3 (343434343434)"),
        ({"kind": "folder", "path": "/src/linux"}, "linux"),
    ],
)  # fmt: skip
def test_source_is_said_by_what_it_is(source: dict[str, str], shown: str) -> None:
    [(name, before, after)] = apart(find(built(), built("d1", source=source)))
    assert (name, before, after) == ("source", "v7.3 (abc123def456)", shown)


PLAIN = KERNEL | {"provenance": {"from": "deb:linux@trixie", "version": "7.3.4-1"}}


def module(stock: str, rebuilt: str, **more: Any) -> dict[str, Any]:
    path = "drivers/vfio/vfio_iommu_type1"
    modules = {path: {"stock": {"srcversion": stock}, "new": {"srcversion": rebuilt}}}
    return KERNEL | {"digest": "d2", "provenance": {
        "package": {"name": "linux", "version": "7.3.4-1"}, "series": [], "modules": modules,
        **more,
    }}  # fmt: skip


def test_module_that_is_rebuilt_is_what_differs() -> None:
    variable = find(PLAIN, module("B67E", "AAAA", series=FIX[:1]))
    assert apart(variable) == [
        ("the series fix.mbox (1 patch: vfio: part 1)", "without", "with"),
        ("module vfio_iommu_type1", "B67E (the package's)",
         "AAAA (rebuilt, so unsigned and out of tree)"),
    ]  # fmt: skip
    assert variable.same == ("same package of 7.3.4",)


def test_two_rebuilt_modules_are_told_apart() -> None:
    # a bundle's own facts include the source of the package
    more = {"source": {"package": {"name": "linux-source-7.3"}}, "compiler": "gcc 14.2.0"}
    old, new = module("B67E", "AAAA", **more), module("B67E", "BBBB", **more)
    new["digest"] = "d3"
    variable = find(old, new)
    assert apart(variable) == [("module vfio_iommu_type1", "AAAA", "BBBB")]
    assert variable.same == ("same package of 7.3.4", "same compiler")


def test_module_that_is_only_built_again_is_no_other_source() -> None:
    assert apart(find(PLAIN, module("B67E", "B67E"))) == [
        (
            "module vfio_iommu_type1",
            "B67E (the package's)",
            "B67E (rebuilt, so unsigned and out of tree)",
        )
    ]


def test_modules_of_other_packages_differ_in_their_packages_too() -> None:
    new = module("B67E", "AAAA", package={"version": "7.3.5-1"})
    assert apart(find(PLAIN, new))[0] == ("package", "7.3.4 (7.3.4-1)", "7.3.4 (7.3.5-1)")


# settings ------------------------------------------------------------------------------------


def test_settings_are_told_as_they_were_read_back() -> None:
    room = f"host.arm.parameters.{HUGE}"
    base = {"host.cmdline": "quiet", "host.kernel.digest": "d1", "accel": "tcg"}
    seen = compare_conditions({
        "baseline": [base | {room: "N", f"host.arm.sysfs.{THP}": "always"}],
        "candidate": [base | {room: "Y", f"host.arm.sysfs.{THP}": "never"}],
    })  # fmt: skip
    variable = find(KERNEL, KERNEL, seen, {}, {"parameters": {HUGE: "1"}, "sysfs": {THP: "never"}})
    assert apart(variable) == [(HUGE, "N", "Y"), (THP, "always", "never")]
    assert {d.kind for d in variable.differs} == {"setting"}
    assert (variable.same, variable.checked, variable.unplanned) == (("same kernel 7.3.4",), 3, ())


def test_setting_that_was_so_anyway_does_not_differ() -> None:
    room = f"host.arm.parameters.{HUGE}"
    seen = compare_conditions({arm: [{room: "Y"}] for arm in ("baseline", "candidate")})
    variable = find(KERNEL, KERNEL, seen, {}, {"parameters": {HUGE: "1"}})
    assert variable.differs == ()
    assert variable.same[1] == f"{HUGE}: Y in both, though only the candidate sets it"


def test_settings_are_told_as_asked_where_nothing_was_read_back() -> None:
    variable = find(KERNEL, KERNEL, None, {"sysfs": {THP: "never"}}, {"parameters": {HUGE: "Y"}})
    assert apart(variable) == [(HUGE, "not set", "Y"), (THP, "never", "not set")]
    assert variable.checked is None


def test_words_are_compared_by_what_they_set() -> None:
    variable = find(KERNEL, KERNEL, NONE, {"cmdline": "quiet iommu.strict=0 a=1 a=2"},
                {"cmdline": "a=1 nosmt iommu.strict=1 quiet"})  # fmt: skip
    assert apart(variable) == [
        ("command line", "iommu.strict=0", "iommu.strict=1"),
        ("command line", "a=1 a=2", "a=1"),
        ("command line", "not set", "nosmt"),
    ]
    assert any("quiet" in line.split() for line in variable.same)


def test_order_of_the_words_is_a_difference() -> None:
    variable = find(KERNEL, KERNEL, NONE, {"cmdline": "a  b"}, {"cmdline": "b a"})
    assert apart(variable) == [("order of the command line", "a b", "b a")]
    assert find(KERNEL, KERNEL, NONE, {"cmdline": "a  b"}, {"cmdline": "a b"}).differs == ()


def test_what_is_set_alike_is_said() -> None:
    alike = {"parameters": {HUGE: "Y"}}
    variable = find(KERNEL, KERNEL, NONE, alike, alike)
    assert (variable.differs, variable.same[1]) == ((), f"{HUGE}: Y in both")


def test_what_differs_besides_is_named() -> None:
    trials = {arm: [{"runner.qemu": arm, "runner.cpu": arm, "host.kernel.digest": arm}]
              for arm in ("baseline", "candidate")}  # fmt: skip
    variable = find(KERNEL, OTHER, compare_conditions(trials, allow=["runner.cpu"]))
    assert (variable.unplanned, variable.allowed) == (("runner.qemu",), ("runner.cpu",))


def test_json_has_all_of_it() -> None:
    variable = find(KERNEL, KERNEL, NONE, {}, {"cmdline": "nosmt"})
    assert json.loads(json.dumps(variable_json(variable))) == {
        "differs": [{"kind": "setting", "what": "command line", "baseline": "not set",
                     "candidate": "nosmt"}],
        "same": ["same kernel 7.3.4"], "checked": 1, "unplanned": [], "allowed": [],
    }  # fmt: skip


WORDS = st.lists(st.sampled_from(["a=1", "a=2", "b", "c.d=e"]), max_size=4).map(" ".join)
VALUES = st.dictionaries(st.sampled_from(["m.p", "m.q"]), st.sampled_from(["0", "1"]))
SETTINGS = st.fixed_dictionaries({"cmdline": WORDS, "parameters": VALUES, "sysfs": VALUES})


@given(SETTINGS, SETTINGS)
def test_arms_differ_in_settings_where_they_do(
    first: dict[str, Any], other: dict[str, Any]
) -> None:
    forth = find(KERNEL, KERNEL, None, first, other)
    back = find(KERNEL, KERNEL, None, other, first)
    assert {(w, b, a) for w, a, b in apart(forth)} == {*apart(back)}
    assert find(KERNEL, KERNEL, None, first, first).differs == ()
    alike = first["parameters"] == other["parameters"] and first["sysfs"] == other["sysfs"]
    assert alike or forth.differs
