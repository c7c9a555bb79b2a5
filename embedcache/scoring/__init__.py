"""Scores of predictions with intervals over patients, and models against each other."""
