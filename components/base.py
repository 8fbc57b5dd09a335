"""The decorator that turns a function into a pipeline step."""

import functools

from kfp import dsl

# A step runs from its source text alone, in a process or container of its own, so its body imports what it uses. The
# pipeline sets the image, which holds mf and KFP's executor: a step installs nothing.
component = functools.partial(dsl.component, base_image="python", install_kfp_package=False)
