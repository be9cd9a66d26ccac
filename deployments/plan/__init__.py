"""Plan replicas: simulates the autoscaling policy, Ray Serve's own and a lower bound."""

from deployments.plan.chart import plot
from deployments.plan.planning import PlanOptions, run
from deployments.plan.report import PlanReport

__all__ = ["PlanOptions", "PlanReport", "plot", "run"]
