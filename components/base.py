"""What the steps have in common."""

import functools

from kfp import dsl

# A step runs from its source text alone, in a process or container of its own, so its body imports what it uses. The
# image is the pipeline's to say; it holds mf and KFP's executor, so that a step installs nothing.
component = functools.partial(dsl.component, base_image="python", install_kfp_package=False)
