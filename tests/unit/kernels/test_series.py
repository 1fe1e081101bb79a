from __future__ import annotations

import base64
import gzip
import os
import quopri
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.base.cache import Cache
from orchestrator.base.errors import BarometerError, BenchError, ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.kernels.series.patch import Patch, series_digest
from orchestrator.kernels.series.series import read_series
from orchestrator.scenario.kernel_forms import TreeKernel, resolve_kernel_paths
from tests.unit.examples import share
from tests.unit.kernels.repositories import commit, git, new_repository, state_of
from tests.unit.stable import numbers_in

A, B = "int a;\n" * 5, "int a;\n" * 5 + "int b;\n"
MESSAGE_ID = "20250218222209.1382449-1-someone@example.org"


def diff(name: str = "a.c", new: str = "int b;") -> str:
    return (
        f"diff --git a/{name} b/{name}\nindex 1111111..2222222 100644\n"
        f"--- a/{name}\n+++ b/{name}\n@@ -1,2 +1,3 @@ int f(void)\n int a;\n+{new}\n int a;\n"
    )


def mail(subject: str, body: str, *headers: str) -> str:
    lines = ["From: A <a@example.org>", "Date: Mon, 6 May 2024 07:08:09 +0000",
             f"Subject: {subject}", *headers]  # fmt: skip
    return "\n".join(lines) + f"\n\nWhy.\n---\n{body}-- \n2.39.5\n"


def mbox(*mails: str) -> str:
    return "".join(f"From git@z Thu Jan  1 00:00:00 1970\n{letter}\n" for letter in mails)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def read(tmp_path: Path, cache: Cache) -> Callable[..., tuple[Patch, ...]]:
    """Return the series in a file with the given content."""

    def reading(content: str | bytes, name: str = "x.patch") -> tuple[Patch, ...]:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_series([str(path)], None, cache)

    return reading


@pytest.fixture
def refused(tmp_path: Path, cache: Cache) -> Callable[..., ScenarioError]:
    """Return the error that refuses an item, or a file with the given content."""

    def refusing(
        item: str = "", content: str | bytes | None = None, repository: Path | None = None
    ) -> ScenarioError:
        if content is not None:
            path = tmp_path / "x.patch"
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            item = str(path)
        with pytest.raises(ScenarioError) as caught:
            read_series([item], repository, cache)
        assert item in caught.value.message or repr(item) in caught.value.message
        return caught.value

    return refusing


# --- files ---


def test_diff_is_a_patch(read: Callable[..., tuple[Patch, ...]], tmp_path: Path) -> None:
    (patch,) = read(diff("drivers/vfio/vfio.c"))
    assert patch.origin == str(tmp_path / "x.patch")
    assert (patch.number, patch.subject) == (1, "x.patch")
    assert patch.files == ("drivers/vfio/vfio.c",)
    assert patch.text.decode() == diff("drivers/vfio/vfio.c")


def test_patches_are_numbered_through_the_whole_series(tmp_path: Path, cache: Cache) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(diff(f"{name}.c"))
    patches = read_series([str(tmp_path / "two"), str(tmp_path / "one")], None, cache)
    assert [(p.number, p.files) for p in patches] == [(1, ("two.c",)), (2, ("one.c",))]


def test_output_of_git_show_has_a_subject(read: Callable[..., tuple[Patch, ...]]) -> None:
    text = f"commit {'a' * 40}\nAuthor: A <a@b.c>\n\n    vfio: stride\n\n    Why.\n\n{diff()}"
    assert [p.subject for p in read(text)] == ["vfio: stride"]


def test_series_without_items_is_empty(cache: Cache) -> None:
    assert read_series([], None, cache) == ()


@pytest.mark.parametrize("item", ["", "  "])
def test_empty_item_is_refused(item: str, cache: Cache) -> None:
    with pytest.raises(ScenarioError) as caught:
        read_series([item], None, cache)
    assert caught.value.reason == Reason.NO_SUCH_SERIES


def test_missing_file_is_refused_with_what_is_near(
    refused: Callable[..., ScenarioError], tmp_path: Path
) -> None:
    (tmp_path / "0001-vfio-stride.patch").write_text(diff())
    message = refused(str(tmp_path / "0001-vfio-strid.patch")).message
    assert '"0001-vfio-stride.patch"' in message
    without_folder = refused(str(tmp_path / "none/x.patch"))
    assert without_folder.reason == Reason.NO_SUCH_SERIES
    assert '"' not in without_folder.message


@pytest.mark.parametrize("item", ["a\0b", "x" * 300, "/dev/null"])
def test_what_is_no_file_is_refused(item: str, refused: Callable[..., ScenarioError]) -> None:
    assert refused(item).reason == "no-such-series"


@pytest.mark.parametrize(
    ("content", "reason", "where"),
    [
        (b"", "no-diff", ""),
        (b"just text\n", "no-diff", ""),
        (b"\x7fELF\0\0", "binary-file", ""),
        (diff().encode("utf-16"), "binary-file", "UTF-16"),
        (gzip.compress(b"x", mtime=0)[:9], "binary-file", ""),
        (diff().replace("a/a.c", "a.c").replace("b/a.c", "a.c"), "damaged-patch", "-p0"),
        ("diff --git k/x k/y\nsimilarity index 100%\nrename from k/x\nrename to k/y\n",
         "damaged-patch", "-p0"),
        (diff("../etc/passwd"), "damaged-patch", "'../etc/passwd'"),
        (diff("x/.git/config"), "damaged-patch", "'x/.git/config'"),
        (diff().replace(" int a;\n+", "int a;\n+"), "damaged-patch", "line 6: "),
        (diff()[:-8], "damaged-patch", "line 8: "),
        ("@@ -1 +1 @@\n-a\n+b\n", "no-diff", ""),
        ("--- a/x\n+++ b/x\ntext\n", "damaged-patch", "line 3: "),
        ("diff --git a/x b/x\nindex 1..2\n", "damaged-patch", "line 3: "),
        ("diff --git a/x b/x\nnew file mode 100644\ndeleted file mode 100644\n",
         "damaged-patch", "line 4: "),
        ("diff --git a/x b/x\nold mode 100644\n", "damaged-patch", "line 3: "),
        (diff() + "\n@@ -9 +9 @@\n-a\n+b\n", "damaged-patch", "line 10: "),
        ("diff --cc x\n--- a/x\n+++ b/x\n@@@ -1,1 -1,1 +1,1 @@@\n", "damaged-patch", "merge"),
        ("diff --git a/x b/x\nindex 1..2 100644\nGIT binary patch\nliteral 1\n",
         "damaged-patch", "line 3: "),
        ("diff --git a/x b/x\nindex 1..2 100644\nBinary files a/x and b/x differ\n",
         "damaged-patch", "line 3: "),
    ],
)  # fmt: skip
def test_what_is_no_patch_is_refused(
    content: str | bytes, reason: str, where: str, refused: Callable[..., ScenarioError]
) -> None:
    error = refused(content=content)
    assert error.reason == reason
    assert where in error.message


def test_damage_is_shown_by_its_line(refused: Callable[..., ScenarioError]) -> None:
    text = diff().replace("+int b;", "+int\nb;")
    message = refused(content=text).message
    assert "x.patch: " in message
    assert numbers_in(message.rpartition("x.patch")[2])[:2] == ["8", "5"]
    mails = mbox(mail("[PATCH 2/2] b", text), mail("[PATCH 1/2] a", diff()))
    for content, which in ((mails, "x.patch (2/2)"), (mail("[PATCH] b", text), "x.patch (b)")):
        _, prefix, behind = refused(content=content).message.partition(which)
        assert prefix
        assert numbers_in(behind)[0] == "8"


# --- what a patch touches ---


def test_files_are_old_and_new_names(read: Callable[..., tuple[Patch, ...]]) -> None:
    text = (
        "diff --git a/old.c b/new.c\nsimilarity index 90%\nrename from old.c\nrename to new.c\n"
        "diff --git a/made.c b/made.c\nnew file mode 100644\nindex 0000000..1111111\n"
        "--- /dev/null\n+++ b/made.c\n@@ -0,0 +1 @@\n+x\n"
        'diff --git "a/f\\303\\274 r.c" "b/f\\303\\274 r.c"\nnew file mode 100644\n'
        "diff --git a/tool.sh b/tool.sh\nold mode 100644\nnew mode 100755\n"
        "diff --git linux.orig/k.sh linux/k.sh\nold mode 100644\nnew mode 100755\n"
        "diff --git a/gone.c b/gone.c\ndeleted file mode 100644\n--- a/gone.c\n+++ /dev/null\n"
        "@@ -1 +0,0 @@\n-x\n"
        "--- linux.orig/Makefile\t2024-01-01\n+++ linux/Makefile\t2024-01-02\n"
        "@@ -1 +1 @@\n-a\n+b\n"
        "--- /dev/null\n+++ linux/other.c\n@@ -0,0 +1 @@\n+x\n"
    )
    (patch,) = read(text)
    assert {*patch.files} == {
        "Makefile", "fü r.c", "gone.c", "k.sh", "made.c", "new.c", "old.c", "other.c", "tool.sh",
    }  # fmt: skip
    made = next(diff_ for diff_ in patch.diffs if diff_.new == "made.c")
    gone = next(diff_ for diff_ in patch.diffs if diff_.old == "gone.c")
    assert (made.old, gone.new) == (None, None)


@pytest.mark.parametrize("before", ["Makefile", "Makefile~", "Makefile.orig"])
def test_both_names_of_a_file_may_begin_alike(
    before: str, read: Callable[..., tuple[Patch, ...]]
) -> None:
    text = f"--- linux-9.9/a/{before}\n+++ linux-9.9/a/Makefile\n@@ -1 +1 @@\n-a\n+b\n"
    assert read(text)[0].files == ("a/Makefile",)


def test_lines_of_a_hunk_are_no_headers(read: Callable[..., tuple[Patch, ...]]) -> None:
    text = "--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n--- a/not\n-y\n+++ b/not\n+@@ -1 +1 @@\n"
    assert read(text)[0].files == ("x",)


def test_blank_line_may_have_lost_its_space(read: Callable[..., tuple[Patch, ...]]) -> None:
    eaten = "--- a/x\n+++ b/x\n@@ -1,2 +1,3 @@\n a\n\n+b\n"
    whole = "--- a/x\n+++ b/x\n@@ -1,2 +1,3 @@\n a\n \n+b\n"
    assert series_digest(read(eaten)) == series_digest(read(whole))


def test_patch_need_not_be_utf8(read: Callable[..., tuple[Patch, ...]]) -> None:
    text = diff(new="/* f\N{LATIN SMALL LETTER U WITH DIAERESIS}r */").encode("latin-1")
    assert read(text)[0].text == text


# --- mails ---


def test_mails_are_ordered_by_their_numbers_without_cover_and_replies(
    read: Callable[..., tuple[Patch, ...]],
) -> None:
    text = mbox(
        mail("[PATCH v2 2/3] second", diff("two.c")),
        mail("[PATCH v2 0/3] cover", " 3 files changed\n"),
        mail("Re: [PATCH v2 1/3] first", "> quoted\n" + diff("suggested.c")),
        mail("[PATCH v2 3/3] third", diff("three.c")),
        mail("[PATCH v2 1/3] first", diff("one.c")),
    )
    for content in (text.encode(), gzip.compress(text.encode())):
        patches = read(content, "t.mbox")
        assert [(p.number, p.subject, p.files) for p in patches] == [
            (1, "first", ("one.c",)), (2, "second", ("two.c",)), (3, "third", ("three.c",)),
        ]  # fmt: skip


def test_mails_without_numbers_are_in_the_order_of_the_file(
    read: Callable[..., tuple[Patch, ...]],
) -> None:
    text = mbox(mail("[PATCH] b", diff("b.c")), mail("[PATCH] a", diff("a.c")))
    assert [p.subject for p in read(text)] == ["b", "a"]


def test_sentence_that_begins_with_from_is_no_new_mail(
    read: Callable[..., tuple[Patch, ...]],
) -> None:
    text = mbox(mail("[PATCH] a", diff())).replace("Why.", "\nFrom now on it is faster.\n")
    assert len(read(text)) == 1


@pytest.mark.parametrize(
    ("subjects", "reason", "numbers"),
    [
        (["[PATCH 1/3] a", "[PATCH 3/3] c"], "incomplete-series", ["3", "2"]),
        (["[PATCH 1/2] a", "[PATCH 2/2] b", "[PATCH v2 1/2] a", "[PATCH v2 2/2] b"],
         "mixed-series", ["1", "2"]),
        (["[PATCH 1/2] a", "[PATCH 2/2] b", "[PATCH 1/2] a"], "mixed-series", ["1", "2"]),
        (["[PATCH 1/2] a", "[PATCH 2/2] b", "[PATCH 1/1] a"], "mixed-series", ["1", "2"]),
        (["[PATCH] a", "[PATCH v2] a"], "mixed-series", ["1", "2"]),
        (["[PATCH] a", "[PATCHv2] a"], "mixed-series", ["1", "2"]),
        (["[PATCH 2/2] b", "[PATCH 1/2] a", "[PATCH] other"], "mixed-series", []),
        (["[PATCH 2/2] b", "[PATCH] other"], "incomplete-series", ["2", "1"]),
        (["[PATCH 6.1/6.6 2/2] b", "[PATCH 6.1/6.6 3/2] c"], "incomplete-series", ["2", "1"]),
        (["Re: [PATCH] a", "AW: [PATCH] b"], "no-diff", []),
        (["Re: a", "Re: b"], "no-diff", []),
        (["[PATCH v2 1/2] a", "Svar: [PATCH v2 2/2] b"], "incomplete-series", ["2", "2"]),
    ],
)  # fmt: skip
def test_mails_of_more_or_less_than_a_series_are_refused(
    subjects: list[str], reason: str, numbers: list[str], refused: Callable[..., ScenarioError]
) -> None:
    error = refused(content=mbox(*(mail(s, diff(f"{i}.c")) for i, s in enumerate(subjects))))
    assert error.reason == reason
    assert re.findall(r"(?<=[ /])\d", error.message.partition("x.patch")[2]) == numbers


def test_mail_that_is_named_alone_is_a_whole_patch(
    read: Callable[..., tuple[Patch, ...]],
) -> None:
    assert [p.subject for p in read(mail("[PATCH 1/3] a", diff()))] == ["a"]


@pytest.mark.parametrize("tag", ["4.19/5.4", "5.10/5.15/6.1", "6.1.y/6.6.y", "2026/05", "0/0"])
def test_number_of_a_stable_kernel_is_no_place_in_a_series(
    tag: str, read: Callable[..., tuple[Patch, ...]]
) -> None:
    text = mbox(mail(f"[PATCH {tag}] b", diff()), mail(f"[PATCH {tag}] a", diff()))
    assert [p.subject for p in read(text)] == ["b", "a"]
    text = mbox(mail(f"[PATCH {tag} 2/2] b", diff()), mail(f"[PATCH {tag} v2 1/2] a", diff()))
    assert [p.subject for p in read(text.replace("v2 ", ""))] == ["a", "b"]


def test_cover_letter_may_have_a_diff_and_a_patch_may_be_the_noughth(
    read: Callable[..., tuple[Patch, ...]],
) -> None:
    one = mail("[PATCH 1/1] b", diff())
    cover = mail("[PATCH 0/1] a", "").replace("---\n", f"Interdiff:\n{diff()}")
    assert [p.subject for p in read(mbox(cover, one))] == ["b"]
    stat = " a.c | 1 +\n 1 file changed, 1 insertion(+)\n\n"
    assert [p.subject for p in read(mbox(one, mail("[PATCH 0/1] a", stat + diff())))] == ["a", "b"]


@pytest.mark.parametrize(
    "prefix",
    ["Re:", "RE :", "Re[2]:", "AW: Re:", "\u56de\u590d:", "\u56de\u590d\uff1a", "Odp:",
     "[EXT] Re:", "R\u00e9p.:", "Svar: Antw:"],
)  # fmt: skip
def test_reply_in_any_language_is_left_out(
    prefix: str, read: Callable[..., tuple[Patch, ...]]
) -> None:
    text = base64.b64encode(f"{prefix} [PATCH v2] a".encode()).decode()
    letters = (mail("[PATCH v2] a", diff()), mail(f"=?utf-8?b?{text}?=", diff("other.c")))
    patches = read(mbox(*letters))
    assert [p.files for p in patches] == [("a.c",)]
    # what it answers shows a prefix that is not known and stands before no [PATCH]
    text = base64.b64encode(f"{prefix} vfio: a".encode()).decode()
    reply = mail(f"=?utf-8?b?{text}?=", diff("other.c"), "In-Reply-To: <a@example.org>")
    assert [p.files for p in read(mbox(mail("vfio: a", diff()), reply))] == [("a.c",)]


def test_patch_whose_subject_ends_as_another_one_is_no_reply(
    read: Callable[..., tuple[Patch, ...]],
) -> None:
    text = mbox(mail("fix", diff()), mail("vfio: fix", diff()), mail("fw: fix", diff()))
    assert [p.subject for p in read(text)] == ["fix", "vfio: fix", "fw: fix"]


def test_reply_that_is_named_alone_is_a_patch(read: Callable[..., tuple[Patch, ...]]) -> None:
    assert [p.files for p in read(mail("Re: [PATCH] a", diff()))] == [("a.c",)]


@pytest.mark.parametrize(
    "first", ["From \n", "From a@b Mon May 6 07:08:09 UTC 2024\n", "\n\nFrom -\n"]
)
def test_mails_whose_from_has_no_date_are_split(
    first: str, read: Callable[..., tuple[Patch, ...]], refused: Callable[..., ScenarioError]
) -> None:
    mails = [mail(f"[PATCH {n}/2] {n}", diff(f"{n}.c")) for n in (2, 1)]
    text = "".join(f"{first}{letter}\n" for letter in mails)
    assert [p.files for p in read(text)] == [("1.c",), ("2.c",)]
    assert [p.files for p in read(with_cr(text))] == [("1.c",), ("2.c",)]
    assert refused(content=first + mails[0] + first.strip("\n") + "\n" + mails[0]).reason == (
        "mixed-series"
    )


@pytest.mark.parametrize("start", ["Received:\n by a\n", "Subject:\n [PATCH] a\n", "X-A:b\n"])
def test_first_header_may_be_folded(start: str, read: Callable[..., tuple[Patch, ...]]) -> None:
    quoted = diff(new="int b =3D 1;")
    (patch,) = read(f"{start}Content-Transfer-Encoding: quoted-printable\n\n{quoted}")
    assert b"+int b = 1;\n" in patch.text


def test_nul_matters_only_in_a_patch_of_the_series(
    read: Callable[..., tuple[Patch, ...]], refused: Callable[..., ScenarioError]
) -> None:
    good, bad = mail("[PATCH] a", diff()), diff(new="int \0b;")
    for other in (mail("Re: [PATCH] a", bad), mail("seen", "a\0b\n")):
        assert [p.files for p in read(mbox(good, other))] == [("a.c",)]
    assert read(good.replace("Why.", "W\0hy."))[0].files == ("a.c",)
    for content in (mbox(good, mail("[PATCH] b", bad)), bad):
        assert refused(content=content).reason == "binary-file"


def test_names_in_a_message_are_no_diff(
    read: Callable[..., tuple[Patch, ...]], refused: Callable[..., ScenarioError]
) -> None:
    shown = "--- before the change\n+++ after the change\nmaps 1.5 s\n"
    for text in (mail("[PATCH] a", diff()).replace("Why.", f"Why.\n\n{shown}"), shown + diff()):
        assert [p.files for p in read(text)] == [("a.c",)]
    # behind a diff, that may be a diff that was damaged
    assert refused(content=diff() + shown).reason == "damaged-patch"


def with_cr(text: str) -> str:
    return text.replace("\n", "\r\n")


@pytest.mark.parametrize("saved", [str, with_cr, "\n{}".format])
@pytest.mark.parametrize("written", [str, with_cr])
def test_encoded_mails_are_decoded(
    saved: Callable[[str], str],
    written: Callable[[str], str],
    read: Callable[..., tuple[Patch, ...]],
) -> None:
    change = diff(new=f"int x = 1; /* {'ü' * 40} */")
    plain = read(mail("[PATCH] für", change))
    body = written(f"Why.\n---\n{change}").encode()
    head = "From: a\nSubject: =?utf-8?q?=5BPATCH=5D_f=C3=BCr?=\nMIME-Version: 1.0\n"
    quoted = quopri.encodestring(body.replace(b"\r", b"")).decode()
    if written is with_cr:
        quoted = re.sub(r"(?<!=)\n", "=0D\n", quoted)
    packed = base64.encodebytes(body).decode()
    for encoding, text in (("quoted-printable", quoted), ("base64", packed)):
        (patch,) = read(saved(f"{head}Content-Transfer-Encoding: {encoding}\n\n{text}"))
        assert patch.subject == "für"
        assert patch.diffs == plain[0].diffs


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1", "us-ascii", "klingon"])
def test_patch_is_in_the_patched_files_charset(
    charset: str, read: Callable[..., tuple[Patch, ...]]
) -> None:
    change = diff(new="/* für */").encode("latin-1")
    text = mail("[PATCH] a", "", f"Content-Type: text/plain; charset={charset}").encode()
    (patch,) = read(text.replace(b"Why.", "Für.".encode("latin-1")).replace(b"-- \n", change))
    assert b"+/* f\xfcr */\n" in patch.text
    assert patch.subject == "a"


def parts(kind: str, **bodies: str) -> str:
    """Return a mail of several parts. `bodies`: type of each part, with _ for /, and its text."""
    text = f'From: a\nSubject: [PATCH] a\nContent-Type: multipart/{kind}; boundary="x"\n\n'
    for name, body in bodies.items():
        text += f"--x\nContent-Type: {name.replace('_', '/')}\n{body}"
    return f"{text}--x--\n"


def test_attached_patch_is_found(read: Callable[..., tuple[Patch, ...]]) -> None:
    packed = base64.encodebytes(diff().encode()).decode()
    text = parts("mixed", text_plain="\nSee the attachment.\n",
                 application_octet="Content-Transfer-Encoding: base64\n\n" + packed)  # fmt: skip
    assert read(text)[0].files == ("a.c",)
    assert read(with_cr(text))[0].diffs == read(text)[0].diffs


def test_text_is_not_read_again_from_its_html(
    read: Callable[..., tuple[Patch, ...]], refused: Callable[..., ScenarioError]
) -> None:
    html = f"<pre>\n{diff('a.c<br>')}</pre>\n"
    text = parts("alternative", text_plain=f"\nWhy.\n---\n{diff()}\n",
                 text_html=f"Content-Language: en\n\n{html}")  # fmt: skip
    assert read(text)[0].files == ("a.c",)
    assert read(with_cr(text))[0].files == ("a.c",)
    only = mail("[PATCH] a", html, "Content-Type: text/html")
    for content in (only, mbox(only), with_cr(only)):
        assert refused(content=content).reason == "no-diff"


def test_lines_that_mail_ended_with_cr_lf_are_as_before(
    read: Callable[..., tuple[Patch, ...]],
) -> None:
    text = mail("[PATCH] a", diff())
    assert read(with_cr(text))[0].diffs == read(text)[0].diffs


def test_cr_of_the_patched_file_is_kept(read: Callable[..., tuple[Patch, ...]]) -> None:
    text = diff().replace("int a;\n", "int a;\r\n").replace("int b;\n", "int b;\r\n")
    assert b" int a;\r\n" in read(text)[0].text
    assert b" int a;\r\n" in read(mail("[PATCH] a", text))[0].text


def test_subject_in_an_unknown_encoding_hides_nothing(
    read: Callable[..., tuple[Patch, ...]],
) -> None:
    (patch,) = read(mail("=?klingon?q?x?=", diff()))
    assert "x" in patch.subject
    assert patch.files == ("a.c",)


def test_users_settings_of_git_change_no_mail(
    read: Callable[..., tuple[Patch, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = "[mailinfo]\nscissors = true\nquotedCr = strip\n[i18n]\ncommitEncoding = latin1\n"
    (tmp_path / ".gitconfig").write_text(settings)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    text = diff(new="int b;\r\n+int c;").replace("-1,2 +1,3", "-1,2 +1,4")
    packed = base64.encodebytes(text.encode()).decode()
    head = "From: a\nSubject: [PATCH] f\u00fcr\nContent-Transfer-Encoding: base64\n\n"
    (patch,) = read(head + packed)
    assert (patch.subject, patch.text) == ("f\u00fcr", text.encode())


def test_subject_in_the_text_is_not_the_mails(read: Callable[..., tuple[Patch, ...]]) -> None:
    text = mbox(*(mail(f"[PATCH {n}/2] {n}", diff(f"{n}.c")) for n in (2, 1)))
    text = text.replace("Why.", "From: B <b@example.org>\nSubject: other\n\nWhy.\n-- >8 --\n")
    assert [p.files for p in read(text)] == [("1.c",), ("2.c",)]


# --- folders ---


def filled(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    return folder


def test_folder_is_in_the_order_of_its_names(tmp_path: Path, cache: Cache) -> None:
    folder = filled(tmp_path / "p", README="x", **{
        "10-ten_patch": diff("ten.c"), "2-two_diff": diff("two.c"),
        "0000-cover-letter_patch": mail("[PATCH 0/2] cover", ""),
    })  # fmt: skip
    assert [p.files for p in read_series([str(folder)], None, cache)] == [("two.c",), ("ten.c",)]


def test_folder_of_mails_is_in_the_order_of_their_numbers(tmp_path: Path, cache: Cache) -> None:
    folder = filled(tmp_path / "p", a_eml=mail("[PATCH 2/2] x", diff("two.c")),
                    b_eml=mail("[PATCH 1/2] y", diff("one.c")))  # fmt: skip
    assert [p.subject for p in read_series([str(folder)], None, cache)] == ["y", "x"]


def test_replies_in_a_folder_are_left_out(tmp_path: Path, cache: Cache) -> None:
    folder = filled(tmp_path / "p", a_eml=mail("Re: [PATCH 1/2] y", diff("reply.c")),
                    b_eml=mail("[PATCH 2/2] x", diff("two.c")),
                    c_eml=mail("[PATCH 1/2] y", diff("one.c")))  # fmt: skip
    assert [p.subject for p in read_series([str(folder)], None, cache)] == ["y", "x"]


def test_patch_without_a_number_has_the_place_of_its_name_or_none(
    tmp_path: Path, cache: Cache, refused: Callable[..., ScenarioError]
) -> None:
    one, two = (mail(f"[PATCH {n}/2] {n}", diff(f"{n}.c")) for n in (1, 2))
    own = mail("[PATCH] own", diff("own.c"))
    placed = filled(tmp_path / "p", **{"1_patch": one, "2_patch": own, "3_patch": two})
    assert [p.subject for p in read_series([str(placed)], None, cache)] == ["1", "own", "2"]
    answer = mail("[PATCH] own", diff("own.c"), "In-Reply-To: <a@b>")
    for name, files in {
        "q": {"b_eml": one, "c_eml": two, "d_eml": answer},
        "r": {"b_eml": two, "c_eml": one, "d_eml": own},
    }.items():
        assert refused(str(filled(tmp_path / name, **files))).reason == "mixed-series"


@pytest.mark.parametrize("where", ["cur/{}.1:2,S", "new/{}.1", "{}"])
def test_maildir_and_names_that_are_numbers(where: str, tmp_path: Path, cache: Cache) -> None:
    for number in range(1, 12):
        path = tmp_path / "p" / where.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(mail(f"[PATCH] {number}", diff()))
    subjects = [p.subject for p in read_series([str(tmp_path / "p")], None, cache)]
    assert subjects == [*map(str, range(1, 12))]


def test_quilts_file_decides_the_order(tmp_path: Path, cache: Cache) -> None:
    folder = filled(tmp_path / "p", series="# ours\nz.patch -p1\n\nsub/a.patch # why\n",
                    z_patch=diff("z.c"), sub__a_patch=diff("a.c"), unused_patch="")  # fmt: skip
    for item in (folder, folder / "series"):
        assert [p.files for p in read_series([str(item)], None, cache)] == [("z.c",), ("a.c",)]


@pytest.mark.parametrize(
    ("files", "reason", "words"),
    [
        ({"README": "x"}, "no-such-series", []),
        ({"a_patch": "text"}, "no-diff", ["a.patch"]),
        ({"series": "# nothing\n"}, "no-such-series", ["/series"]),
        ({"series": "abc.patch\n", "abd_patch": diff()}, "no-such-series", ['"abd.patch"']),
        ({"series": "a.patch -p0\n", "a_patch": diff()}, "damaged-patch",
         ["line 1", "a.patch", "-p0"]),
        ({"series": "a.patch -R\n", "a_patch": diff()}, "damaged-patch", ["a.patch", "-R"]),
    ],
)  # fmt: skip
def test_folder_without_a_series_is_refused(
    files: dict[str, str], reason: str, words: list[str], tmp_path: Path,
    refused: Callable[..., ScenarioError],
) -> None:  # fmt: skip
    error = refused(str(filled(tmp_path / "p", **files)))
    assert error.reason == reason
    assert all(word in error.message for word in words)


# --- ranges ---


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = new_repository(tmp_path / "linux", {"a.c": A})
    git(folder, "tag", "base")
    commit(folder, "b is added", {"a.c": B})
    commit(folder, "nothing is changed", {})
    commit(folder, "c is added, diff --git is not", {"c.c": "int c;\n", "a.c": None})
    return folder


def test_range_is_the_commits_oldest_first(repository: Path, cache: Cache) -> None:
    before = state_of(repository)
    patches = read_series(["base..main"], repository, cache)
    assert [(p.number, p.subject, p.files) for p in patches] == [
        (1, "b is added", ("a.c",)),
        (2, "c is added, diff --git is not", ("a.c", "c.c")),
    ]
    assert {p.origin for p in patches} == {"base..main"}
    assert state_of(repository) == before
    # a developer's git settings change nothing
    for setting in ("diff.noprefix=true", "diff.renames=copies", "diff.context=0",
                    "diff.mnemonicPrefix=true", "color.ui=always", "log.showSignature=true",
                    "diff.external=false", "diff.interHunkContext=9"):  # fmt: skip
        git(repository, "config", *setting.split("="))
    assert read_series(["base..main"], repository / ".git", cache) == patches


def test_range_is_the_same_patches_as_format_patch(
    repository: Path, tmp_path: Path, cache: Cache
) -> None:
    git(repository, "rebase", "--quiet", "--onto", "main~2", "main~1", "main")  # no empty commit
    (tmp_path / "all.mbox").write_bytes(
        git(repository, "format-patch", "--stdout", "--no-renames", "base..main")
    )
    mails = read_series([str(tmp_path / "all.mbox")], None, cache)
    commits = read_series(["base..main"], repository, cache)
    assert [p.subject for p in mails] == [p.subject for p in commits]
    assert series_digest(mails) == series_digest(commits)


_LINES = st.lists(st.sampled_from([
    b"int a;\n", b"\n", b"\tb\r\n", b"-- \n", b"---\n", b"--- a/x\n", b"+++ b/x\n", b"From 1\n",
    b"From a Thu Jan  1 00:00:00 1970\n", b"diff --git a/x b/x\n", b"@@ -1 +1 @@\n", b"\xfc\n",
    "ü\n".encode(), b"x" * 200 + b"\n", b"=3D=\n", b"Subject: [PATCH] x\n", b"--x\n", b".\n",
]), max_size=12).map(b"".join)  # fmt: skip
_WORDS = st.lists(st.sampled_from(["vfio:", "für", "a", "=?x?=", "1/2", "x" * 60, "\u56de"]),
                  min_size=1, max_size=6).map(" ".join)  # fmt: skip
_MESSAGES = st.sampled_from(["", "Why.", "Für.", "From now on.\n\nFrom: b\n", ">From here",
                             "From a Thu Jan  1 00:00:00 1970", "Index", "-- \nb"])  # fmt: skip


@share(0.3)
@given(
    commits=st.lists(st.tuples(_WORDS, _MESSAGES, _LINES), min_size=1, max_size=4),
    options=st.lists(st.sampled_from([
        "--attach", "--inline", "--numbered", "--no-numbered", "-v3", "--cover-letter", "--thread",
        "--signature=x", "--encode-email-headers", "--rfc", "--no-stat", "--full-index",
        "--subject-prefix=PATCH net-next", "--in-reply-to=a@b", "--from=C <c@d>",
    ]), max_size=4),
    in_one=st.booleans(),
    cr=st.booleans(),
)  # fmt: skip
def test_what_git_formats_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    commits: list[tuple[str, str, bytes]],
    options: list[str],
    in_one: bool,
    cr: bool,
) -> None:
    folder = tmp_path_factory.mktemp("git")
    git(folder, "init", "--quiet", "--bare", "--initial-branch=main", "x")
    stream = b"commit refs/heads/main\ncommitter A <a@b> 0 +0000\ndata 0\n"
    for number, (subject, message, lines) in enumerate(commits):
        text = f"{subject}\n\n{message}\n".encode()
        content = b"%d\n%s" % (number, lines)  # no commit is empty
        stream += b"commit refs/heads/main\ncommitter A <a@b> 9 +0000\ndata %d\n" % len(text)
        stream += b"%sM 100644 inline %d.c\n" % (text, number % 2)
        stream += b"data %d\n%s\n" % (len(content), content)
    git(folder / "x", "fast-import", "--quiet", stdin=stream)
    git(folder / "x", "format-patch", "--quiet", "--root", "--no-renames", "--pretty=mboxrd",
        *options, "-o", folder / "out", f"main~{len(commits)}..main")  # fmt: skip
    files = sorted((folder / "out").iterdir())
    if cr and not any(b"\r" in lines for _, _, lines in commits):
        for file in files:
            file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    if in_one:
        (folder / "mbox").write_bytes(b"".join(file.read_bytes() for file in files))
    cache = Cache(folder / "cache")
    mails = read_series([str(folder / ("mbox" if in_one else "out"))], None, cache)
    written = read_series([f"main~{len(commits)}..main"], folder / "x", cache)
    assert [p.subject for p in mails] == [p.subject for p in written]
    assert [p.diffs for p in mails] == [p.diffs for p in written]


def test_range_may_begin_with_the_first_commit(repository: Path, cache: Cache) -> None:
    git(repository, "switch", "--quiet", "--orphan", "other")
    commit(repository, "another beginning", {"x.c": "int x;\n"})
    assert [p.files for p in read_series(["main..other"], repository, cache)] == [("x.c",)]


@pytest.mark.parametrize(
    ("item", "reason", "advised"),
    [
        ("main..base", "empty-range", ["base..main", "3"]),
        ("main..main", "empty-range", []),
        ("base..mian", "no-such-ref", ["main"]),
        ("-x..main", "no-such-ref", []),
        ("base...main", "no-such-ref", ["base..main"]),
        ("main~1..main~1^{tree}", "no-such-ref", []),
        ("main~2..main~1", "no-diff", []),
    ],
)
def test_range_of_nothing_is_refused(
    item: str, reason: str, advised: list[str], repository: Path, cache: Cache
) -> None:
    with pytest.raises(ScenarioError) as caught:
        read_series([item], repository, cache)
    assert caught.value.reason == reason
    assert all(word in re.split(r"[ ()`,]+", caught.value.hint) for word in advised)


def test_range_with_a_merge_is_refused(
    repository: Path, refused: Callable[..., ScenarioError]
) -> None:
    git(repository, "switch", "--quiet", "-c", "side", "base")
    commit(repository, "side", {"side.c": "int s;\n"})
    git(repository, "merge", "--quiet", "-m", "Merge main", "main")
    error = refused("base..side", repository=repository)
    assert error.reason == "merge-in-range"
    assert "Merge main" in error.message


def test_range_with_a_binary_file_is_refused(
    repository: Path, refused: Callable[..., ScenarioError]
) -> None:
    commit(repository, "logo", {"logo.png": b"\x89PNG\0\0"})
    error = refused("main~1..main", repository=repository)
    assert error.reason == Reason.DAMAGED_PATCH
    assert "main~1..main" in error.message


def test_range_without_a_repository_is_refused(refused: Callable[..., ScenarioError]) -> None:
    assert refused("base..main").reason == Reason.NO_SUCH_REPOSITORY


# --- lore.kernel.org ---


def test_file_named_as_a_message_id_is_read(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "1@example.org.mbx").write_text(mail("[PATCH] a", diff()))
    monkeypatch.chdir(tmp_path)
    assert [p.subject for p in read_series(["1@example.org.mbx"], None, cache)] == ["a"]
    # a scenario's paths start at its own folder
    monkeypatch.chdir("/")
    kernel = TreeKernel(tree=tmp_path, series=("1@example.org.mbx", MESSAGE_ID))
    assert resolve_kernel_paths(kernel, tmp_path) == TreeKernel(
        tree=tmp_path, series=(str(tmp_path / "1@example.org.mbx"), MESSAGE_ID)
    )


@pytest.fixture
def b4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a program b4 into PATH that runs `script`, which prints the mbox. Return the file that
    lists its runs."""

    def installed(script: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "b4"
        program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/runs\n{script}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return tmp_path / "runs"

    return installed


def test_mail_is_fetched_once(b4: Callable[[str], Path], tmp_path: Path, cache: Cache) -> None:
    text = mbox(mail("[PATCH 2/2] b", diff("b.c")), mail("[PATCH 1/2] a", diff("a.c")))
    (tmp_path / "lore").write_bytes(text.encode() + b"\n\xff\n")
    runs = b4(f"cat {tmp_path}/lore; echo noise >&2")
    first = read_series([MESSAGE_ID], None, cache)
    assert [(p.origin, p.subject) for p in first] == [(MESSAGE_ID, "a"), (MESSAGE_ID, "b")]
    assert read_series([f"<{MESSAGE_ID}>"], None, cache)[0].diffs == first[0].diffs
    (line,) = runs.read_text().splitlines()
    assert line.startswith("am -o - ")
    assert line.endswith(f" --no-cover -- {MESSAGE_ID}")


def test_unknown_mail_is_refused(
    b4: Callable[[str], Path], refused: Callable[..., ScenarioError]
) -> None:
    b4("echo 'That message-id is not known.' >&2; exit 1")
    assert refused(MESSAGE_ID).reason == "no-such-mail"


def test_mail_without_a_patch_is_refused_and_not_kept(
    b4: Callable[[str], Path], refused: Callable[..., ScenarioError], cache: Cache
) -> None:
    b4("echo nothing")
    assert refused(MESSAGE_ID).reason == "no-diff"
    assert not list(cache.folder("lore").glob("*.mbx"))


@pytest.mark.parametrize("script", ["echo 'Temporary failure in name resolution' >&2; exit 1", ""])
def test_lore_that_cannot_be_reached_is_the_benchs_error(
    script: str, b4: Callable[[str], Path], cache: Cache
) -> None:
    b4(script)
    with pytest.raises(BenchError, match=MESSAGE_ID) as caught:
        read_series([MESSAGE_ID], None, cache)
    assert caught.value.reason == "lore-unreachable"
    assert f"https://lore.kernel.org/all/{MESSAGE_ID}/t.mbox.gz" in caught.value.hint


def test_missing_b4_is_named_with_the_way_without_it(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BenchError, match=r"\bb4\b") as caught:
        read_series([MESSAGE_ID], None, cache)
    assert caught.value.reason == Reason.PROGRAM_MISSING
    assert "t.mbox.gz" in caught.value.hint


def test_long_message_id_is_kept_too(
    b4: Callable[[str], Path], tmp_path: Path, cache: Cache
) -> None:
    (tmp_path / "lore").write_text(mail("[PATCH] a", diff()))
    runs = b4(f"cat {tmp_path}/lore")
    for _ in range(2):
        assert len(read_series([f"{'x' * 300}@example.org"], None, cache)) == 1
    assert len(runs.read_text().splitlines()) == 1


# --- digest ---


def test_digest_is_of_what_patches_do(read: Callable[..., tuple[Patch, ...]]) -> None:
    same = {
        series_digest(read(text))
        for text in (
            diff(),
            mail("[PATCH] one", diff()),
            mail("[PATCH] reworded", diff()),
            diff().replace("1111111..2222222", "3333333..4444444"),
            diff().replace("@@ int f(void)", "@@"),
            diff().split("\n", 2)[2].replace("a/a.c", "a/a.c\t2024-01-01"),
        )
    }
    assert len(same) == 1
    other = {
        series_digest(read(text))
        for text in (
            diff(new="int  b;"),
            diff("b.c"),
            diff().replace("-1,2 +1,3", "-2,2 +2,3"),
            diff().replace("index", "old mode 100644\nnew mode 100755\nindex"),
            diff().replace("+int b;\n", "-int b;\n").replace("-1,2 +1,3", "-1,3 +1,2"),
            diff() + "\\ No newline at end of file\n",
        )
    }
    assert len(other) == 6
    assert not same & other


def test_digest_depends_on_order(tmp_path: Path, cache: Cache) -> None:
    items = [str(tmp_path / name) for name in "ab"]
    for item in items:
        Path(item).write_text(diff(f"{Path(item).name}.c"))
    forth, back = (read_series(order, None, cache) for order in (items, items[::-1]))
    assert series_digest(forth) != series_digest(back)


# --- anything ---

_PIECES = st.sampled_from([
    b"diff --git a/x b/x\n", b"diff --git ", b"--- a/x\n", b"+++ b/x\n", b"--- /dev/null\n",
    b"@@ -1 +1 @@\n", b"@@ -0,0 +1,2 @@\n", b"@@ -1,99999999999 +1 @@\n", b"-a\n", b"+b\n",
    b" c\n", b"\n", b"\r\n", b"\\ No newline at end of file\n", b"rename from x\n",
    b"rename to y\n", b"new file mode 100644\n", b"old mode 1\n", b"GIT binary patch\n",
    b"From a Thu Jan  1 00:00:00 1970\n", b"Subject: [PATCH 1/2] x\n", b'"a/\\303',
    b"Subject: =?utf-8?b?/w==?=\n", b"Content-Transfer-Encoding: base64\n",
    b"Content-Type: multipart/mixed; boundary=x\n", b"--x\n", b"--x--\n", b"\x1f\x8b",
    b"Content-Type: text/html; format=flowed\n", b"Content-Transfer-Encoding: quoted-printable\n",
    b"\xff\xfe", b"Content-Type: text/plain; charset=\xff\n", b"\0",
])  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([b"", b"From: a\n", b"\n\r\nFrom a Thu Jan  1 00:00:00 1970\r\n"]),
    st.lists(st.one_of(_PIECES, st.binary(max_size=20)), max_size=25).map(b"".join),
)
def test_any_content_is_read_or_refused(tmp_path: Path, begin: bytes, rest: bytes) -> None:
    path = tmp_path / "any"
    path.write_bytes(begin + rest)
    try:
        patches = read_series([str(path)], None, Cache(tmp_path / "cache"))
    except BarometerError as error:
        assert str(path) in error.message  # noqa: PT017  # either outcome is right
    else:
        assert all(patch.files for patch in patches)
        assert len(series_digest(patches)) == 16


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text().filter(lambda item: "@" not in item))
def test_any_item_is_read_or_refused(tmp_path: Path, item: str) -> None:
    folder = tmp_path / "empty"
    folder.mkdir(exist_ok=True)
    with pytest.raises(BarometerError):
        read_series([str(folder / "x") + item], tmp_path, Cache(tmp_path / "cache"))
