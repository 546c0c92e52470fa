"""A JobSet for Kubernetes: all pods of a run start together, and are all started again when one fails.

It needs JobSet 0.10: since then a rule may look at the message of a failure, which tells exit codes apart.

Fields: https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2 and the Job and Pod they hold.
"""

from collections.abc import Sequence
from typing import Any

from launch import job
from launch.accelerators import Accelerator

_PORT = 8476
_JOB = "workers"


def manifest(
    name: str,
    image: str,
    command: Sequence[str],
    accelerator: Accelerator,
    slices: int = 1,
    restarts: int = 10,
    grace: int = 60,
    claim: str | None = None,
    mount: str = "/runs",
    labels: dict[str, str] | None = None,
) -> dict[str, Any]:
    """The manifest, as plain data.

    Args:
      name: of the JobSet.
      image: with our code, see Dockerfile.
      command: of each pod.
      accelerator: of each pod, and how many pods make a slice.
      slices: TPU slices; GPU nodes all are one.
      restarts: of all pods, after the failure of one; exit code 75, an orderly stop, does not count; 2, a mistake, and 3,
        a run that diverged, are never tried again.
      grace: seconds between SIGTERM and SIGKILL.
      claim: a persistent volume claim that all pods mount, with the run folders and photographs.
      mount: where.
      labels: of the JobSet, such as a queue's.
    """
    pods = {
        "parallelism": accelerator.hosts,
        "completions": accelerator.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one pod that fails fails its job, and so all
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onPodConditions": [],  # clusters before Kubernetes 1.31 ask for it
                    "onExitCodes": {"containerName": "train", "operator": "In", "values": [*job.FINAL, job.STOPPED]},
                }
            ]
        },
        "template": {"spec": _pod(name, image, command, accelerator, slices, grace, claim, mount)},
    }
    metadata: dict[str, Any] = {"name": name}
    if labels:
        metadata["labels"] = labels
    if accelerator.topology is not None:  # a slice is a node pool, and a job of its own
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {
                "maxRestarts": restarts,
                "rules": [
                    {
                        "name": "stopped",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                        "onJobFailureMessagePatterns": [f"exit code {job.STOPPED} "],  # the Job's words
                    },
                    {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
                ],
            },
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "replicatedJobs": [{"name": _JOB, "replicas": slices, "template": {"spec": pods}}],
        },
    }


def _pod(
    name: str,
    image: str,
    command: Sequence[str],
    accelerator: Accelerator,
    slices: int,
    grace: int,
    claim: str | None,
    mount: str,
) -> dict[str, Any]:
    tpu = accelerator.topology is not None
    resource = "google.com/tpu" if tpu else "nvidia.com/gpu"
    container: dict[str, Any] = {
        "name": "train",
        "image": image,
        "command": list(command),
        "env": _environment(name, accelerator, slices),
        "resources": {"limits": {resource: accelerator.chips}},
        "volumeMounts": [{"name": "memory", "mountPath": "/dev/shm"}],  # data workers hand batches over there
    }
    volumes: list[dict[str, Any]] = [{"name": "memory", "emptyDir": {"medium": "Memory"}}]
    if claim is not None:
        container["volumeMounts"].append({"name": "runs", "mountPath": mount})
        volumes.append({"name": "runs", "persistentVolumeClaim": {"claimName": claim}})
    selector = {
        "cloud.google.com/gke-tpu-accelerator" if tpu else "cloud.google.com/gke-accelerator": accelerator.label
    }
    if accelerator.topology is not None:
        selector["cloud.google.com/gke-tpu-topology"] = accelerator.topology
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace,
        "nodeSelector": selector,
        "tolerations": [{"key": resource, "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [container],
        "volumes": volumes,
    }


def _environment(name: str, accelerator: Accelerator, slices: int) -> list[dict[str, Any]]:
    values = {
        "UNISER_PROCESSES": str(accelerator.hosts * slices),
        "UNISER_LOCAL_DEVICES": str(accelerator.chips),
    }
    if accelerator.topology is None:  # on TPUs, GKE tells jax who its peers are
        values["UNISER_COORDINATOR"] = f"{name}-{_JOB}-0-0.{name}:{_PORT}"
    environment: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in values.items()]
    if accelerator.topology is None:
        index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        environment.append({"name": "UNISER_PROCESS", "valueFrom": {"fieldRef": {"fieldPath": index}}})
    return environment
