# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""The examples for operators: the systemd unit, Prometheus' alerts and Grafana's
dashboard."""

import json
import os
import re
import shutil
import signal
import subprocess

import nbd
import pytest

from harness import CHECK_WITH, CLONE, PATIENCE_SECS, SCAN, TOP, needs

UNITS = os.path.join (TOP, "packaging/systemd")
RULES = os.path.join (TOP, "packaging/prometheus/nbdkit-scan.rules.yml")
DASHBOARD = os.path.join (TOP, "packaging/prometheus/grafana-dashboard.json")

pytestmark = pytest.mark.skipif (CHECK_WITH != "", reason="not about the filter")


def read (*path):
    with open (os.path.join (TOP, *path)) as f:
        return f.read ()


# -- systemd -------------------------------------------------------------------

@needs ("systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_unit (tmp_path):
    files = []
    for name in "nbdkit-disk@.service", "nbdkit-disk@.socket":
        files.append (str (tmp_path / name.replace ("@", "@demo")))
        shutil.copy (os.path.join (UNITS, name), files[-1])
        shutil.copy (os.path.join (UNITS, name), tmp_path)
    run = subprocess.run (["systemd-analyze", "verify", "--man=no", *files],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    ours = [line for line in run.stdout.splitlines () if "nbdkit-disk" in line]
    assert ours == [] and run.returncode == 0, run.stdout


def test_a_disk_that_cannot_start_does_not_lose_its_socket ():
    """It does at the limit of starts, which the pauses alone keep just below."""
    assert unit ("Restart") == "on-failure" and unit ("StartLimitIntervalSec") == "0"


def unit (key):
    """What the service says of it."""
    return re.search (rf"^{key}=((?:.*\\\n)*.*)$", read (
        "packaging/systemd", "nbdkit-disk@.service"), re.M)[1].replace ("\\\n", " ")


def exec_start (state, counters):
    """The unit's command line, with its directories and a disk of our own."""
    assert unit ("StateDirectory") == unit ("RuntimeDirectory") == "nbdkit-disk/%i"
    words = unit ("ExecStart").replace ("%S/nbdkit-disk/%i", str (state)).replace (
        "%t/nbdkit-disk/%i", str (counters)).split ()
    words = [SCAN if w == "--filter=scan" else CLONE if w == "--filter=clone" else w
             for w in words]
    words = [f"--filter={w}" if w in (SCAN, CLONE) else w for w in words]
    at = words.index ("curl")
    assert words[at + 1] == "url=${URL}"
    return [*words[:at], "pattern", "1M", *words[at + 2:]]


@needs ("systemd-socket-activate")
def test_the_unit_serves_a_disk_on_its_socket (tmp_path):
    state, counters = tmp_path / "state", tmp_path / "counters"
    state.mkdir (int (unit ("StateDirectoryMode"), 8))
    counters.mkdir (int (unit ("RuntimeDirectoryMode"), 8))
    path = str (tmp_path / "disk.sock")
    process = subprocess.Popen (["systemd-socket-activate", "-l", path,
                                 *exec_start (state, counters)],
                                stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                                text=True, umask=int (unit ("UMask"), 8))
    try:
        assert any ("Listening on" in line for line in process.stderr)
        h = nbd.NBD ()
        h.connect_unix (path)
        assert h.pread (8, 4096) == (4096).to_bytes (8, "big")
        h.pwrite (b"written!", 512)
        h.flush ()
        h.shutdown ()
    finally:
        process.send_signal (signal.SIGTERM)
        _, errors = process.communicate (timeout=PATIENCE_SECS)
    assert process.returncode == 0, errors
    assert sorted (os.listdir (state)) == ["disk.img", "disk.img.map"]
    assert (state / "disk.img").read_bytes ()[512:520] == b"written!"
    # The node exporter is another user, and nobody else has a look into the disk.
    assert sorted (os.listdir (counters)) == ["clone.prom", "scan.prom"]
    assert all (file.stat ().st_mode & 0o004 for file in [counters, *counters.iterdir ()])
    assert not any (file.stat ().st_mode & 0o077 for file in [state, *state.iterdir ()])


# -- Prometheus ----------------------------------------------------------------

def known_metrics ():
    text = "".join (read (folder, name) for folder in ("filter/report", "filter/clone")
                    for name in os.listdir (os.path.join (TOP, folder)))
    return set (re.findall (r'"(nbdkit_(?:scan|clone)_\w+)', text)) | \
        set (re.findall (r"(nbdkit_scan_policy_info)", text))


def check_metrics (text):
    used = set (re.findall (r"\bnbdkit_(?:scan|clone)_\w+", text))
    assert len (used) > 5
    assert used - known_metrics () == set ()


def test_alerts_name_metrics_that_there_are ():
    check_metrics (read (RULES))


@needs ("promtool")
def test_prometheus_takes_the_alerts ():
    subprocess.run (["promtool", "check", "rules", RULES], check=True,
                    stdout=subprocess.DEVNULL)


@needs ("promtool")
def test_each_alert_fires_when_it_should (tmp_path):
    cases = tmp_path / "alerts.yml"
    cases.write_text (read ("tests/fixtures/prometheus/alerts.yml").replace (
        "RULES", RULES))
    for name in re.findall (r"- alert: (\w+)", read (RULES)):
        assert cases.read_text ().count (name) == 2, name
    run = subprocess.run (["promtool", "test", "rules", str (cases)], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert run.returncode == 0, run.stdout


# -- counters of several servers -----------------------------------------------

METRICS = """# HELP nbdkit_scan_state What it does.
# TYPE nbdkit_scan_state gauge
nbdkit_scan_state{export="x{",state="running"} 1
# HELP nbdkit_scan_pace_piece_bytes Most bytes of a prefetch.
# TYPE nbdkit_scan_pace_piece_bytes gauge
nbdkit_scan_pace_piece_bytes 4096
"""


COLLECT = os.path.join (TOP, "packaging/prometheus/collect")


def collect (source, to):
    subprocess.run (["sh", COLLECT, source, to], check=True)


def test_counters_of_several_servers_are_told_apart (tmp_path):
    source, to = tmp_path / "from", tmp_path / "to"
    to.mkdir ()
    odd = 'f&g "h"'
    for name in "a", r"b-c\x2dd", odd:
        (source / name).mkdir (parents=True)
        for kind in "scan", "clone":
            (source / name / f"{kind}.prom").write_text (
                METRICS.replace ("_scan_", f"_{kind}_"))
            os.utime (source / name / f"{kind}.prom", (1000, 1000))
    # What a server could lead to, and what is somebody else's.
    (source / "e").mkdir ()
    secret = tmp_path / "secret"
    secret.write_text ("root:secret:1\n")
    (source / "e" / "scan.prom").symlink_to (secret)
    (to / "other.prom").write_text ("other 1\n")
    collect (source, to)
    names = {f"nbdkit-{name}-{kind}.prom" for name in ("a", r"b-c\x2dd", odd)
             for kind in ("scan", "clone")}
    assert set (os.listdir (to)) == {*names, "nbdkit-e-scan.prom", "other.prom"}
    assert (to / "nbdkit-e-scan.prom").read_text () == ""
    for name in names:
        assert (to / name).stat ().st_mtime == 1000
        assert (to / name).stat ().st_mode & 0o777 == 0o644
    assert (to / f"nbdkit-{odd}-scan.prom").read_text () == METRICS.replace (
        "{export", r'{disk="f&g \"h\"",export').replace (
            "bytes 4096", r'bytes{disk="f&g \"h\""} 4096')
    labelled = METRICS.replace ('{export', r'{disk="b-c\\x2dd",export').replace (
        "bytes 4096", r'bytes{disk="b-c\\x2dd"} 4096')
    assert (to / r"nbdkit-b-c\x2dd-scan.prom").read_text () == labelled
    if shutil.which ("promtool"):
        subprocess.run (["promtool", "check", "metrics"], check=True, text=True,
                        input=labelled, stdout=subprocess.DEVNULL)

    # A server that has ended takes its counters along.
    shutil.rmtree (source / "a")
    shutil.rmtree (source / odd)
    (source / "e" / "scan.prom").unlink ()
    collect (source, to)
    assert set (os.listdir (to)) == {r"nbdkit-b-c\x2dd-scan.prom",
                                     r"nbdkit-b-c\x2dd-clone.prom", "other.prom"}
    # Where none has started since the boot there is no such directory.
    shutil.rmtree (source)
    collect (source, to)
    assert os.listdir (to) == ["other.prom"]


def test_counters_that_have_nowhere_to_go_are_an_error (tmp_path):
    run = subprocess.run (["sh", COLLECT, tmp_path, tmp_path / "none"],
                          stderr=subprocess.PIPE, text=True, check=False)
    assert (run.returncode, run.stderr) == (
        1, f"collect: {tmp_path}/none: there is no such directory\n")


# -- Grafana -------------------------------------------------------------------

def expressions ():
    return [target["expr"] for panel in json.loads (read (DASHBOARD))["panels"]
            for target in panel["targets"]]


def test_the_dashboard_names_metrics_that_there_are ():
    check_metrics (" ".join (expressions ()))
    for variable in json.loads (read (DASHBOARD))["templating"]["list"]:
        if variable["type"] == "query":
            assert re.search (r"nbdkit_\w+", variable["query"])[0] in known_metrics ()


def test_no_panel_of_the_dashboard_lies_on_another ():
    cells = set ()
    for panel in json.loads (read (DASHBOARD))["panels"]:
        at = panel["gridPos"]
        own = {(x, y) for x in range (at["x"], at["x"] + at["w"])
               for y in range (at["y"], at["y"] + at["h"])}
        assert not own & cells, panel["title"]
        assert max (x for x, _ in own) < 24
        cells |= own


@needs ("promtool")
def test_prometheus_takes_what_the_dashboard_asks (tmp_path):
    rules = [{"record": f"r{i}", "expr": e.replace ("$__rate_interval", "5m")}
             for i, e in enumerate (expressions ())]
    path = tmp_path / "rules.json"     # JSON is YAML, too
    path.write_text (json.dumps ({"groups": [{"name": "g", "rules": rules}]}))
    run = subprocess.run (["promtool", "check", "rules", str (path)], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert run.returncode == 0, run.stdout


@needs ("promtool")
def test_the_dashboard_tells_disks_and_machines_apart (tmp_path):
    """Each panel has a line for each disk that is chosen, with a legend of its own: of the
    counters of four disks, as `collect` makes them, and of one without."""
    own = {"nbdkit_scan_state": ("state", ["running"]),
           "nbdkit_scan_reads_by_result_total": ("result", ["hit", "late", "miss"])}
    disks = [{"instance": machine, "disk": disk, "export": "x"}
             for machine in ("m1", "m2") for disk in ("a", "b")]
    disks.append ({"instance": "m1", "export": "x"})

    def labels (of):
        return "{" + ", ".join (f'{k}="{v}"' for k, v in of.items ()) + "}"

    series = []
    for name in known_metrics ():
        label, values = own.get (name, ("export", ["x"]))
        series += [{"series": name + labels ({**disk, label: value}),
                    "values": "1x10" if name == "nbdkit_scan_state" else "60+60x10"}
                   for disk in disks for value in values]

    tests = []
    for panel in json.loads (read (DASHBOARD))["panels"]:
        for target in panel["targets"]:
            shown = re.findall (r"{{(\w+)}}", target["legendFormat"])
            several = "result" in shown and own["nbdkit_scan_reads_by_result_total"][1]
            for machines, chosen in ("m1|m2", ".*"), ("m1", "a|b"), (".*", "b"):
                expr = target["expr"].replace ("$__rate_interval", "5m").replace (
                    "$instance", machines).replace ("$disk", chosen).replace ("$export", ".*")
                samples = [
                    {**disk, **({"result": r} if several else {}),
                     **({"state": "running"} if "state" in shown else {})}
                    for disk in disks for r in several or [""]
                    if re.fullmatch (machines, disk["instance"])
                    and re.fullmatch (chosen, disk.get ("disk", ""))]
                tests.append ({
                    "expr": f"count by ({', '.join (shown)}) ({expr})", "eval_time": "10m",
                    "exp_samples": [{"labels": labels (s), "value": 1} for s in samples]})
    path = tmp_path / "tests.json"
    path.write_text (json.dumps ({"rule_files": [], "tests": [
        {"interval": "1m", "input_series": series, "promql_expr_test": tests}]}))
    run = subprocess.run (["promtool", "test", "rules", str (path)], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert run.returncode == 0, run.stdout
