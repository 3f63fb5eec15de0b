# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""A scan never opens a plugin that would ask it for the export's name.

nbdkit has none to tell outside of a connection, and some plugins die of it, and
the server with them.  Here are plugins as distributions ship them.
"""

import pytest

from harness import CHECK_WITH, SCAN, gate, nbdkit

FINISHED = "scan: finished scanning the plugin"
VERBOSE = ["-v", "-D", "nbdkit.backend.controlpath=0",
           "-D", "nbdkit.backend.datapath=0"]
BACKGROUND = "scan-background=true"
SERIALIZED = [["noparallel"], ["retry"]]

no_shell = pytest.mark.skipif (CHECK_WITH in ("asan", "tsan"),
                               reason="the shell of the plugin dies under it")


def our_errors (server):
    return [e for e in server.errors () if e.startswith ("scan: ")]


def parameters (filters):
    return ["serialize=requests"] if "noparallel" in filters else []


@pytest.fixture
def disks (tmp_path):
    folder = tmp_path / "disks"
    folder.mkdir ()
    for name in "a", "b":
        (folder / name).write_bytes (name.encode () * 65536)
    return folder


def naming_plugins (disks, other):
    """Command lines of plugins that ask for a name, and two names to ask for."""
    return {
        "file": (["file", f"dir={disks}"], ["a", "b"]),
        "nbd": (["nbd", f"socket={other}", "dynamic-export=true"], ["a", "b"]),
        "ondemand": (["ondemand", f"dir={disks}", "size=1M"], ["a", "b"]),
        "info": (["info", "mode=exportname"], ["a" * 512, "b" * 512]),
    }


PLUGINS = ["file", "nbd", pytest.param ("ondemand", marks=no_shell), "info"]


@pytest.fixture
def other ():
    """Another server, for the nbd plugin."""
    with nbdkit ([], gate ("size=64K")) as server:
        yield server.socket


@pytest.mark.parametrize ("name", PLUGINS)
@pytest.mark.parametrize ("below", [[], ["cow"], ["exportname"]])
def test_no_background_scan_of_what_it_cannot_name (disks, other, name, below):
    """There is one warning, and each client is scanned by itself."""
    plugin, exports = naming_plugins (disks, other)[name]
    with nbdkit ([SCAN, *below], plugin,
                 [BACKGROUND, "scan-exports=*", "scan-method=read"],
                 VERBOSE) as server:
        server.wait_line (f"scan: warning: the {name} plugin.*export's name.*"
                          "no scan in the background")
        start = 0
        for export in exports:
            server.connect (export).pread (512, 0)
            _, start = server.wait_line (FINISHED, start)
        warnings = [e for e in our_errors (server) if "of no use" not in e
                    and "scan-method=read" not in e]
        assert len (warnings) == 1


@pytest.mark.parametrize ("name", PLUGINS)
@pytest.mark.parametrize ("below", SERIALIZED)
def test_no_context_without_the_name (disks, other, name, below):
    plugin, exports = naming_plugins (disks, other)[name]
    with nbdkit ([SCAN, *below], plugin,
                 ["scan-exports=*", "scan-method=read", *parameters (below)],
                 VERBOSE) as server:
        for export in exports:
            server.connect (export).pread (512, 0)
        warnings = [e for e in our_errors (server) if "not scanning" in e]
        assert len (warnings) == 1
        assert name in warnings[0] and "name one disk" in warnings[0]
        assert not any (FINISHED in line for line in server.log)


@pytest.mark.parametrize ("below", [[], *SERIALIZED])
@pytest.mark.parametrize ("background", [True, False])
def test_parameters_that_name_one_disk (disks, other, below, background):
    for plugin in ["file", str (disks / "a")], ["nbd", f"socket={other}"]:
        with nbdkit ([SCAN, *below], plugin,
                     [f"scan-background={background}", "scan-method=read",
                      *parameters (below)], VERBOSE) as server:
            h = server.connect ()
            server.wait_line (FINISHED)
            h.pread (512, 0)
            assert not any ("not scanning" in e for e in our_errors (server))


@pytest.mark.parametrize ("below", [[], *SERIALIZED])
def test_plugins_that_do_not_ask (disks, below):
    """Whatever the export's name is."""
    for plugin in (["memory", "64K"], ["data", "1 2 3"], ["pattern", "64K"],
                   ["floppy", f"dir={disks}"], ["split", str (disks / "a")]):
        with nbdkit ([SCAN, *below], plugin,
                     ["scan-exports=*", "scan-method=read", *parameters (below)],
                     VERBOSE) as server:
            h = server.connect ("some name")
            server.wait_line (FINISHED)
            h.pread (1, 0)
            assert not any ("not scanning" in e for e in our_errors (server))


@no_shell
@pytest.mark.parametrize ("below", [[], *SERIALIZED])
def test_a_plugin_with_a_new_disk_for_everyone (below):
    """tmpdisk: what a scan fetches of its own disk is of no use to anyone."""
    with nbdkit ([SCAN, *below],
                 ["tmpdisk", "size=64K", "command=truncate -s $size $disk"],
                 [BACKGROUND, "scan-method=read", *parameters (below)],
                 VERBOSE) as server:
        server.wait_line ("scan: warning: the tmpdisk plugin makes another disk")
        server.connect ().pread (512, 0)
        assert sum ("another disk" in e for e in our_errors (server)) == 1


@no_shell
@pytest.mark.parametrize ("below", SERIALIZED)
@pytest.mark.parametrize ("export", ["", "small"])
def test_a_script_is_told_no_name_but_the_empty_one (tmp_path, below, export):
    """nbdkit hands a script the empty name where it has none."""
    opened = tmp_path / "opened"
    plugin = ["eval", "get_size=echo 65536", "thread_model=echo parallel",
              f"open=echo \"<$3>\" >> {opened}", "pread=head -c $3 /dev/zero"]
    with nbdkit ([SCAN, *below], plugin,
                 ["scan-exports=*", "scan-method=read", *parameters (below)],
                 VERBOSE) as server:
        server.connect (export)
        server.wait_line (FINISHED if export == "" else
                          "scan: warning: the eval plugin.*not scanning")
    assert set (opened.read_text ().split ()) == {f"<{export}>"}
