"""The policy `continue`: another call goes on after the text of a call that broke off. The log has one attempt, and its
readers see one completion. `calls` makes these calls; the other modules are pure. Imports `broker` and the modules of
`worker` below `generate`. Begin with `calls.ContinuedCalls`."""
