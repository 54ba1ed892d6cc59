"""What several experiments share: their command, their trainings and networks, figures, sentences and pages."""
