from kfp.dsl import PipelineTaskFinalStatus

from components.base import component


@component
def notify(status: PipelineTaskFinalStatus):
    """Says in one line how the run has ended; of one that failed on stderr, which Cloud Logging takes for an error."""
    import sys

    run = status.pipeline_job_resource_name
    if status.state == "SUCCEEDED":
        print(f"{run} has succeeded")
    else:
        reason = " ".join((status.error_message or "no reason is given").split())
        print(f"{run} has ended as {status.state}: {reason}", file=sys.stderr)
