"""Plan replicas: simulates the autoscaling policy, those of others and a lower bound."""

from deployments.plan.chart import plot
from deployments.plan.planning import STARTUPS_S, PlanOptions, run
from deployments.plan.report import PlanReport

__all__ = ["STARTUPS_S", "PlanOptions", "PlanReport", "plot", "run"]
