"""The posterior of a student's weights around the trained ones: sampled by Langevin steps, kept as snapshots, drawn."""
