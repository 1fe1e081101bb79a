from __future__ import annotations

from orchestrator.kernels.source.buildlog import first_errors


def test_first_error_of_a_build_is_found_with_what_led_to_it() -> None:
    log = (
        "  CC      a.o\n../drivers/vfio/b.c: In function 'pin':\n"
        "../drivers/vfio/b.c:7:2: error: 'x' undeclared\n    7 |  x = 1;\n"
        "      |  ^\n  CC      c.o\n"
        "make[4]: *** [../scripts/Makefile.build:289: drivers/vfio/b.o] Error 1\n"
    )
    shown = first_errors(log).splitlines()
    assert shown[:2] == ["drivers/vfio/b.c: In function 'pin':",
                        "drivers/vfio/b.c:7:2: error: 'x' undeclared"]  # fmt: skip
    assert "  CC      c.o" not in shown
    assert not any(line.startswith("make") for line in shown)
    assert first_errors("ld: a.o: undefined reference to `f'\nmake: *** [x] Error 1\n").startswith(
        "ld: a.o: undefined"
    )
    assert first_errors("nothing that is known\n") == "nothing that is known"


def test_the_first_error_of_a_log_is_shown() -> None:
    log = (
        "make: Entering directory '/usr/src/linux-headers-7.0'\n"
        "  CC [M]  drivers/vfio/a.o\n"
        "/build/tree/drivers/vfio/a.c:6:39: error: 'x' undeclared\n"
        "    6 | x;\n      | ^\nnote\nmore\n"
        "make[5]: *** [a.o] Error 1\n"
    )
    assert first_errors(log).splitlines() == [
        "drivers/vfio/a.c:6:39: error: 'x' undeclared", "    6 | x;", "      | ^", "note", "more",
    ]  # fmt: skip
    undefined = 'ERROR: modpost: "missing" [drivers/vfio/a.ko] undefined!'
    assert first_errors(f"  MODPOST Module.symvers\n{undefined}\n") == undefined
    assert first_errors("strange\n") == "strange"
