from kfp.dsl import Artifact, Output, PipelineTaskFinalStatus

from components.base import component


@component
def notify(status: PipelineTaskFinalStatus, notice: Output[Artifact]):
    """Says in one line how the run has ended, and what the gate found; of a run that failed on stderr, which Cloud
    Logging takes for an error."""
    import sys
    from pathlib import Path

    run = status.pipeline_job_resource_name
    if status.state == "SUCCEEDED":
        # KFP gives the last step of a run nothing of the steps before it: evaluate left this in the folder of the run.
        verdict = Path(notice.path).parents[1] / "verdict.txt"
        line = f"{run} has succeeded" + (f": {verdict.read_text()}" if verdict.exists() else "")
        print(line)
    else:
        reason = " ".join((status.error_message or "no reason is given").split())
        line = f"{run} has ended as {status.state}: {reason}"
        print(line, file=sys.stderr)
    Path(notice.path).write_text(line + "\n")
