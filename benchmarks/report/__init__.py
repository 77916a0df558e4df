"""dst-report: tables, figures and verdicts from the results of dst-experiment."""
