#!/usr/bin/env python3
"""Stands in on this machine for the program by whose name it is called: sbatch, srun, scontrol, ray, torchrun."""

import os
import re
import subprocess
import sys

if __name__ == "__main__":
    name = os.path.basename(sys.argv[0])
    words = sys.argv[1:]
    if name == "torchrun":  # as pip installs it
        os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", *words])
    if name == "ray":
        os.execvp(words[words.index("--") + 1], words[words.index("--") + 1 :])
    if name == "scontrol":
        os.execvp("echo", ["echo", *words])
    if name == "sbatch":
        with open(words[0], encoding="utf-8") as script:
            options = " ".join(re.findall("^#SBATCH (.*)", script.read(), re.M))
        sys.exit(subprocess.call(["bash", *words], env=os.environ | {"SLURM_JOB_ID": "7", "SBATCH_OPTIONS": options}))
    given = " ".join([os.environ.get("SBATCH_OPTIONS", ""), *words])
    nodes, per_node = (int(number) for number in re.findall(r"--(?:nodes|ntasks-per-node)=(\d+)", given))
    step = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": str(nodes * per_node), "SLURM_JOB_NODELIST": "localhost,gpu[07-09]"}
    ranks = ({"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % per_node)} for rank in range(nodes * per_node))
    tasks = [subprocess.Popen(words[words.index("dcclip") :], env=os.environ | step | rank) for rank in ranks]
    sys.exit(max(task.wait() for task in tasks))
