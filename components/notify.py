from kfp.dsl import Artifact, Output, PipelineTaskFinalStatus

from components.base import component


@component
def notify(status: PipelineTaskFinalStatus, notice: Output[Artifact]):
    """Logs in one line how the run ended and the gate's verdict. A failure goes to stderr, which Cloud Logging records
    with severity ERROR."""
    import sys
    from pathlib import Path

    run = status.pipeline_job_resource_name
    if status.state == "SUCCEEDED":
        # KFP gives a run's final step no output of the steps before it: evaluate wrote this file to the run's folder.
        verdict = Path(notice.path).parents[1] / "verdict.txt"
        line = f"{run} has succeeded" + (f": {verdict.read_text()}" if verdict.exists() else "")
        print(line)
    else:
        reason = " ".join((status.error_message or "no reason is given").split())
        line = f"{run} has ended as {status.state}: {reason}"
        print(line, file=sys.stderr)
    Path(notice.path).write_text(line + "\n")
