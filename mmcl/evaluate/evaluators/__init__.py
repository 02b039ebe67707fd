"""The evaluators, see `mmcl.evaluate.EVALUATORS`: each as a function of arrays and as one of a model and a task."""
