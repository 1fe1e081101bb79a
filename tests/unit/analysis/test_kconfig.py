from __future__ import annotations

import string
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.conditions.kconfig import ConfigChange, diff_configs, select_costly

SYMBOLS = st.text(string.ascii_uppercase + string.digits + "_", min_size=1).map("CONFIG_".__add__)
VALUES = st.one_of(
    st.sampled_from(["y", "m", "n", "0", "250", "0x1000", '""', '"# CONFIG_A is not set"']),
    st.text(st.characters(exclude_characters="\r\n")).map(lambda text: f'"{text}"'),
)
CONFIGS = st.dictionaries(SYMBOLS, VALUES)


def written(config: dict[str, str]) -> str:
    """Format a configuration as Kconfig writes it."""
    return "#\n# Automatically generated file; DO NOT EDIT.\n#\n" + "".join(
        f"# {symbol} is not set\n" if value == "n" else f"{symbol}={value}\n"
        for symbol, value in config.items()
    )


@given(CONFIGS, CONFIGS)
def test_config_diff_is_what_differs(old: dict[str, str], new: dict[str, str]) -> None:
    changes = diff_configs(written(old), written(new))
    assert {c.symbol: (c.old, c.new) for c in changes} == {
        symbol: pair
        for symbol in old | new
        if len({*(pair := (old.get(symbol, "n"), new.get(symbol, "n")))}) > 1
    }
    assert [c.symbol for c in changes] == sorted({c.symbol for c in changes})
    back = diff_configs(written(new), written(old))
    assert back == tuple(ConfigChange(c.symbol, c.new, c.old) for c in changes)


@given(CONFIGS, st.randoms())
def test_order_and_line_ends_are_no_difference(config: dict[str, str], random: Random) -> None:
    lines = written(config).split("\n")
    random.shuffle(lines)
    assert diff_configs(written(config), "\r\n".join(lines)) == ()


@given(CONFIGS)
def test_not_set_and_absent_are_the_same(config: dict[str, str]) -> None:
    known = {symbol: value for symbol, value in config.items() if value != "n"}
    assert diff_configs(written(config), written(known)) == ()


@given(st.text(), st.text())
def test_any_text_is_read(old: str, new: str) -> None:
    assert all(c.old != c.new for c in diff_configs(old, new))


def test_last_line_of_a_symbol_holds() -> None:
    assert diff_configs("CONFIG_A=y\n# CONFIG_A is not set\n", "") == ()
    assert diff_configs("# CONFIG_A is not set\nCONFIG_A=m", "CONFIG_A=y\nCONFIG_A=m") == ()


@pytest.mark.parametrize(
    ("symbol", "toolchain"),
    [("CC_VERSION_TEXT", True), ("GCC_VERSION", True), ("RUSTC_LLVM_MAJOR_VERSION", True),
     ("BINDGEN_VERSION_TEXT", True), ("LOCALVERSION", False), ("MODVERSIONS", False),
     ("CRYPTO_FIPS_CUSTOM_VERSION", False), ("CC_IS_GCC", False)],
)  # fmt: skip
def test_versions_of_the_toolchain_are_told_apart(symbol: str, toolchain: bool) -> None:
    assert ConfigChange(f"CONFIG_{symbol}", "1", "2").toolchain == toolchain


def test_what_is_likely_to_matter_is_picked_out() -> None:
    changes = diff_configs(
        "CONFIG_HZ=250\nCONFIG_USB=y\nCONFIG_HAVE_KVM_NMI=y\nCONFIG_VFIO_PCI_DMABUF=n\n",
        "CONFIG_HZ=1000\nCONFIG_VFIO_PCI_DMABUF=y\nCONFIG_PROVE_LOCKING=y\n"
        "CONFIG_ARCH_SUPPORTS_PUD_PFNMAP=y\n",
    )
    assert [change.symbol for change in select_costly(changes)] == [
        "CONFIG_ARCH_SUPPORTS_PUD_PFNMAP", "CONFIG_HZ", "CONFIG_PROVE_LOCKING",
        "CONFIG_VFIO_PCI_DMABUF",
    ]  # fmt: skip
