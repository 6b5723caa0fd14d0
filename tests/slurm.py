"""A real SLURM on this machine for tests: one controller, two nodes, two files that stand for GPUs; nothing in /etc.

with cluster(folder) as env: subprocess.run(["sbatch", ...], env=env, timeout=60)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
START_S = 30

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
MinJobAge=3600
KillWait=5
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000 Gres=gpu:2
PartitionName=debug Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
GRES = "NodeName=n1,n2 Name=gpu File={folder}/gpu[0-1]\n"


def missing() -> list[str]:
    """What a cluster would need and this machine does not have; root, for daemons that start jobs as their user."""
    found = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    return found + ([] if os.geteuid() == 0 else ["root"])


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """A running cluster; gives the environment that its commands need."""
    folder.mkdir(parents=True)
    for name in ("state", "spool.n1", "spool.n2"):
        (folder / name).mkdir()
    for number in (0, 1):
        (folder / f"gpu{number}").touch()
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(3)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=socket.gethostname(), ports=ports, folder=folder))
    (folder / "gres.conf").write_text(GRES.format(folder=folder))
    env = {**os.environ, "SLURM_CONF": str(config), "MASTER_ADDR": "127.0.0.1", "PATH": _path()}
    commands = [
        ["slurmctld", "-D", "-f", str(config)],
        *(["slurmd", "-D", "-N", n, "-f", str(config)] for n in ("n1", "n2")),
    ]
    daemons = [
        subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for command in commands
    ]
    try:
        _wait_until_idle(env)
        yield env
    finally:
        with contextlib.suppress(subprocess.SubprocessError):
            subprocess.run(["scancel", "--user=root"], env=env, timeout=30, check=False)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in daemons:
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _wait_until_idle(env: dict[str, str]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        done = subprocess.run(
            ["sinfo", "-h", "-o", "%T %D"], env=env, capture_output=True, text=True, timeout=30, check=False
        )
        if done.stdout.split() == ["idle", "2"]:
            return
        time.sleep(0.2)
    raise RuntimeError(f"the cluster did not start within {START_S} s: {done.stdout} {done.stderr}")


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # daemons are not on everybody's path
