# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""make install and make uninstall, into a directory of their own (what they do to a
system is for tests/chroot/make-install): what pages name is there, and all goes away."""

import os
import re
import shutil
import subprocess

import pytest

from harness import CHECK_WITH, TOP, needs

pytestmark = [
    pytest.mark.skipif (CHECK_WITH != "", reason="nothing of it runs under a checker"),
    needs ("pod2man"),
]


def make (*args):
    return subprocess.run (["make", "-s", "-C", TOP, *args], check=True, text=True,
                           stdout=subprocess.PIPE).stdout


def files_in (directory):
    return [os.path.join (where, name) for where, _, names in os.walk (directory)
            for name in names]


def named_in (text):
    """The pictures and links of a page, the files that it names in the text, and what it
    names without a directory."""
    links = [link for link in re.findall (r"\]\(([^)#]+)\)", text)
             if not link.startswith ("http")]
    named = re.findall (r"(?<![\w/.])((?:docs|tests/traces)/[\w./-]+\.(?:md|svg|log))\b",
                        text)
    named += re.findall (r"`(policies)/`", text)
    beside = re.findall (r"[`\s]([\w-]+\.(?:data|log|sh))`", text)
    return links, named, beside


def test_what_is_put_there_is_whole_and_goes_away (tmp_path):
    # Another stage than a person's, who may be installing just now.
    where = [f"DESTDIR={tmp_path}/root", f"STAGE={tmp_path}/stage"]
    make ("install", "PREFIX=/usr/local", *where)
    doc = tmp_path / "root/usr/local/share/doc/nbdkit-scan-filter-lua"
    pages = [path for path in files_in (doc) if path.endswith (".md")]
    assert len (pages) >= 8
    links = 0
    for page in pages:
        with open (page) as f:
            shown, named, beside = named_in (f.read ())
        if page == str (doc / "tests/traces/README.md"):
            assert {"record.sh", "boot-debian12.data"} < set (beside)
            shown += beside
        links += len (shown) + len (named)
        for link in shown:
            assert os.path.exists (os.path.join (os.path.dirname (page), link)), \
                f"{page} shows {link}"
        for name in named:
            assert (doc / name).exists (), f"{page} names {name}"
    assert links > 20

    def version (program):
        return subprocess.run ([program, "--version"], check=True, text=True,
                               stdout=subprocess.PIPE).stdout

    assert version (tmp_path / "root/usr/local/bin/scan-policy") \
        == version (os.path.join (TOP, "lua/bin/scan-policy"))

    # As a person does it who has forgotten where.
    make ("uninstall", where[0])
    assert files_in (tmp_path / "root") == []
    assert not doc.exists ()


# -- built for another nbdkit, or for none --------------------------------------

def pkg_config (tmp_path, text):
    """A pkg-config that says something else."""
    path = tmp_path / "pkg-config"
    path.write_text (f'#!/bin/sh\n{text}\nexec pkg-config "$@"\n')
    path.chmod (0o755)
    return f"PKG_CONFIG={path}"


def test_what_was_built_for_another_nbdkit_is_built_again (tmp_path):
    built = tmp_path / "build/filter/common/escape.o"
    args = [f"B={tmp_path}/build", str (built)]

    def when_made (*more):
        make (*args, *more)
        return built.stat ().st_mtime_ns

    first = when_made ()
    assert when_made () == first
    other = pkg_config (tmp_path, """case "$*" in
      *modversion*nbdkit*) shift; echo 99.1; set -- --modversion "${2:-lua5.4}" ;; esac""")
    second = when_made (other)
    assert second != first
    assert when_made (other) == second


@pytest.mark.parametrize ("target", ["run-stage", "run-install", "run-uninstall"])
def test_without_nbdkits_package_nothing_goes_into_the_root (tmp_path, target):
    none = pkg_config (tmp_path, 'case "$*" in *nbdkit*) exit 1 ;; esac')
    run = subprocess.run (["make", "-s", "-C", TOP, target, none, f"STAGE={tmp_path}/stage",
                           f"DESTDIR={tmp_path}/root"], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)
    assert run.returncode != 0
    said = [line for line in run.stderr.splitlines () if not line.startswith ("make")]
    assert len (said) == 1 and "apt-get install nbdkit-plugin-dev" in said[0], run.stderr
    assert os.listdir (tmp_path) == ["pkg-config"]


def test_without_pod2man_it_says_what_is_missing (tmp_path):
    for name in os.listdir ("/usr/bin"):
        if name != "pod2man":
            (tmp_path / name).symlink_to (f"/usr/bin/{name}")
    run = subprocess.run (["make", "-s", "-C", TOP, "-W", "docs/scan-policy.pod",
                           "build/man/scan-policy.1"], text=True, stderr=subprocess.PIPE,
                          env={**os.environ, "PATH": str (tmp_path)})
    said = [line for line in run.stderr.splitlines () if not line.startswith ("make")]
    assert said == ["pod2man is missing: apt-get install perl"] and run.returncode != 0


# -- what is not as it was installed --------------------------------------------

FILTER = "usr/lib/filters/nbdkit-scan-filter.so"
PAGE = "usr/share/man/man1/nbdkit-scan-filter.1"


@pytest.fixture
def place (tmp_path):
    """Runs packaging/place for some files, in the way of which others are."""
    root, stage = tmp_path / "root", tmp_path / "stage"
    for name, text in ((stage / FILTER, "ours"), (stage / PAGE, "our page"),
                       (root / FILTER, "stock"), (root / f"{PAGE}.gz", "stock page")):
        name.parent.mkdir (parents=True, exist_ok=True)
        name.write_text (text)

    def run (what):
        args = [what, *([str (stage)] if what == "install" else []), "/usr/lib/manifest",
                str (root)]
        return subprocess.run ([os.path.join (TOP, "packaging/place"), *args], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    run.root, run.stage = root, stage
    return run


@pytest.mark.parametrize ("name, kept", [
    (FILTER, f"{FILTER}.distrib"),
    (PAGE, "usr/share/man/man1/nbdkit-scan-filter.distrib.1.gz")], ids=["filter", "page"])
@pytest.mark.parametrize ("later", [False, True], ids=["same", "later"])
def test_what_a_changed_file_is_in_the_way_of_is_not_forgotten (place, name, kept, later):
    root = place.root
    assert place ("install").returncode == 0
    (root / name).write_text ("changed")
    if later:       # a version that has no such file
        (place.stage / name).unlink ()
        (place.stage / "usr/lib/filters/nbdkit-scan-filter.so-later").write_text ("")
        assert place ("install").returncode == 0
    for _ in range (2):
        run = place ("uninstall")
        assert run.returncode != 0
        assert f"left     {root}/{name}, which was changed since" in run.stdout
        assert f"{root}/{kept}" in run.stdout
    assert (root / name).read_text () == "changed"
    (root / name).unlink ()
    assert place ("uninstall").returncode == 0
    assert {file: open (file).read () for file in files_in (root)} == {
        str (root / FILTER): "stock", str (root / f"{PAGE}.gz"): "stock page"}
    assert "nothing to uninstall" in place ("uninstall").stdout


# -- the rpm ---------------------------------------------------------------------

@needs ("rpmspec")
def test_the_spec_is_read_where_nothing_is_installed_yet (tmp_path):
    """As dnf builddep does, to know what to install."""
    none = tmp_path / "pkg-config"
    none.write_text ("#!/bin/sh\nexit 127\n")
    none.chmod (0o755)
    run = subprocess.run (
        ["rpmspec", "-q", "--buildrequires",
         os.path.join (TOP, "packaging/rpm/nbdkit-filter-scan-lua.spec")], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert run.returncode == 0, run.stderr
    assert "nbdkit-devel >= 1.32" in run.stdout.splitlines ()


# -- the Debian package ----------------------------------------------------------

@needs ("dh_gencontrol")
def test_the_deb_takes_any_revision_of_its_nbdkit_and_no_other_version (tmp_path):
    shutil.copytree (os.path.join (TOP, "debian"), tmp_path / "debian")
    subprocess.run (["debian/rules", "override_dh_gencontrol"], cwd=tmp_path, check=True,
                    stdout=subprocess.DEVNULL)
    control = tmp_path / "debian/nbdkit-filter-scan-lua/DEBIAN/control"
    limits = re.findall (r"\bnbdkit \((\S+) (\S+)\)", control.read_text ())
    assert limits, control.read_text ()
    version = subprocess.run (["pkg-config", "--modversion", "nbdkit"], check=True,
                              text=True, stdout=subprocess.PIPE).stdout.strip ()

    def taken (candidate):
        return all (subprocess.run (["dpkg", "--compare-versions", candidate, *limit]
                                    ).returncode == 0 for limit in limits)

    for revision in "-1", "-1+deb12u1", "-1+b1", "-1~bpo12+1", "-0ubuntu1", "-0~mine":
        assert taken (version + revision), revision
    start, _, last = version.rpartition (".")
    for other in int (last) - 1, int (last) + 1, int (last + "0"), f"{last}.1":
        assert not taken (f"{start}.{other}-1"), other


# -- what goes into packages -----------------------------------------------------

@needs ("git")
def test_packages_have_what_git_has_or_all_of_a_tarball (tmp_path):
    for name in "README.md", "packaging/files", "build/a.o", "notes", "later", "with space":
        (tmp_path / name).parent.mkdir (exist_ok=True)
        (tmp_path / name).write_text (name)
    shutil.copy (os.path.join (TOP, "packaging/files"), tmp_path / "packaging")

    def packed ():
        names = subprocess.run ([tmp_path / "packaging/files"], check=True, text=True,
                                stdout=subprocess.PIPE).stdout.split ("\0")
        assert names.pop () == ""
        return {os.path.normpath (name) for name in names}

    ours = {"README.md", "packaging/files", "later", "with space"}
    assert packed () == {*ours, "notes"}
    # Before a commit, too, and with what is changed and not added.
    subprocess.run (["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run (["git", "add", *ours], cwd=tmp_path, check=True)
    assert packed () == ours
