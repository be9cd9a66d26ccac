"""Plan replicas: simulates the autoscaling policy on traffic, next to what else one could do."""

from deployments.plan.chart import plot
from deployments.plan.planning import PlanOptions, run
from deployments.plan.report import PlanReport

__all__ = ["PlanOptions", "PlanReport", "plot", "run"]
