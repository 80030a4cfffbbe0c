"""What may stand in a recipe about running on a cluster?"""

from __future__ import annotations

from pydantic import Field

from dcclip_cli.options import Options


class RayOptions(Options):
    """Where the Ray cluster is and what a task takes of it."""

    address: str | None = Field(None, description="Of the cluster, like auto; none: one of its own on this machine")
    cpus: int = Field(1, ge=1, description="Cores for one task")
    memory_gb: float = Field(1.0, gt=0, description="Memory set aside for one task")


class SlurmOptions(Options):
    """What a task asks of Slurm. The run's folder has to lie where every node sees it."""

    partition: str = Field(description="Partition to run in")
    time: str = Field("04:00:00", description="Time limit of one task")
    cpus: int = Field(1, ge=1, description="Cores for one task")
    memory_gb: int = Field(4, ge=1, description="Memory for one core")
    qos: str = Field("normal", description="Quality of service")
    setup: str | None = Field(None, description="Shell command that makes dcclip's environment, run before each task")
    sbatch: dict[str, str] = Field({}, description="More options of sbatch: account, gres, ...")


class ClusterOptions(Options):
    """How to run on a cluster; changes no result."""

    ray: RayOptions = Field(RayOptions(), description="For --engine ray")
    slurm: SlurmOptions | None = Field(None, description="For --engine slurm")
