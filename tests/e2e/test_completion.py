# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""bash completion, in an interactive bash on a terminal of its own.

The completions are laid out as `make install` does it.  Readline's M-* puts all
completions of a word on the line, which is then given to a command that prints it.
"""

import os
import pty
import shutil
import subprocess

import pytest

from harness import CHECK_WITH, CLONE, SCAN, TOP

BASH_COMPLETION = "/usr/share/bash-completion/bash_completion"

pytestmark = pytest.mark.skipif (
    CHECK_WITH != "" or not os.path.exists (BASH_COMPLETION),
    reason="bash-completion is not installed, or only the filter is under test")


def installed (directory):
    """The completions and the policies where `make install` has them."""
    completions = directory / "share/bash-completion/completions"
    shutil.copytree (os.path.join (TOP, "completion"), completions)
    lua = directory / "share/nbdkit-scan-filter-lua"
    lua.mkdir (parents=True)
    (lua / "policies").symlink_to (os.path.join (TOP, "policies"))
    return completions


def complete (directory, line, setup=""):
    """The words that the last word of the line is replaced with by M-*."""
    completions = directory / "share/bash-completion/completions"
    if not completions.exists ():
        installed (directory)
    (directory / "rc").write_text (f"""
        source {BASH_COMPLETION}
        for file in {completions}/*; do source "$file"; done
        PATH={TOP}/lua/bin:$PATH
        bind 'set completion-query-items 0'
        show () {{ printf '<<%s>>\\n' "$@"; exit; }}
        PS1=; cd {directory}
        {setup}
        """)
    keys = line + "\x1b*" + "\x01show \x05\n"       # M-*, C-a, C-e
    terminal, tty = pty.openpty ()
    with subprocess.Popen (
            ["bash", "--noprofile", "--rcfile", str (directory / "rc"), "-i"],
            stdin=tty, stderr=tty, stdout=subprocess.PIPE, text=True,
            start_new_session=True, env={**os.environ, "TERM": "dumb"}) as bash:
        os.write (terminal, keys.encode ())
        out, _ = bash.communicate (timeout=60)
    os.close (tty)
    os.close (terminal)
    words = [word[2:-2] for word in out.splitlines () if word.startswith ("<<")]
    begin = len (line.split ()) - (not line.endswith (" "))
    assert words[:begin] == line.split ()[:begin]
    return words[begin:]


def parameters (path=SCAN, prefix="scan-"):
    """Those that a filter's help lists, as far as they can be completed."""
    help_text = subprocess.run (["nbdkit", "--filter=" + path, "null", "--help"],
                                check=True, stdout=subprocess.PIPE, text=True).stdout
    names = [line.split ()[0].partition ("=") for line in help_text.splitlines ()
             if line.startswith (prefix)]
    return {name[:-4] if name.endswith ("NAME") else name + "="
            for name, _, _ in names}


def policies ():
    return {name[:-4] for name in os.listdir (os.path.join (TOP, "policies"))}


def test_parameters (tmp_path):
    line = f"nbdkit --filter={SCAN} memory 10M "
    assert set (complete (tmp_path, line + "scan-")) == parameters ()
    assert complete (tmp_path, line + "scan-si") == ["scan-size="]
    # Nothing but ours begins so; and with no word begun, nbdkit's are there, too.
    assert {"size=", "scan-size="} <= set (complete (tmp_path, line))


def test_the_clone_filter (tmp_path):
    (tmp_path / "disk.img").write_text ("")
    (tmp_path / "clones").mkdir ()
    alone = f"nbdkit --filter={CLONE} memory 10M "
    assert set (complete (tmp_path, alone + "clone-")) == parameters (CLONE, "clone-")
    assert complete (tmp_path, alone + "scan-") == ["scan-"]
    both = f"nbdkit --filter={SCAN} --filter={CLONE} memory 10M "
    assert {"clone-file=", "scan-size=", "size="} <= set (complete (tmp_path, both))
    assert complete (tmp_path, both + "clone-fi") == ["clone-file="]
    assert complete (tmp_path, both + "scan-method=r")[-1].endswith ("read")

    def values (text):
        return {word.rpartition ("=")[2] for word in complete (tmp_path, alone + text)}

    assert values ("clone-write=") == {"local", "through"}
    assert {"disk.img", "clones"} <= values ("clone-file=")
    assert values ("clone-dir=c") == {"clones"}
    assert values ("clone-dir=") == {"clones", "share"}
    # What the first filter of a line completes is not the end of it.
    assert values ("clone-file=x clone-w") == {""}


def test_the_filter_by_its_name (tmp_path):
    for option in "--filter=scan", "--filter scan", "--filter=log --filter=scan":
        assert "scan-ahead=" in complete (
            tmp_path, f"nbdkit {option} memory 10M scan-"), option


def test_nothing_of_ours_without_the_filter (tmp_path):
    words = complete (tmp_path, "nbdkit --filter=cache memory 10M ")
    assert "size=" in words
    assert not any (word.startswith ("scan-") for word in words)


def test_what_nbdkit_completes_itself (tmp_path):
    assert "scan" in complete (tmp_path, "nbdkit --filter sca")
    assert "memory" in complete (tmp_path, "nbdkit mem")
    assert "--readonly" in complete (tmp_path, f"nbdkit --filter={SCAN} --read")


@pytest.mark.parametrize ("breaks", ["", "COMP_WORDBREAKS=${COMP_WORDBREAKS//=}"])
def test_values (tmp_path, breaks):
    (tmp_path / "mine.lua").write_text ("return function () end\n")
    (tmp_path / "boot.log").write_text ("")
    (tmp_path / "traces").mkdir ()

    def values (parameter, begun=""):
        words = complete (
            tmp_path, f"nbdkit --filter={SCAN} memory 10M {parameter}={begun}",
            breaks)
        # M-* leaves what is before '=' alone, where that is a word of its own.
        return {word.rpartition ("=")[2] for word in words}

    assert values ("scan-policy") == policies () | {"mine.lua", "traces", "share"}
    assert values ("scan-policy", "ah") == {"ahead"}
    assert values ("scan-policy", "mi") == {"mine.lua"}
    assert values ("scan-method") == {"cache", "read"}
    assert values ("scan-background", "t") == {"true"}
    assert {"boot.log", "mine.lua", "traces"} <= values ("scan-file-trace")


def test_scan_policy (tmp_path):
    (tmp_path / "mine.lua").write_text ("return function () end\n")
    commands = {"check", "run", "simulate", "plot", "translate", "new", "watch", "map",
                "list"}
    assert set (complete (tmp_path, "scan-policy ")) == commands | {"--help", "--version"}
    assert complete (tmp_path, "scan-policy si") == ["simulate"]
    assert set (complete (tmp_path, "scan-policy check ")) == \
        policies () | {"mine.lua", "share"}
    assert complete (tmp_path, "scan-policy run ahead --thr") == ["--threads"]
    # An option that takes no value, and one that does.
    assert complete (tmp_path, "scan-policy simulate --background ada") == ["adaptive"]
    assert complete (tmp_path, "scan-policy plot --keep-reads ada") == ["adaptive"]
    assert "adaptive" not in complete (tmp_path, "scan-policy plot --threads ada")
    # Options, and not what is an example.
    assert complete (tmp_path, "scan-policy new --") == ["--help"]
    assert {"--help", "--output", "--trace"} < set (
        complete (tmp_path, "scan-policy plot --"))
    assert set (complete (tmp_path, "scan-policy simulate ahead --trace ")) == \
        {"mine.lua", "rc", "share"}
