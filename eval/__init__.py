"""Evaluation of dixit runs: metrics, tables, transfer, report."""
