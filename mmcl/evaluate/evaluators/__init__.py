"""The evaluators in `mmcl.evaluate.EVALUATORS`, each as a function of arrays and as a function of a model and a task."""
