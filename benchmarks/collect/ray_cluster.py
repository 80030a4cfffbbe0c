"""Whether Ray's workers write the same shards as local processes.

    python benchmarks/collect/ray_cluster.py MANY WORK [--tars 4]

Starts a Ray cluster of two nodes with one worker each on this machine; needs the extra `ray`.
"""

import argparse
import os
import shutil
import subprocess
import time
from pathlib import Path

from ray.cluster_utils import Cluster
from running import command, differences, first_tars, recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("many", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tars", type=int, default=4)
    options = parser.parse_args()
    root = options.work.resolve() / "ray"
    shutil.rmtree(root, ignore_errors=True)
    read = recipe(root, first_tars(options.many, root / "tars", options.tars))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    nodes = os.environ | {"RAY_ADDRESS": cluster.address}
    for engine in ("local", "ray"):
        begin = time.monotonic()
        subprocess.run(command(read, root / engine, "--engine", engine, "--workers", "2"), check=True, env=nodes)
        print(f"{engine:<6} {time.monotonic() - begin:6.1f} s", flush=True)
    cluster.shutdown()
    print(f"differing files: {differences(root / 'local/collect', root / 'ray/collect') or 'none'}")


if __name__ == "__main__":
    main()
