from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import BarometerError, ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.kernels.source.buildroot import KERNEL_FILES
from orchestrator.kernels.source.config import parse_config, read_config
from tests.unit.stable import numbers_in

OWN = ("required", "host", "wanted")
WHOLE = (
    "#\n# Automatically generated file; DO NOT EDIT.\n# Linux/x86 7.3.4 Kernel Configuration\n#\n"
    + 'CONFIG_VFIO=m\n# CONFIG_KVM is not set\nCONFIG_SYSTEM_TRUSTED_KEYS="debian/certs.pem"\n'
    + "".join(f"CONFIG_OTHER_{i}=y\n" for i in range(300))
)


@pytest.mark.parametrize("name", OWN)
def test_every_option_of_our_own_is_there_once_and_has_a_reason(name: str) -> None:
    lines = (KERNEL_FILES / f"{name}.config").read_text().splitlines()
    options = [line for line in lines if line.startswith("CONFIG_")]
    symbols = parse_config("\n".join(lines))
    assert len(options) == len(symbols) > 5
    for line in lines:
        assert not line or line.startswith(("# ", "CONFIG_")), line
    for option in options:
        assert len(option.partition(" # ")[2].strip()) > 2, option


def test_no_option_of_ours_is_in_two_files() -> None:
    names = [
        n for name in OWN for n in parse_config((KERNEL_FILES / f"{name}.config").read_text())
    ]
    assert sorted(names) == sorted({*names})


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("CONFIG_KSM=y", "y"), ("CONFIG_KSM=n", "n"), ("# CONFIG_KSM is not set", "n"),
        ("CONFIG_KSM=0x40", "0x40"), ("CONFIG_KSM=1f", "1f"), ("CONFIG_KSM=0X1F", "0X1F"),
        ('CONFIG_KSM="a b"', '"a b"'), ("CONFIG_KSM=-1", "-1"),
        ("CONFIG_KSM=y   # because", "y"), (' CONFIG_KSM="# no comment" ', '"# no comment"'),
    ],
)  # fmt: skip
def test_lines_of_a_configuration_are_read(line: str, value: str) -> None:
    assert parse_config(line) == {"KSM": value}


@given(st.text(max_size=80))
def test_any_line_is_read_or_refused_with_its_number(line: str) -> None:
    error = None
    try:
        config = read_config([f"CONFIG_{line}"])
    except BarometerError as exc:
        error = exc
    if error is not None:
        assert error.reason == Reason.CONFIG
        assert numbers_in(error.message)[0] == "1"
    else:
        [name] = [n for n, origin in config.origins.items() if origin == "config"]
        assert f"CONFIG_{name}" in f"CONFIG_{line}"


def test_default_is_our_own_on_top_of_nothing() -> None:
    config = read_config([])
    assert config.target == "allnoconfig"
    text = parse_config(config.text())
    assert text["VFIO_IOMMU_TYPE1"] == "y"
    assert text["MODULE_SIG"] == "n"
    assert text["IOMMUFD"] == "y"


def test_what_the_scenario_asks_for_wins_over_ours(tmp_path: Path) -> None:
    (tmp_path / "more").write_text("# a comment\n\nCONFIG_KSM=y\nCONFIG_IOMMUFD=n\n")
    config = read_config([str(tmp_path / "more"), "CONFIG_HZ_250=n", "CONFIG_HZ_1000=y"])
    text = parse_config(config.text())
    assert (text["KSM"], text["IOMMUFD"], text["HZ_250"], text["HZ_1000"]) == ("y", "n", "n", "y")
    assert config.origins["KSM"] == "more"
    assert config.origins["HZ_1000"] == "config"
    assert config.digest != read_config([]).digest


def test_whole_configuration_takes_the_place_of_ours_but_for_what_is_needed(
    tmp_path: Path,
) -> None:
    (tmp_path / "theirs").write_text(WHOLE)
    config = read_config([str(tmp_path / "theirs"), "CONFIG_KSM=y"])
    assert config.target == "olddefconfig"
    text = parse_config(config.text())
    assert text["VFIO"] == "m"  # a module stays a module
    assert text["KVM"] == "y"  # was off, but is needed
    assert text["SYSTEM_TRUSTED_KEYS"] == '""'  # the named certificates are not here
    assert text["KSM"] == "y"
    assert "HZ_250" not in text
    with pytest.raises(ScenarioError, match="theirs") as caught:
        read_config([str(tmp_path / "theirs"), str(tmp_path / "theirs")])
    assert caught.value.reason == Reason.CONFIG


def test_every_option_that_did_not_come_out_is_named(tmp_path: Path) -> None:
    config = read_config(["CONFIG_KSM=y", "CONFIG_NR_CPUS=8"])
    good = config.text() + "CONFIG_TRANSPARENT_HUGEPAGE=y\n"
    config.check(good, "7.3")
    bad = re.sub(r"CONFIG_(KSM|KVM|HZ_250|IOMMUFD)=y\n", "", good)
    with pytest.raises(ScenarioError) as refused:
        config.check(bad.replace("NR_CPUS=8", "NR_CPUS=64"), "v7.3 (0123456789ab)")
    error = refused.value
    assert error.reason == "config"
    assert "v7.3 (0123456789ab)" in error.message
    assert error.evidence.splitlines() == [
        "CONFIG_KSM: asked y (config), got n",
        "CONFIG_NR_CPUS: asked 8 (config), got 64",
        "CONFIG_HZ_250: asked y (barometer's host.config), got n",
        "CONFIG_KVM: y needed for a host, got n",
    ]


@pytest.mark.parametrize(
    ("content", "number"),
    [
        ("CONFIG_KSM\n", "1"),
        ("\n\nKSM=y\n", "3"),
        ("CONFIG_KSM=maybe\n", "1"),
    ],
)
def test_wrong_line_of_a_file_is_named(tmp_path: Path, content: str, number: str) -> None:
    (tmp_path / "my.config").write_text(content)
    with pytest.raises(ScenarioError) as refused:
        read_config([str(tmp_path / "my.config")])
    assert refused.value.reason == Reason.CONFIG
    assert "my.config" in refused.value.message
    assert content.strip() in refused.value.message
    assert number in numbers_in(refused.value.message)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"nowhere\.config") as caught:
        read_config([str(tmp_path / "nowhere.config")])
    assert caught.value.reason == Reason.CONFIG


LINES = st.lists(
    st.sampled_from([
        "CONFIG_A=y", "CONFIG_A=m", "CONFIG_B=n", "# CONFIG_A is not set", "CONFIG_B=0x1F",
        "# CONFIG_B is not set # later", "# CONFIG_A is wanted", "#CONFIG_A=y", "##", "# A=y",
        "#  CONFIG_A is not set", "#CONFIG_A is not set", "", 'CONFIG_C="x # y"', "CONFIG_B=12",
        "# CONFIG_A is not settled", "\t", "CONFIG_A=y # why", 'CONFIG_C="a\\"b"',
        "# end of a menu",
    ]),
    max_size=12,
)  # fmt: skip


def kconfig_reads(lines: list[str]) -> dict[str, str]:
    """Read lines as conf_read_simple() and conf_set_sym_val() of scripts/kconfig/confdata.c do, up
    to Linux 6.8, which took "is not set" for the beginning of the rest of a line. A number or a
    text stays as it is. ci/bench/fragments.py compares with kconfig itself."""
    symbols: dict[str, str] = {}
    for line in lines:
        if line.startswith("# CONFIG_"):
            name, _, rest = line[9:].partition(" ")
            if rest.startswith("is not set") and symbols.get(name, "n") in "ymn":
                symbols[name] = "n"
        elif line.startswith("CONFIG_"):
            name, _, value = line[7:].partition("=")
            if value[0] == '"':
                end = re.match(r'"(?:[^"\\]|\\.)*"', value)
                assert end is not None
                symbols[name] = end[0]
            elif value != "n" or symbols.get(name, "n") in "ymn":
                symbols[name] = value[0] if value[0] in "ymn" else value
    return symbols


@given(LINES, st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_fragments_are_read_as_kconfig_reads_them(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], mark: bool, end: str
) -> None:
    path = tmp_path_factory.mktemp("config") / "fragment"
    text = "".join(f"{line}{end}" for line in lines)
    path.write_bytes(("\ufeff" * mark + text).encode())
    expected = kconfig_reads([line for line in lines if "settled" not in line])
    config = read_config([str(path)])
    own = {name for name, origin in config.origins.items() if origin == "fragment"}
    assert {name: config.requested[name] for name in own} == expected


def test_number_that_is_not_set_may_come_out_with_any_value(tmp_path: Path) -> None:
    (tmp_path / "fragment").write_text("# CONFIG_A is not set\n")
    config = read_config([str(tmp_path / "fragment")])
    own = "\n".join(f"CONFIG_{n}={v}" for n, v in {**config.required, **config.requested}.items())
    for value in ("0", "0x40", '"text"'):
        config.check(f"{own}\nCONFIG_A={value}\n", "7.3")
    for value in ("y", "m"):
        with pytest.raises(ScenarioError, match="lacks requested options"):
            config.check(f"{own}\nCONFIG_A={value}\n", "7.3")


def test_comment_that_stands_alone_in_the_scenario_asks_for_nothing_and_is_refused() -> None:
    with pytest.raises(ScenarioError):
        read_config(["# CONFIG_KSM is wanted"])


def test_whole_configuration_of_a_distribution_is_no_fragment(tmp_path: Path) -> None:
    path = tmp_path / "kernel-x86_64-fedora.config"
    path.write_text("# x86_64\n" + "".join(f"CONFIG_A{n}=m\n" for n in range(1500)))
    config = read_config([str(path)])
    assert config.target == "olddefconfig"
    assert not config.requested


def test_a_thousand_errors_are_capped_and_the_scenarios_own_come_first(tmp_path: Path) -> None:
    (tmp_path / "many").write_text("".join(f"CONFIG_B{n}=y\n" for n in range(900)))
    config = read_config([str(tmp_path / "many"), "CONFIG_KSM=y"])
    with pytest.raises(ScenarioError) as caught:
        config.check("", "7.3")
    lines = caught.value.evidence.splitlines()
    assert lines[0].startswith("CONFIG_KSM: asked y")
    assert len(lines) == 21
    assert numbers_in(lines[-1])[0].isdecimal()
